"""Runs that are killed at a chosen moment, in a child of the test's own process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest


def dies(
    patch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool = True, when: Callable[..., bool] | None = None
) -> None:
    """Have a function end its process as kill -9 does, before or after it has done its work.

    Args:
        patch: Puts the function in place.
        owner: The class or module of the function.
        name: The function.
        after: Whether it does its work first.
        when: Which calls end the process, by their arguments; all by default.
    """
    original = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        ends = when is None or when(*args, **kwargs)
        result = original(*args, **kwargs) if after or not ends else None
        if ends:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    patch.setattr(owner, name, dying)


def killed(run: Callable[[pytest.MonkeyPatch], Any]) -> None:
    """Call a function in a child, which has to be killed before it returns."""

    # A database that nobody uses any more has threads in this process only; thrown away in a child, it ends that.
    gc.collect()

    def child() -> None:
        gc.freeze()
        with pytest.MonkeyPatch.context() as patch:
            run(patch)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, process.exitcode
