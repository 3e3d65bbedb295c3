"""Parts on threads show no progress of stages that are over at once; failures, and pipelines by themselves, do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline
from prefect import flow

from prefect_dlt import PrefectCollector, create_run_pipeline_flow
from prefect_dlt.brief_stages import are_brief_stages_left_out, brief_stages_left_out
from prefect_dlt.errors import ComponentsFailedError
from prefect_dlt.publisher import Publisher
from tests.runtime.sources import shop

pytestmark = pytest.mark.usefixtures("prefect_api")

STAGES = ("extract", "normalize", "load")


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the publisher send nothing by itself; return keys of artifacts that would be sent in the end."""
    keys: list[str] = []

    def note(_publisher: Publisher, place: Any, _draft: Any, live: bool = False) -> None:
        keys.append(place.key)

    def withdraw(_publisher: Publisher, place: Any) -> bool:
        keys.remove(place.key)
        return True

    monkeypatch.setattr(Publisher, "put", note)
    monkeypatch.setattr(Publisher, "withdraw", withdraw)
    return keys


def test_it_is_so_inside_and_not_afterwards() -> None:
    with brief_stages_left_out():
        assert are_brief_stages_left_out()
    assert not are_brief_stages_left_out()


def test_parts_on_threads_have_reports_of_brief_stages_and_no_progress(
    pipeline: Callable[..., Pipeline], put: list[str]
) -> None:
    create_run_pipeline_flow(pipeline, shop, decompose="parallel")()

    assert {f"shop--orders-{stage}-report" for stage in STAGES} < set(put)
    assert [key for key in put if key.endswith(STAGES)] == []


@pytest.mark.parametrize("mode", ["none", "sequential"])
def test_one_pipeline_at_a_time_shows_all_stages(pipeline: Callable[..., Pipeline], put: list[str], mode: Any) -> None:
    create_run_pipeline_flow(pipeline, shop, decompose=mode)()

    assert {f"shop-{stage}" for stage in STAGES} < set(put)


def test_a_stage_that_failed_is_shown(pipeline: Callable[..., Pipeline], put: list[str]) -> None:
    @dlt.source(name="breaking")
    def breaking() -> Any:
        def read() -> Iterator[Any]:
            raise ConnectionError("no line")
            yield

        return [dlt.resource(read, name="good"), dlt.resource(read, name="bad")]

    with pytest.raises(ComponentsFailedError):
        create_run_pipeline_flow(pipeline, breaking, decompose="parallel")()

    assert {"shop--good-extract", "shop--bad-extract"} < set(put)


@pytest.mark.parametrize("inside", [brief_stages_left_out, nullcontext])
def test_progress_that_was_sent_goes_on(
    pipeline: Callable[..., Pipeline], put: list[str], monkeypatch: pytest.MonkeyPatch, inside: Any
) -> None:
    monkeypatch.setattr(Publisher, "withdraw", lambda *_: False)

    @flow
    def load() -> None:
        with inside():
            pipeline(progress=PrefectCollector()).run([{"id": 1}], table_name="rows")

    load()

    assert put.count("shop-load") >= 2
