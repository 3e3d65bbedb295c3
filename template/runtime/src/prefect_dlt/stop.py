"""Ask the pipelines of this process to stop where nothing is lost, by the flag that all of dlt's threads look at."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing.process import BaseProcess
from typing import Any

from dlt.common.runtime import init, signals

LONGEST_NAP = 0.5
"""Seconds after which a pause looks at the flag again: whoever begins to sleep just then misses that it was raised."""

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
def guarded() -> Generator[None]:
    """Run a pipeline inside, as the guards of this process want it."""
    with contextlib.ExitStack() as stack:
        for guard in _guards:
            stack.enter_context(guard())
        yield
