"""How many rows the files of a load package have: what was normalised, whichever process did so."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from dlt.common.pipeline import NormalizeInfo
from dlt.common.storages import FileStorage
from dlt.common.storages.load_package import LoadPackageInfo

CHUNK = 1 << 20
"""Bytes that are read of a file at a time."""

FOLLOW_UPS = ("sql", "reference")
"""Formats of the jobs that dlt adds while it loads; their rows are those of other jobs."""

METERED = ("jsonl", "insert_values", "parquet")
"""Formats of which dlt's own counts are right. Of CSV it counts fields instead of rows, of models the models."""

GONE = "its job files are removed after the load (load.delete_completed_jobs)"
UNKNOWN = "rows in {} files cannot be counted"


def normalized_rows(
    package: LoadPackageInfo, loaded: Iterable[str], metered: Mapping[str, int], *, breaks_are_escaped: bool
) -> dict[str, int | str]:
    """Return the rows of each table of a package that was loaded; why they are not known where they are not.

    The files are counted rather than dlt's metrics read: these are not known to another process than the one that
    normalised, and wrong for CSV, for models, and for files that were imported. For Parquet that reads a few bytes.

    Args:
        package: The package.
        loaded: Ids of the jobs that were loaded, whether their files are still there or not.
        metered: Rows by job, as `metered_rows` returns them; they stand in for files that are gone.
        breaks_are_escaped: Whether the destination writes line breaks in INSERT statements as something else.
    """
    rows: dict[str, int | str] = {}
    files = {job.job_file_info.job_id(): job for of_state in package.jobs.values() for job in of_state}
    for job_id in dict.fromkeys([*files, *loaded]):
        table = job_id.partition(".")[0]
        if _format(job_id) in FOLLOW_UPS:
            continue
        # Of imported files dlt counts nothing, so nothing is not known to be nothing.
        counted: int | str = metered.get(job_id) or GONE
        if (job := files.get(job_id)) is not None:
            columns = package.schema.tables.get(table, {}).get("columns", {})
            path, kind = Path(job.file_path), job.job_file_info.file_format
            found = _rows(path, kind, columns, breaks_are_escaped=breaks_are_escaped)
            counted = found if found is not None else metered.get(job_id) or UNKNOWN.format(kind)
        before = rows.get(table, 0)
        if isinstance(before, int):
            # One file that cannot be counted makes the sum unknown.
            rows[table] = before + counted if isinstance(counted, int) else counted
    return rows


def metered_rows(infos: Iterable[NormalizeInfo], load_id: str) -> dict[str, int]:
    """Return the rows of each job of a package as dlt counted them, where it counts rows."""
    metrics = (each for info in infos for each in info.metrics.get(load_id, ()))
    files = (item for of in metrics for item in of["job_metrics"].items())
    return {job_id: count.items_count for job_id, count in files if _format(job_id) in METERED}


def _format(job_id: str) -> str:
    """Return the format of a job from its id: table, file, format, and maybe how it is compressed."""
    return job_id.split(".")[2]


def _rows(path: Path, file_format: str, columns: Mapping[str, object], *, breaks_are_escaped: bool) -> int | None:
    """Return the rows of a file; None where they cannot be counted."""
    if file_format == "parquet":
        # As lazily as dlt does: it takes a second, and is there where Parquet is.
        parquet: Any = importlib.import_module("pyarrow.parquet")
        return int(parquet.read_metadata(path).num_rows)
    if path.stat().st_size == 0:
        return 0
    if file_format not in ("jsonl", "csv", "insert_values"):
        return None
    if file_format == "insert_values" and not breaks_are_escaped:
        return None
    with FileStorage.open_zipsafe_ro(str(path), "rb") as stream:
        if file_format == "jsonl":
            return _lines(stream)
        return _csv_rows(stream, columns) if file_format == "csv" else _inserted_rows(stream)


def _lines(stream: IO[bytes]) -> int:
    count, last = 0, b"\n"
    for chunk in _chunks(stream):
        count, last = count + chunk.count(b"\n"), chunk[-1:]
    return count + (last != b"\n")


def _csv_rows(stream: IO[bytes], columns: Mapping[str, object]) -> int | None:
    first = stream.readline()
    names = re.split(rb"[,;|\t]", first.rstrip(b"\r\n"))
    is_header = all(name.strip(b'"').decode(errors="replace") in columns for name in names)
    stream.seek(0)
    count, quotes, last = 0, 0, b"\n"
    for chunk in _chunks(stream):
        # Between an odd quote and the next even one a line break is part of a text. A doubled quote is two.
        parts = chunk.split(b'"')
        count += sum(part.count(b"\n") for part in parts[quotes % 2 :: 2])
        quotes += len(parts) - 1
        last = chunk[-1:]
    return None if quotes % 2 else count + (last != b"\n") - is_header


def _inserted_rows(stream: IO[bytes]) -> int:
    stream.readline()
    has_values_line = stream.readline().strip() == b"VALUES"
    stream.seek(0)
    count, last = 0, b""
    for chunk in _chunks(stream):
        count, last = count + chunk.count(b"\n"), chunk[-1:]
    # dlt ends the statement only when it has rows; between two rows is one line break, and one behind each header.
    return count - has_values_line if last == b";" else 0


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk
