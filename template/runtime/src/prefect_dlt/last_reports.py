"""Wait for the last reports of runs that end within one flow together, so that none of them holds up the next one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import TypeAlias

Wait: TypeAlias = Callable[[float], None]
"""Waits until the reports of a run have been sent, for as many seconds at most, and tells of those that have not."""

MOST_WAITING = 64
"""Runs that have ended and whose reports are not waited for yet; of more, the next one to end waits for the first."""


class _Waiting:
    """Runs of one flow that have ended, and whose reports may be under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: deque[tuple[Context, Wait, float]] = deque()

    def add(self, wait: Wait, timeout: float) -> None:
        with self._lock:
            # What it says goes to the log of the run that it is about.
            self._waits.append((copy_context(), wait, timeout))
            if len(self._waits) <= MOST_WAITING:
                return
            context, first, timeout = self._waits.popleft()
        context.run(first, timeout)

    def end(self) -> None:
        """Wait for all, as long as one of them may take."""
        with self._lock:
            waits = list(self._waits)
            self._waits.clear()
        ends = time.monotonic() + max((timeout for *_, timeout in waits), default=0.0)
        for context, wait, timeout in waits:
            context.run(wait, max(0.0, min(timeout, ends - time.monotonic())))


_waiting: ContextVar[_Waiting | None] = ContextVar("prefect_dlt_waiting", default=None)


@contextmanager
def waiting_together() -> Generator[None]:
    """Wait at the end of the block, and not before, for the reports of all runs that end inside, on its threads too.

    An API that is slower than the runs are holds them up all the same: what waits in memory stays bounded.
    """
    waiting = _Waiting()
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
        waiting.end()


def wait_for_last(wait: Wait, timeout: float) -> None:
    """Wait for the reports of a run that has ended: now, or where a flow waits for all of its runs, at its end.

    Args:
        wait: What waits.
        timeout: Longest wait, in seconds.
    """
    waiting = _waiting.get()
    if waiting is None:
        wait(timeout)
    else:
        waiting.add(wait, timeout)
