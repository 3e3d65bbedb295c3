"""One run at a time in a working directory: a lock that the operating system takes back from whoever dies."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import psutil
from fasteners import InterProcessLock  # pyright: ignore[reportMissingTypeStubs]

from prefect_dlt.errors import PipelineLockedError
from prefect_dlt.stop import pause

logger = logging.getLogger("prefect_dlt")

POLL_SECONDS = 0.1
"""Pause between two looks at a lock that is held: how soon its end, and a request to stop, are noticed."""

UNTOLD_SECONDS = 0.5
"""How long a holder that has just begun is given to say who it is."""

# A lock of the operating system is one of the whole process, so its threads are told apart here. The guard is held
# while a lock file is opened and closed besides: closing it anywhere in the process would give up the lock.
_guard = threading.Lock()
_held: dict[str, _Holder] = {}


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock.

    Attributes:
        host: The machine.
        pid: The process.
        started: When the process started, in seconds since 1970; tells it from a later one with the same id.
        thread: The thread, by its ident.
        program: Name of its program.
        run: Name of the flow run; empty where there is none.
        since: When it took the lock, in UTC.
    """

    host: str
    pid: int
    started: float
    thread: int
    program: str
    run: str
    since: str

    @classmethod
    def here(cls, run: str) -> _Holder:
        # Not the arguments: they may hold what nobody else is to read.
        program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else Path(sys.executable).name
        return cls(
            socket.gethostname(),
            os.getpid(),
            psutil.Process().create_time(),
            threading.get_ident(),
            program,
            run,
            f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC",
        )

    @property
    def may_live(self) -> bool:
        """Whether its process is there; of another machine nobody knows."""
        if self.host != socket.gethostname():
            return True
        with suppress(psutil.Error):
            return psutil.Process(self.pid).create_time() == self.started
        return False

    def __str__(self) -> str:
        flow_run = f" for flow run {self.run!r}" if self.run else ""
        return f"process {self.pid} ({self.program}) on {self.host}{flow_run}, since {self.since}"


@contextmanager
def one_run_at_a_time(
    working_dir: str, *, timeout: float = 0.0, run: str = "", say: Callable[[str], None] = logger.info
) -> Generator[float]:
    """Keep the working directory of a pipeline to what happens inside, and yield how long it had to be waited for.

    Other processes of this machine and other threads of this process are kept out, as far as they ask for the lock as
    well. A dead process holds no lock, and neither does one that was forked from the holder.

    Args:
        working_dir: The working directory.
        timeout: How long to wait for another run to end, in seconds.
        run: Name of the flow run, which others are told that find the lock held.
        say: Is told when there is something to wait for.

    Yields:
        Seconds that were waited.

    Raises:
        PipelineLockedError: If another run holds the lock, and has not given it up in time; at once when it is a run
            that this one is a part of.
    """
    # The directory may be reached by several names.
    folder = Path(os.path.realpath(working_dir))
    # Beside it, for dlt removes the directory with all that is in it. A file, for dlt takes a folder for a pipeline.
    lock = InterProcessLock(folder.with_name(f".{folder.name}.lock"))
    waited = _wait(folder, lock, timeout, run, say)
    try:
        yield waited
    finally:
        _give_up(folder, lock)


def _wait(folder: Path, lock: InterProcessLock, timeout: float, run: str, say: Callable[[str], None]) -> float:
    began = time.monotonic()
    if _take(folder, lock, run):
        return 0.0
    is_told = False
    while not _take(folder, lock, run):
        waited = time.monotonic() - began
        holder = _holder_of(folder)
        is_part = holder is not None and (holder.pid, holder.thread) == (os.getpid(), threading.get_ident())
        # A holder that has only just taken the lock is about to write down who it is.
        patience = UNTOLD_SECONDS if holder is None else 0.0
        if is_part or waited >= max(timeout, patience):
            raise PipelineLockedError(folder.name, str(folder), str(holder or "another process"), timeout, is_part)
        if holder is not None and not is_told:
            say(f"Pipeline {folder.name!r} waits at most {timeout:g} s for {holder}")
            is_told = True
        pause(POLL_SECONDS)
    return time.monotonic() - began


def _take(folder: Path, lock: InterProcessLock, run: str) -> bool:
    with _guard:
        if str(folder) in _held:
            return False
        try:
            is_taken = lock.acquire(blocking=False)
        except (OSError, RuntimeError) as error:  # RuntimeError is what the library makes of an OSError
            # Some file systems have no locks. Not to load at all would be worse there than what a lock is against.
            logger.warning("Two runs at a time in %s cannot be kept apart: %s", folder, error)
            is_taken = True
        if is_taken:
            _held[str(folder)] = holder = _Holder.here(run)
            _write_down(folder, holder)
        elif lock.lockfile is not None:
            lock.lockfile.close()
        return is_taken


def _give_up(folder: Path, lock: InterProcessLock) -> None:
    with _guard:
        if str(folder) not in _held:
            # In a child that was forked while the lock was held: it is the parent's.
            return
        with suppress(OSError):
            _description(folder).unlink()
        # The lock file itself stays: whoever has opened it would otherwise lock a file that others no longer find.
        if lock.acquired:
            lock.release()
        del _held[str(folder)]


def _description(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock.json")


def _write_down(folder: Path, holder: _Holder) -> None:
    path = _description(folder)
    # One name for all: only the holder of the lock writes.
    unfinished = path.with_suffix(".tmp")
    try:
        unfinished.write_text(json.dumps(asdict(holder)), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        logger.debug("%s could not be written (%s)", path, error)


def _holder_of(folder: Path) -> _Holder | None:
    """Return who holds the lock; None when that is not known, or what is written down is a dead process's."""
    with suppress(OSError, ValueError, TypeError):
        holder = _Holder(**json.loads(_description(folder).read_text(encoding="utf-8")))
        return holder if holder.may_live else None
    return None


def _forget() -> None:
    """In a forked child: it holds none of its parent's locks, and another thread of the parent's may hold the guard."""
    global _guard  # noqa: PLW0603 - a lock that was held while the process was forked stays held in the child
    _guard = threading.Lock()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
