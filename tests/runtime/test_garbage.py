"""Python looks for garbage less often while a pipeline runs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import runner
from prefect_dlt.garbage import BETWEEN, seldom_collected

OWN = (700, 10, 10)


@pytest.fixture(autouse=True)
def _own_pace() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*OWN)
    yield
    gc.set_threshold(*before)


def noting(seen: list[tuple[int, int, int]]) -> Any:
    def rows() -> Iterator[dict[str, int]]:
        seen.append(gc.get_threshold())
        yield {"id": 1}

    return dlt.resource(rows, name="orders")


def test_a_run_has_another_pace_and_gives_it_back(pipeline: Callable[..., Pipeline]) -> None:
    seen: list[tuple[int, int, int]] = []

    runner(pipeline()).run(noting(seen))

    assert seen == [(BETWEEN, 10, 10)]
    assert gc.get_threshold() == OWN


def test_a_run_that_fails_gives_it_back_too(pipeline: Callable[..., Pipeline]) -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"id": 1}
        raise ValueError("out of luck")

    with pytest.raises(Exception, match="out of luck"):
        runner(pipeline()).run(dlt.resource(rows, name="orders"))

    assert gc.get_threshold() == OWN


def test_the_last_of_several_runs_gives_it_back() -> None:
    outer, inner = seldom_collected(), seldom_collected()
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert gc.get_threshold()[0] == BETWEEN
    inner.__exit__(None, None, None)
    assert gc.get_threshold() == OWN


@pytest.mark.parametrize("pace", [(0, 10, 10), (BETWEEN, 5, 5), (50_000, 20, 20)], ids=["never", "same", "slower"])
def test_a_process_that_has_set_a_pace_keeps_it(pipeline: Callable[..., Pipeline], pace: tuple[int, int, int]) -> None:
    gc.set_threshold(*pace)
    seen: list[tuple[int, int, int]] = []

    runner(pipeline()).run(noting(seen))

    assert seen == [pace]
    assert gc.get_threshold() == pace


def test_what_is_set_meanwhile_stays() -> None:
    with seldom_collected():
        gc.set_threshold(5_000, 7, 7)

    assert gc.get_threshold() == (5_000, 7, 7)
