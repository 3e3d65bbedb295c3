"""What of a pipeline waits in its working directory, and what becomes of it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from dlt.common.json import json as dlt_json
from dlt.common.metrics import DataWriterMetrics
from dlt.common.pipeline import ExtractInfo, NormalizeInfo, SupportsPipeline
from dlt.common.storages import FileStorage
from dlt.common.storages.load_package import PackageStorage
from dlt.pipeline.pipeline import Pipeline
from dlt.pipeline.trace import PipelineTrace, load_trace

MOST_PACKAGES = 20
"""Load packages that are named."""

LARGEST_COUNTED = 64 * 1024 * 1024
"""Bytes of a text file whose rows are counted where dlt's trace does not know them; they have to be read for it."""

PackageState = Literal["extracted", "normalised", "partly loaded", "half extracted", "half normalised"]


@dataclass(frozen=True)
class PendingTable:
    """What of a table is in a load package.

    Attributes:
        name: The table.
        files: How many files of it there are, the loaded ones included.
        rows: Rows in them; None when that is not known.
        loaded: Files that are in the destination already.
        uncertain: Files that an interrupted load had begun with, so that they may be in the destination.
        bytes: Size of the files.
    """

    name: str
    files: int
    rows: int | None
    loaded: int = 0
    uncertain: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        files = f"{self.files:,} file" if self.files == 1 else f"{self.files:,} files"
        known = files if self.rows is None else f"{_rows(self.rows)} in {files}"
        notes = [f"{self.loaded:,} of them loaded"] * bool(self.loaded)
        notes += [f"{self.uncertain:,} of them perhaps loaded"] * bool(self.uncertain)
        return f"{self.name} ({', '.join([known, *notes])})"


@dataclass(frozen=True)
class PendingPackage:
    """A load package that waits, or what an interrupted step has left of one.

    Attributes:
        load_id: Its load id; of what is half extracted, the name of the folder.
        state: How far it is.
        folder: Where it is, relative to the working directory.
        tables: What is in it, dlt's own tables left out.
    """

    load_id: str
    state: PackageState
    folder: str
    tables: tuple[PendingTable, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it waits to be loaded; dlt begins anew what is only half there."""
        return not self.state.startswith("half")

    def __str__(self) -> str:
        tables = ", ".join(map(str, self.tables)) or "no rows"
        state = self.state if self.is_whole else f"{self.state}, and never loaded: its step begins anew"
        return f"load package {self.load_id}: {state}; {tables}"


def pending_packages(working_dir: Path) -> list[PendingPackage]:
    """Return what waits in a pipeline's working directory, the oldest first, and then what is only half there."""
    count = _RowCounts(load_trace(str(working_dir)))
    found: list[PendingPackage] = []
    for folder in _folders(working_dir / "load" / "normalized"):
        package = _package(working_dir, folder, "normalised", [folder], count)
        info = PackageStorage(FileStorage(str(folder.parent)), "normalized").get_load_package_info(folder.name)
        # For dlt, a package of which all is loaded, and that alone is missing, is not partially loaded.
        has_rows_there = any(table.loaded or table.uncertain for table in package.tables)
        if has_rows_there or PackageStorage.is_package_partially_loaded(info):
            package = replace(package, state="partly loaded")
        found.append(package)
    found += [
        _package(working_dir, folder, "extracted", [folder], count)
        for folder in _folders(working_dir / "normalize" / "extracted")
    ]
    found.sort(key=lambda package: package.load_id)
    found += [
        _package(working_dir, folder, "half normalised", [folder], count)
        for folder in _folders(working_dir / "load" / "new")
    ]
    # Each extract writes to a folder of its own name, and what it has done moves to the others when it ends well.
    for folder in _folders(working_dir / "normalize"):
        if folder.name != "extracted" and any(path.is_file() for path in folder.rglob("*")):
            found.append(_package(working_dir, folder, "half extracted", list(_folders(folder)), count))
    return found


def package_lines(packages: Sequence[PendingPackage]) -> list[str]:
    """Say what `pending_packages` has found, a line each; in one line what interrupted steps have left without rows."""
    empty = [package for package in packages if not package.is_whole and not package.tables]
    lines = [str(package) for package in packages if package not in empty]
    if empty:
        steps = "an interrupted step" if len(empty) == 1 else f"{len(empty):,} interrupted steps"
        lines.append(f"left by {steps}: no rows, and nothing that is ever loaded")
    return lines


def pending_lines(pipeline: SupportsPipeline) -> list[str]:
    """Say which load packages of a pipeline wait to be normalised or loaded, one line each; empty when none does."""
    if not isinstance(pipeline, Pipeline):
        return []
    lines = [f"load package {load_id}: extracted" for load_id in pipeline.list_extracted_load_packages()]
    for load_id in pipeline.list_normalized_load_packages():
        jobs = pipeline.get_load_package_info(load_id).jobs
        done, total = len(jobs["completed_jobs"]), sum(map(len, jobs.values()))
        lines.append(f"load package {load_id}: normalised, {done:,} of {total:,} jobs loaded")
    if (more := len(lines) - MOST_PACKAGES) > 0:
        lines[MOST_PACKAGES:] = [f"and {more:,} more load packages"]
    return lines


def resumes_with(pipeline: Pipeline) -> str:
    """Say which step the next attempt begins with, and what it keeps."""
    if pipeline.list_extracted_load_packages():
        return "normalize: what was extracted is kept"
    if pipeline.list_normalized_load_packages():
        return "load: what was extracted and normalised is kept, and so are the jobs that were loaded"
    return "extract, since nothing was kept"


class _RowCounts:
    """Rows of the files of load packages: from dlt's trace, or from the files."""

    def __init__(self, trace: PipelineTrace | None) -> None:
        self._known: dict[tuple[str, str], int] = {}
        for step in trace.steps if trace is not None else ():
            info = step.step_info
            for load_id, metrics in info.metrics.items() if isinstance(info, ExtractInfo | NormalizeInfo) else ():
                for metric in metrics:
                    jobs = cast("Mapping[str, DataWriterMetrics]", metric.get("job_metrics", {}))
                    self._known |= {(load_id, _file_key(job.file_path)): job.items_count for job in jobs.values()}

    def of(self, load_id: str, path: Path) -> int | None:
        rows = self._known.get((load_id, _file_key(path.name)))
        if rows is not None:
            return rows
        # A file may be cut off, by whatever ended the run, or be of a form that tells nothing.
        with suppress(Exception):
            return _rows_in(path)
        return None


def _file_key(path: str) -> str:
    """Return table and file id, which stay when a file is normalised to another form or tried again."""
    return ".".join(Path(path).name.split(".")[:2])


def _rows_in(path: Path) -> int | None:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        return int(importlib.import_module("pyarrow.parquet").read_metadata(path).num_rows)
    if kind not in ("jsonl", "typed-jsonl") or path.stat().st_size > LARGEST_COUNTED:
        return None
    lines = _lines(path)
    return sum(len(dlt_json.typed_loadb(line)) for line in lines) if kind == "typed-jsonl" else sum(1 for _ in lines)


def _lines(path: Path) -> Iterator[bytes]:
    import gzip

    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if is_packed else path.open("rb") as file:
        yield from (line for line in file if line.strip())


def _folders(of: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted(path for path in of.iterdir() if path.is_dir())


def _package(
    working_dir: Path, folder: Path, state: PackageState, parts: Iterable[Path], count: _RowCounts
) -> PendingPackage:
    tables: dict[str, PendingTable] = {}
    for part in parts:
        for path, is_loaded, is_uncertain in _jobs(part):
            name = path.name.partition(".")[0]
            so_far = tables.get(name, PendingTable(name, 0, 0))
            rows = count.of(part.name, path)
            tables[name] = PendingTable(
                name,
                so_far.files + 1,
                None if rows is None or so_far.rows is None else so_far.rows + rows,
                so_far.loaded + is_loaded,
                so_far.uncertain + is_uncertain,
                so_far.bytes + path.stat().st_size,
            )
    names = sorted(tables)
    return PendingPackage(
        folder.name, state, folder.relative_to(working_dir).as_posix(), tuple(tables[name] for name in names)
    )


def _jobs(package: Path) -> Iterator[tuple[Path, bool, bool]]:
    """Yield each file of a package but dlt's own, whether it is in the destination, and whether it may be."""
    states: dict[str, tuple[bool, bool]] = {}
    files: list[Path] = []
    for folder in ("new_jobs", "started_jobs", "completed_jobs", "failed_jobs"):
        for path in _files(package / folder):
            outcome = _outcome(package, path) if folder == "started_jobs" else ""
            is_loaded = folder == "completed_jobs" or outcome == "completed"
            is_uncertain = folder == "started_jobs" and not outcome
            # What a load adds by itself, to merge for example, has no rows.
            if path.suffix not in {".exception", ".sql", ".reference"} and not path.name.startswith("_dlt"):
                files.append(path)
                states.setdefault(_file_key(path.name), (is_loaded, is_uncertain))
            elif path.suffix == ".reference":
                # A file that was brought to the staging destination is loaded by a job that refers to it.
                states[_file_key(path.name)] = is_loaded, is_uncertain
    for path in files:
        yield path, *states[_file_key(path.name)]


def _outcome(package: Path, job: Path) -> str:
    """Return what dlt has written down of a job that was ended, and not put away yet: "completed" for example."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        path = package / PackageStorage.PENDING_TRANSITIONS_FOLDER / job.name
        return str(json.loads(path.read_text(encoding="utf-8"))["state"])
    return ""


def _files(of: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (path for path in sorted(of.iterdir()) if path.is_file())


def _rows(rows: int) -> str:
    return f"{rows:,} row" if rows == 1 else f"{rows:,} rows"
