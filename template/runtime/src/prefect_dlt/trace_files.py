"""Attempts that are not stored yet, as JSON files in the working directory."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefect_dlt.trace_tables import Record, checked_record

logger = logging.getLogger("prefect_dlt")

MOST_FILES = 1_000
"""Files that are kept of one pipeline; the oldest go first."""

_ENDING = "_trace.json"


def folder_of(working_dir: str | Path) -> Path:
    """Return where the files of the pipeline with this working directory are."""
    return Path(working_dir) / "traces"


def write(folder: Path, record: Record) -> Path:
    """Keep an attempt as a file that only its owner reads, whole or not at all; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['transaction_id']}_attempt_{record['attempt']}{_ENDING}"
    unfinished = path.with_suffix(".tmp")
    with suppress(FileNotFoundError):
        unfinished.unlink()
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - it is open already
        json.dump(record, file)
    unfinished.replace(path)
    # Of half a file and of one that was set aside as well, there are not more.
    for old in _oldest_first(folder, "*")[:-MOST_FILES]:
        with suppress(OSError):
            old.unlink()
    return path


def waiting(folder: Path) -> list[Path]:
    """Return the files that wait to be stored, oldest first."""
    return _oldest_first(folder, f"*{_ENDING}")


def read(path: Path) -> Record:
    """Read a file.

    Raises:
        ValueError: If it holds no attempt, or half of one.
        OSError: If it cannot be read.
    """
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    return checked_record(content)


def set_aside(path: Path) -> Path:
    """Rename a file that cannot be read, so that it is not looked at again; return its new path."""
    return path.replace(path.with_suffix(".json.unreadable"))


def remove(path: Path) -> None:
    """Remove a file whose content is stored, and the folder with the last one."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()


@contextmanager
def moved_through(working_dir: str) -> Generator[None]:
    """Keep the files while dlt may empty the working directory, and have them back there in the end.

    dlt does so for a clean folder, and in the first run of a new process when the dataset of earlier runs is gone.
    """
    folder = folder_of(working_dir)
    # Beside the working directory. A process that is killed leaves it there, for the next attempt to bring back.
    aside = Path(working_dir).with_name(f".{Path(working_dir).name}.traces")
    _move(folder, aside)
    try:
        yield
    finally:
        _move(aside, folder)


def _move(source: Path, target: Path) -> None:
    if not source.is_dir():
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            path.replace(target / path.name)
        source.rmdir()
    except OSError as error:
        logger.warning("Traces that are not stored yet stay in %s (%s)", source, error)


def _oldest_first(folder: Path, pattern: str) -> list[Path]:
    found: list[tuple[int, str, Path]] = []
    for path in folder.glob(pattern):
        # Another process may remove it in between.
        with suppress(OSError):
            found.append((path.stat().st_mtime_ns, path.name, path))
    return [path for _, _, path in sorted(found)]
