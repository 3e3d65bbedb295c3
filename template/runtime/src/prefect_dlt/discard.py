"""Put aside what is pending, so that it no longer stands in the way of new data; nothing is deleted."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dlt.common.storages import FileStorage
from dlt.common.storages.load_package import PackageStorage
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.errors import ConfigurationError, UnknownStateError
from prefect_dlt.hints import command
from prefect_dlt.pending import PendingPackage, PendingTable, package_lines, pending_packages

logger = logging.getLogger("prefect_dlt")

MANIFEST = "manifest.json"
WHOLE_FOLDERS = ("load/normalized", "normalize/extracted")
"""Where dlt keeps whole load packages, relative to the working directory, and we relative to the dated folder."""


@dataclass(frozen=True)
class Discarded:
    """What was put aside at one time.

    Attributes:
        folder: The dated folder that it is in.
        pipeline_name: The pipeline.
        packages: The load packages, the oldest first, with their folders relative to the dated folder.
        state_from: Load id of the package before which state and schemas were taken back; empty where only halves of
            packages were put aside, or the working directory was made anew.
        is_finished: Whether all of it was done.
    """

    folder: Path
    pipeline_name: str
    packages: tuple[PendingPackage, ...]
    state_from: str
    is_finished: bool

    def lines(self) -> list[str]:
        """Say what was put aside, what of it stays in the destination, and how it can be brought back."""
        count = sum(package.is_whole for package in self.packages)
        packages = "1 load package" if count == 1 else f"{count:,} load packages"
        what = packages if count else "what interrupted steps had left"
        lines = [f"Put aside in {self.folder}: {what}", *package_lines(self.packages)]
        reached = {
            package.load_id: ", ".join(table.name for table in package.tables if table.loaded or table.uncertain)
            for package in self.packages
        }
        lines += [
            f"What load package {load_id} has brought to the destination stays there, in {tables}; where the rows of a "
            f"table say which package they are of, it is those with _dlt_load_id = '{load_id}'"
            for load_id, tables in reached.items()
            if tables
        ]
        if self.state_from:
            lines.append(
                "State and schemas are again what they were before that, so that incremental resources extract those "
                "rows again"
            )
        return [*lines, f"To bring it back: {command('restore', self.pipeline_name, self.folder)}"]


def put_aside(pipeline: Pipeline, *, for_clean_folder: bool = False) -> Discarded | None:
    """Put aside all that is pending of a pipeline, and take its state and schemas back to before that.

    Load packages, and what interrupted steps have left of some, move to a dated folder beside the working directory.
    What incremental resources had noted as extracted with them is forgotten: they extract those rows again. What a
    killed process leaves undone is done by `finish_discard`. The caller holds the lock of the working directory.

    Args:
        pipeline: The pipeline.
        for_clean_folder: Whether the working directory is dropped next, so that state and schemas are restored from the
            destination anyway; then it does not matter that a package does not say what they were.

    Returns:
        What was put aside; None when nothing was pending.

    Raises:
        UnknownStateError: If the oldest load package does not say what the state was before it.
    """
    working_dir = Path(pipeline.working_dir)
    packages = pending_packages(working_dir)
    if not packages:
        return None
    oldest = next((package.load_id for package in packages if package.is_whole), "")
    if oldest and _snapshot(working_dir, working_dir, oldest) is None:
        if not for_clean_folder:
            raise UnknownStateError(pipeline.pipeline_name, str(working_dir), oldest)
        oldest = ""
    discarded = Discarded(
        _new_folder(discarded_folder(working_dir)),
        pipeline.pipeline_name,
        tuple(packages),
        oldest,
        is_finished=False,
    )
    _write_manifest(discarded)
    return _finish(pipeline, discarded)


def finish_discard(pipeline: Pipeline) -> list[Discarded]:
    """Finish what a killed process had begun to put aside; the caller holds the lock of the working directory."""
    return [_finish(pipeline, each) for each in discarded_before(Path(pipeline.working_dir)) if not each.is_finished]


def discarded_before(working_dir: Path) -> list[Discarded]:
    """Return what was put aside of a working directory and not brought back, the oldest first."""
    found: list[Discarded] = []
    for path in sorted(discarded_folder(working_dir).glob(f"*/{MANIFEST}")):
        try:
            found.append(_read_manifest(path))
        except (OSError, ValueError, LookupError, TypeError) as problem:  # noqa: PERF203 - one hides no others
            # Changed by hand, or by a later version: what lies aside is not to stand in the way of new data again.
            logger.warning("%s cannot be read, and what was put aside there is left as it is: %r", path, problem)
    return found


def discarded_folder(working_dir: Path) -> Path:
    """Return the folder with all dated folders of a working directory."""
    # Not in it, for dlt removes it with all that is in it; beside it, where deployments that keep it keep this too.
    return working_dir.with_name(f"{working_dir.name}.discarded")


def restore(pipeline: Pipeline, name: str) -> Discarded:
    """Bring back what was put aside: the next run loads it first. The caller holds the lock of the working directory.

    Args:
        pipeline: The pipeline.
        name: Name of the dated folder.

    Raises:
        ConfigurationError: If there is no such folder, or other data is pending.
    """
    working_dir = Path(pipeline.working_dir)
    known = {each.folder.name: each for each in discarded_before(working_dir)}
    if name not in known:
        choice = f"choose one of {', '.join(known)}" if known else "nothing was put aside"
        raise ConfigurationError("folder", name, choice)
    discarded = known[name]
    whole = [package for package in discarded.packages if package.is_whole]
    ours = {package.load_id for package in whole}
    others = [each.load_id for each in pending_packages(working_dir) if each.is_whole and each.load_id not in ours]
    if others:
        choice = f"load packages {', '.join(others)} are pending, so load them or put them aside first"
        raise ConfigurationError("folder", name, choice)
    for package in whole:
        path = discarded.folder / package.folder
        if path.is_dir() and package.state == "extracted":
            _add_schema(pipeline, path)
        _move(path, working_dir / package.folder)
    # Kept, so that what was done can be read later, and without the name that makes it one to bring back.
    (discarded.folder / MANIFEST).replace(discarded.folder / "restored.json")
    return discarded


def _add_schema(pipeline: Pipeline, package: Path) -> None:
    # dlt normalises with the schema of the working directory, which was taken back, and not with the package's.
    schema = PackageStorage(FileStorage(str(package.parent)), "extracted").load_schema(package.name)
    if schema.name in pipeline.schemas:
        known = pipeline.schemas[schema.name]
        known.update_schema(schema)
        pipeline.schemas.save_schema(known)


def _finish(pipeline: Pipeline, discarded: Discarded) -> Discarded:
    working_dir = Path(pipeline.working_dir)
    waiting = [package for package in discarded.packages if (working_dir / package.folder).is_dir()]
    # State first: were the packages gone before, a process killed in between would have lost their rows without a word.
    # Where none is left, the state may be of a later run by now.
    if discarded.state_from and any(package.is_whole for package in waiting):
        snapshot = _snapshot(working_dir, discarded.folder, discarded.state_from)
        if snapshot is None:
            raise UnknownStateError(discarded.pipeline_name, str(working_dir), discarded.state_from)
        pipeline.activate()
        # What dlt does when it aborts a package, but for aborting it: it would delete what it has not begun to load.
        pipeline._restore_from_snapshot(*snapshot)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    # The newest first: at any time, what is left is what was pending at some time.
    for package in reversed(waiting):
        _move(working_dir / package.folder, discarded.folder / package.folder)
    finished = Discarded(
        discarded.folder, discarded.pipeline_name, discarded.packages, discarded.state_from, is_finished=True
    )
    (discarded.folder / "README.md").write_text(_readme(finished), encoding="utf-8")
    _write_manifest(finished)
    return finished


def _snapshot(working_dir: Path, folder: Path, load_id: str) -> tuple[str | None, dict[str, str]] | None:
    """Return state and schemas from before a load package, which is in the working directory or put aside already."""
    for place in (working_dir, folder):
        for part in WHOLE_FOLDERS:
            storage = PackageStorage(FileStorage(str(place / part)), "normalized")
            if storage.can_restore_pipeline_state(load_id):
                return storage.load_pipeline_state(load_id)
    return None


def _move(source: Path, target: Path) -> None:
    """Move a folder in one go, or, to another file system, so that it can be repeated."""
    if not source.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        try:
            source.rename(target)
        except OSError:
            copy = target.with_name(f"{target.name}.part")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy, symlinks=True)
            copy.rename(target)
        else:
            return
    shutil.rmtree(source)


def _new_folder(of: Path) -> Path:
    # A name that every file system takes, and that sorts by time.
    name = f"{datetime.now(timezone.utc):%Y-%m-%dT%H-%M-%SZ}"
    for number in itertools.count(1):
        folder = of / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def _write_manifest(discarded: Discarded) -> None:
    content = {
        "pipeline_name": discarded.pipeline_name,
        "is_finished": discarded.is_finished,
        "state_from": discarded.state_from,
        "packages": [asdict(package) for package in discarded.packages],
    }
    path = discarded.folder / MANIFEST
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _read_manifest(path: Path) -> Discarded:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    packages = tuple(
        PendingPackage(
            package["load_id"],
            package["state"],
            package["folder"],
            tuple(PendingTable(**table) for table in package["tables"]),
        )
        for package in content["packages"]
    )
    return Discarded(path.parent, content["pipeline_name"], packages, content["state_from"], content["is_finished"])


def _readme(discarded: Discarded) -> str:
    first, *others = discarded.lines()
    lines = "\n".join(f"- {line}" for line in others)
    return f"""# Load packages that were put aside

{first}.

{lines}

`{MANIFEST}` says the same for programs. To bring it back by hand, with no run under way: move each folder in
`load/normalized` and `normalize/extracted` to the same place in the working directory, and run the pipeline. The
command also adds to the pipeline's schema what it no longer knows of the tables. Rows that were extracted again
meanwhile are loaded twice where a table is appended to. When nobody will want it back, delete this folder.
"""
