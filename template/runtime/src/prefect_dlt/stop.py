"""Ask the pipelines of this process to stop where nothing is lost, by the flag that all of dlt's threads look at."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing.process import BaseProcess
from typing import Any

from dlt.common.runtime import init, signals

LONGEST_NAP = 0.5
"""Seconds after which a pause looks at the flag again: whoever begins to sleep just then misses that it was raised."""

_under_way: Counter[str] = Counter()
"""Working directories of the pipelines that runners run now, in this process."""

_counting = threading.Lock()

_stopped_for: list[str] = []
"""Why pipelines are asked to stop, where it is not this process that is to end."""

_guards: list[Callable[[], AbstractContextManager[None]]] = []


@contextlib.contextmanager
def stopping(signal_number: int) -> Generator[None]:
    """Ask all pipelines of this process to stop, until the block ends; whoever asks waits for them inside.

    Extract ends with the next item, normalize at once, load when the jobs that run have ended, and a pause between two
    attempts at once. Pipelines then raise dlt's `SignalReceivedException`, and keep what they have. dlt does the same
    by itself for a pipeline on the main thread.

    Args:
        signal_number: What the process was asked with, `signal.SIGTERM` for example.
    """
    signals.set_received_signal(signal_number)
    signals.wake_all()
    end_normalize_workers()
    yield
    # Where the wait was broken off, by a second Ctrl-C, they are still to stop.
    signals.set_received_signal(0)


@contextlib.contextmanager
def stopping_for(reason: str, working_dirs: Collection[str]) -> Generator[bool]:
    """Ask the pipelines in these working directories to stop, until the block ends; whoever asks waits for them inside.

    dlt knows one flag for all pipelines of a process, so that nobody is asked when other pipelines run as well.

    Args:
        reason: Why.
        working_dirs: Where the pipelines work that may be stopped.

    Yields:
        Whether they are asked.
    """
    with _counting:
        are_alone = {each for each, runs in _under_way.items() if runs} <= set(working_dirs)
        ask = are_alone and not is_asked_to_stop()
        if ask:
            _stopped_for.append(reason)
    if not ask:
        yield False
        return
    try:
        with stopping(signal.SIGTERM):
            yield True
    finally:
        _stopped_for.clear()


@contextlib.contextmanager
def stopping_all_for(reason: str) -> Generator[None]:
    """Ask all pipelines of this process to stop, until the last block of this kind ends; the process itself goes on.

    Args:
        reason: Why.
    """
    with _counting:
        _stopped_for.append(reason)
    signals.set_received_signal(signal.SIGTERM)
    signals.wake_all()
    end_normalize_workers()
    try:
        yield
    finally:
        with _counting:
            _stopped_for.remove(reason)
            if not _stopped_for:
                signals.set_received_signal(0)


def stopped_for() -> str | None:
    """Return why the pipelines of this process are asked to stop, where the process itself is not."""
    return next(iter(_stopped_for), None)


def is_asked_to_stop() -> bool:
    """Tell whether the pipelines of this process are asked to stop."""
    return signals.was_signal_received()


def stop_request() -> BaseException:
    """Return what a pipeline raises that was asked to stop."""
    return signals.exception_for_signal()


def pause(seconds: float) -> None:
    """Wait, but no longer than until the pipelines of this process are asked to stop.

    Args:
        seconds: How long.

    Raises:
        SignalReceivedException: dlt's, when they are.
    """
    ends_at = time.monotonic() + seconds
    while not signals.was_signal_received() and (left := ends_at - time.monotonic()) > 0:
        signals.sleep(min(left, LONGEST_NAP))
    signals.raise_if_signalled()


def raise_if_asked_to_stop() -> None:
    """End a normalize step between two batches of rows, where dlt itself looks at the flag after the last one only.

    Raises:
        SignalReceivedException: dlt's, when pipelines are asked to stop.
    """
    if signals.was_signal_received():
        end_normalize_workers()
        signals.raise_if_signalled()


def end_normalize_workers() -> None:
    """End the processes that dlt normalises in: it would wait for them, and what they wrote is written anew anyway."""
    # dlt keeps its pools to itself.
    for pool in [each for each in gc.get_objects() if type(each) is ProcessPoolExecutor]:
        if getattr(pool, "_initializer", None) is init.restore_run_context:
            for worker in processes_of(pool):
                worker.kill()


def processes_of(pool: Any) -> tuple[BaseProcess, ...]:
    """Return the processes of a `ProcessPoolExecutor`; none where it does not tell."""
    # Python 3.14 is the first to end them by itself, and no version names them.
    processes: dict[int, BaseProcess] = getattr(pool, "_processes", None) or {}
    return tuple(processes.values())


def end(pool: ProcessPoolExecutor | None) -> None:
    """Terminate the processes of a pool, and wait until they have ended.

    What a task that was terminated raises ends the thread that ends the pool's processes, where a callback lets it
    through, as Prefect's do. Processes that are left then wait for work for ever, and this one waits for them when it
    ends.
    """
    if pool is None:
        return
    processes, work = processes_of(pool), getattr(pool, "_call_queue", None)
    pool.shutdown(wait=False, cancel_futures=True)
    # What waits for a process already cannot be cancelled, and would be begun by the first that is free.
    with contextlib.suppress(queue.Empty, ValueError, OSError, AttributeError):
        while True:
            work.get_nowait()  # type: ignore[union-attr]
    for process in processes:
        process.terminate()
    for process in processes:
        if process.is_alive():
            # As the thread would have told one of them, whichever is next. They end what they are at first.
            with contextlib.suppress(ValueError, OSError, AttributeError):
                work.put(None)  # type: ignore[union-attr]
    for process in processes:
        process.join()


def end_this_process(after: float) -> None:
    """End this process, one of a pool, some seconds from now, unless it has ended by then.

    An idle process that is terminated takes the lock along that all take work under; the others would wait for it, and
    for them the pool.
    """
    timer = threading.Timer(after, os._exit, (128 + signal.SIGTERM,))
    timer.daemon = True
    timer.start()


def guard_runs(guard: Callable[[], AbstractContextManager[None]]) -> None:
    """Have every run of a runner, from now on and in the whole process, inside of what this returns.

    Args:
        guard: Is called on the thread that runs the pipeline.
    """
    if guard not in _guards:
        _guards.append(guard)


@contextlib.contextmanager
def guarded(working_dir: str) -> Generator[None]:
    """Run the pipeline that works in a folder inside, as the guards of this process want it."""
    with contextlib.ExitStack() as stack:
        with _counting:
            _under_way[working_dir] += 1
        stack.callback(_ended, working_dir)
        for guard in _guards:
            stack.enter_context(guard())
        yield


def _ended(working_dir: str) -> None:
    with _counting:
        _under_way[working_dir] -= 1
        if not _under_way[working_dir]:
            del _under_way[working_dir]
