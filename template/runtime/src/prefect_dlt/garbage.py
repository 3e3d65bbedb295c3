"""Let Python look for garbage less often while pipelines run: little of what rows allocate is any."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager

from prefect_dlt.while_in_use import WhileInUse

BETWEEN = 10_000
"""Objects that are made, less those that are gone, before Python looks for garbage among them; 700 in Python 3.11."""


def seldom_collected() -> AbstractContextManager[None]:
    """Look for garbage once for 10,000 new objects inside, where the process has not said otherwise.

    A page of rows is thousands of objects that live for a moment, and none of them refers to itself. With Python's own
    pace a quarter of a load was spent on looking for those that do, in all that is alive: 60,000 nested orders into
    DuckDB took 9.5 s of CPU, and 7.9 s with this one, in as much memory (dlt 1.31, Python 3.11). The pace is that of
    the whole process; what the process has set itself is left alone, here and afterwards.
    """
    return _in_use.used()


def _change() -> Callable[[], None]:
    before = gc.get_threshold()
    # Zero says never.
    if not 0 < before[0] < BETWEEN:
        return lambda: None
    changed = (BETWEEN, *before[1:])
    gc.set_threshold(*changed)

    def take_back() -> None:
        if gc.get_threshold() == changed:
            gc.set_threshold(*before)

    return take_back


_in_use = WhileInUse(_change)
