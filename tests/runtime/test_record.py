"""What is known of a run: stages, tables, attempts, and what each stage wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.common.destination.exceptions import DestinationTerminalException, DestinationTransientException
from dlt.common.pipeline import ExtractInfo, LoadInfo, NormalizeInfo
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline
from dlt.pipeline.trace import PipelineStepTrace, PipelineTrace

from prefect_dlt.record import RunRecord
from prefect_dlt.steps import extracted, jobs, normalized
from tests.runtime.reports import empty_record, finished, new_table, recorded
from tests.runtime.sources import shop


@pytest.fixture(autouse=True)
def _one_try_per_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAD__RAISE_ON_MAX_RETRIES", "1")  # dlt's own retries of a job take seconds


def test_time_spent_on_tables_is_part_of_the_time_of_the_run(pipeline: Callable[..., Pipeline]) -> None:
    shop_pipeline = pipeline()

    record = recorded(shop_pipeline, lambda: shop_pipeline.run([{"id": 1}], table_name="orders"))

    assert 0.0 < sum(table.seconds for table in record.tables()) <= record.seconds


def test_a_named_destination_is_told_with_its_type(tmp_path: Path) -> None:
    warehouse = dlt.destinations.duckdb(str(tmp_path / "shop.duckdb"), destination_name="warehouse")

    record = RunRecord.of(dlt.pipeline("shop", destination=warehouse, pipelines_dir=str(tmp_path)), {})

    assert record.destination == "warehouse (duckdb)"


def test_rows_are_counted_once_however_often_the_load_is_tried(pipeline: Callable[..., Pipeline]) -> None:
    calls = iter([DestinationTransientException("busy"), DestinationTransientException("busy"), None])

    @dlt.destination(batch_size=0, name="sink")
    def sink(_items: Any, _table: Any) -> None:
        if error := next(calls, None):
            raise error

    shop_pipeline = pipeline()
    record = recorded(
        shop_pipeline,
        lambda: shop_pipeline.run([{"id": 1}, {"id": 2}], table_name="orders", destination=sink),
        shop_pipeline.load,
        shop_pipeline.load,
    )

    assert record.error is None
    assert [(table.name, table.rows) for table in record.tables()] == [("orders", 2)]
    assert sum(table.seconds for table in record.tables()) <= record.seconds
    assert (record.attempts, record.attempts_failed) == (3, 2)
    assert [(row.name, row.state, row.tries) for row in record.stages()] == [
        ("extract", "done", 1),
        ("normalize", "done", 1),
        ("load", "done", 3),
    ]


def test_steps_of_an_earlier_run_are_not_told_again(pipeline: Callable[..., Pipeline]) -> None:
    shop_pipeline = pipeline()
    shop_pipeline.run([{"id": 1}], table_name="orders")

    record = RunRecord.of(shop_pipeline, {})
    record.add_trace(shop_pipeline.last_trace)

    assert record.stages() == []
    assert record.tables() == []


def test_of_a_step_that_is_repeated_the_last_word_counts(pipeline: Callable[..., Pipeline]) -> None:
    shop_pipeline = pipeline()
    shop_pipeline.run([{"id": 1}, {"id": 2}], table_name="orders")
    trace = shop_pipeline.last_trace
    complete = next(step for step in trace.steps if step.step == "normalize")
    info = complete.step_info
    assert info is not None
    ((load_id, (metrics,)),) = info.metrics.items()
    half_way = {"orders": metrics["table_metrics"]["orders"]._replace(items_count=1)}
    partial = complete._replace(
        span_id="first",
        step_info=info._replace(metrics={load_id: [{**metrics, "table_metrics": half_way}]}),
        step_exception="broke",
    )
    record = empty_record()
    record.started_at -= timedelta(hours=1)

    record.add_trace(PipelineTrace(*trace._replace(steps=[PipelineStepTrace(*partial), complete])))

    assert [(table.name, table.rows) for table in record.tables()] == [("orders", 2)]


def test_changes_of_one_table_in_several_steps_are_one_list() -> None:
    record = empty_record()
    record.note_schema_changes("shop", {"orders": new_table("orders", "id")})
    record.note_schema_changes("shop", {"orders": new_table("orders", "note")})

    assert record.schema_changes["shop"]["orders"].columns.keys() == {"id", "note"}


def test_attempts_are_counted_from_one_with_the_one_under_way() -> None:
    record = empty_record()
    assert (record.attempts, record.attempts_failed) == (1, 0)

    first = record.note_failure(ConnectionError("asleep"), 3, ["load package 1: extracted"], "Soon.")

    assert (first.name, first.step, first.pending) == ("attempt 1 of 3", "run", ("load package 1: extracted",))
    assert first.started_at == record.started_at
    assert record.attempts == 2
    last = record.note_failure(ConnectionError("asleep"), None, [], "No more.")
    record.finish(last.error)
    assert (last.name, last.started_at) == ("attempt 2", first.finished_at)
    assert record.attempts == 2
    assert finished().attempts == 1


def infos(pipeline: Pipeline) -> dict[str, Any]:
    return {step.step: step.step_info for step in pipeline.last_trace.steps}


def test_each_stage_tells_what_it_wrote(pipeline: Callable[..., Pipeline]) -> None:
    shop_pipeline = pipeline()
    shop_pipeline.run(shop())

    found = infos(shop_pipeline)
    assert isinstance(found["extract"], ExtractInfo)
    assert [(row.name, row.rows) for row in extracted(found["extract"])] == [
        ("customers", 3),
        ("greetings", 3),
        ("orders", 2),
    ]
    assert isinstance(found["normalize"], NormalizeInfo)
    assert [(row.name, row.rows, row.files) for row in normalized(found["normalize"])] == [
        ("customers", 3, 1),
        ("greetings", 3, 1),
        ("orders__items", 3, 1),
        ("orders", 2, 1),
    ]
    assert isinstance(found["load"], LoadInfo)
    loaded = jobs(found["load"])
    assert [(job.table, job.state, job.message) for job in loaded] == [
        ("customers", "loaded", ""),
        ("greetings", "loaded", ""),
        ("orders", "loaded", ""),
        ("orders__items", "loaded", ""),
    ]
    for job in loaded:
        assert (
            job.bytes
            == Path(found["load"].load_packages[0].jobs["completed_jobs"][0].file_path)
            .parent.joinpath(job.file)
            .stat()
            .st_size
        )
        assert job.seconds > 0.0


def test_a_job_that_failed_is_told_first_and_with_its_message(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.destination(batch_size=0, name="sink")
    def sink(_items: Any, table: Any) -> None:
        if table["name"] == "orders":
            raise DestinationTerminalException("orders are closed")

    shop_pipeline = pipeline()
    with pytest.raises(PipelineStepFailed) as error:
        shop_pipeline.run(shop(), destination=sink)

    assert isinstance(error.value.step_info, LoadInfo)
    first, *others = jobs(error.value.step_info)
    assert (first.table, first.state) == ("orders", "failed")
    assert "orders are closed" in first.message
    assert {job.state for job in others} <= {"loaded", "waiting"}
    assert {job.message for job in others} == {""}


def test_a_resource_that_yields_nothing_is_not_told_as_rows(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.resource
    def nothing() -> Iterator[Any]:
        yield from ()

    shop_pipeline = pipeline()
    shop_pipeline.extract(nothing)

    assert extracted(infos(shop_pipeline)["extract"]) == []
