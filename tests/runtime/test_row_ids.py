"""Pipelines on threads draw the random ids of their rows from a buffer."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dlt
import pytest
from dlt.common.normalizers import utils
from dlt.common.normalizers.utils import generate_dlt_id
from dlt.pipeline.pipeline import Pipeline
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_dlt import create_run_pipeline_flow
from prefect_dlt.row_ids import buffered_row_ids

ROWS = 500


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many bytes were asked of the operating system, each time."""
    asked: list[int] = []
    token_bytes = secrets.token_bytes

    def noted(count: int | None = None) -> bytes:
        asked.append(count or 0)
        return token_bytes(count)

    monkeypatch.setattr(secrets, "token_bytes", noted)
    return asked


def draw(_number: int) -> str:
    return generate_dlt_id()


def test_the_bytes_of_many_rows_are_fetched_at_once(fetched: list[int]) -> None:
    with buffered_row_ids(), ThreadPoolExecutor(2) as threads:
        list(threads.map(draw, range(10_000)))
        assert 0 < len(fetched) <= 4


def test_no_id_is_drawn_twice_and_all_look_as_before() -> None:
    before = generate_dlt_id()
    with buffered_row_ids(), ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(draw, range(50_000)))

    assert len(set(drawn)) == len(drawn)
    assert {len(each) for each in drawn} == {len(before)}


def test_an_id_longer_than_the_buffer_is_drawn_whole() -> None:
    with buffered_row_ids():
        draw_long: Callable[[int], str] = getattr(utils, "uniq_id_base64")  # noqa: B009 - dlt does not export it
        assert len(draw_long(90_000)) == 120_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_draws_others() -> None:
    with buffered_row_ids():
        generate_dlt_id()
        reading, writing = os.pipe()
        if not (child := os.fork()):
            os.write(writing, generate_dlt_id().encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        with os.fdopen(reading) as told:
            assert told.read() != generate_dlt_id()


def test_the_last_to_leave_gives_dlt_its_own_back(fetched: list[int]) -> None:
    outer, inner = buffered_row_ids(), buffered_row_ids()
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    generate_dlt_id()
    assert all(count > ROWS for count in fetched)

    inner.__exit__(None, None, None)
    fetched.clear()
    generate_dlt_id()
    assert fetched == [utils.DLT_ID_LENGTH_BYTES]


@pytest.mark.usefixtures("prefect_api")
def test_parts_on_threads_draw_from_it_and_nobody_else_later(
    pipeline: Callable[..., Pipeline], fetched: list[int]
) -> None:
    @dlt.source(name="shop")
    def shop() -> Any:
        return [dlt.resource([{"id": number} for number in range(ROWS)], name=name) for name in ("orders", "users")]

    runner: Any = ThreadPoolTaskRunner
    load = create_run_pipeline_flow(pipeline(), shop, decompose="parallel", task_runner=runner(max_workers=2))
    load()
    assert fetched.count(utils.DLT_ID_LENGTH_BYTES) < ROWS

    fetched.clear()
    load = create_run_pipeline_flow(pipeline(), shop, decompose="none")
    load()
    assert fetched.count(utils.DLT_ID_LENGTH_BYTES) >= 2 * ROWS
