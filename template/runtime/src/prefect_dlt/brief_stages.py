"""Leave out the progress of stages that are over at once, where many pipelines run together."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_left_out: ContextVar[bool] = ContextVar("prefect_dlt_brief_stages_left_out", default=False)


@contextmanager
def brief_stages_left_out() -> Generator[None]:
    """Have pipelines inside show no progress of a stage that ends before any of it was sent.

    Of hundreds of parts nobody could see it, their stages' reports say more, and each artifact takes Prefect's server
    some 10 ms. For threads that are given the context of this one.
    """
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


def are_brief_stages_left_out() -> bool:
    """Tell whether this runs inside of such a block."""
    return _left_out.get()
