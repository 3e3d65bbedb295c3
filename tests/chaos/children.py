"""Processes that are forked and killed, and one at a time what they did."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

T = TypeVar("T")

BEGIN = "-- a process begins --\n"


def fork(act: Callable[[], object], log: Path, environment: dict[str, str] | None = None) -> int:
    """Start a process that does something and ends; return its id.

    Args:
        act: What it does.
        log: Where it writes what it prints, and the error that ended it; its folder is the current one.
        environment: What is set in its environment.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if (child := os.fork()) != 0:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.write(output, BEGIN.encode())
        os.chdir(log.parent)
        os.environ.update(environment or {})
        act()
        code = 0
    except BaseException:  # noqa: BLE001 - a child never returns to where it was forked
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # Not exit(): what the parent has registered for its own end must not happen in a child.
        os._exit(code)


def wait(child: int, limit: float) -> int | None:
    """Wait for a process; return its exit code, minus the signal that ended it, or None where it had to be killed.

    Args:
        child: The process.
        limit: How long to wait, in seconds.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    kill(child)
    return None


def kill(child: int) -> int:
    """Kill a process that was not waited for; return how it ended, as `wait` does."""
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def share_out(items: Sequence[T], work: Callable[[T], dict[str, Any]], workers: int, folder: Path) -> Iterator[Any]:
    """Do something with each item in a few processes at a time; yield what is returned, as it comes.

    The processes have one thread each, so that they can fork.

    Args:
        items: The items.
        work: What is done with each; what it returns goes through JSON.
        workers: How many processes there are.
        folder: Where they write.
    """
    logs = [folder / f"worker-{number}.log" for number in range(workers)]
    outputs = [folder / f"worker-{number}.jsonl" for number in range(workers)]

    def work_off(number: int) -> None:
        with outputs[number].open("a", encoding="utf-8") as output:
            for item in items[number::workers]:
                output.write(json.dumps(work(item)) + "\n")
                output.flush()

    for output in outputs:
        output.write_bytes(b"")
    running = {fork(lambda number=number: work_off(number), logs[number]): number for number in range(workers)}
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(output.open(encoding="utf-8")) for output in outputs]
        while running:
            for child in list(running):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended and status:
                    raise SystemExit(logs[running[child]].read_text(encoding="utf-8"))
                if ended:
                    del running[child]
            for reader in readers:
                yield from map(json.loads, whole_lines(reader))
            time.sleep(0.05)


def whole_lines(reader: TextIO) -> Iterator[str]:
    """Yield the lines that were written since the last time, but not the beginning of one."""
    position = reader.tell()
    while (line := reader.readline()).endswith("\n"):
        position = reader.tell()
        yield line
    reader.seek(position)


def warm_up(act: Callable[[], object], folder: Path, environment: dict[str, str]) -> None:
    """Import all that something needs, which a child finds out by doing it: no thread is started here."""
    names = folder / "modules.json"

    def scout() -> None:
        before = set(sys.modules)
        act()
        names.write_text(json.dumps(sorted(set(sys.modules) - before)), encoding="utf-8")

    log = folder / "warm-up.log"
    if wait(fork(scout, log, environment), 120) != 0:
        raise SystemExit(log.read_text(encoding="utf-8"))
    import_all(json.loads(names.read_text(encoding="utf-8")))


def import_all(names: Iterable[str]) -> None:
    """Import modules; some exist in a running program only, and some are not meant for this platform."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
