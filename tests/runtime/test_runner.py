"""What the runner promises, against real dlt and DuckDB; only the failures are made up."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.common.storages import LoadStorage
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline
from prefect.exceptions import TerminationSignal
from tenacity import AsyncRetrying, Retrying, stop_after_attempt

from prefect_dlt import CallbackCollector, runner
from prefect_dlt.errors import ConfigurationError, FailedJobsError, PendingDataError
from prefect_dlt.retry import chain
from tests.runtime.conftest import count
from tests.runtime.sources import shop

THREE = Retrying(stop=stop_after_attempt(3), reraise=True)
ALL_STEPS = ["extract", "normalize", "load"]


class Fails:
    """Raises an error the first few times that it is called, and counts all calls."""

    def __init__(self, error: BaseException, times: int) -> None:
        self.error, self.times, self.calls = error, times, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error


def failing_load(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, error: BaseException, times: int) -> Fails:
    """Make the destination of a pipeline fail when a load begins to look at it."""
    fails = Fails(error, times)
    client = type(pipeline.destination_client())
    original = client.update_stored_schema

    def update_stored_schema(self: Any, *args: Any, **kwargs: Any) -> Any:
        fails()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(client, "update_stored_schema", update_stored_schema)
    return fails


def counted_rows(extractions: list[int]) -> Any:
    @dlt.resource(name="orders")
    def orders() -> Iterator[Any]:
        extractions.append(1)
        yield [{"id": 1}, {"id": 2}]

    return orders


def test_a_failed_load_is_retried_without_extracting_again(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractions: list[int] = []
    shop_pipeline = pipeline()
    fails = failing_load(shop_pipeline, monkeypatch, ConnectionError("asleep"), times=2)

    info = runner(shop_pipeline, retry_policy=THREE).run(counted_rows(extractions))

    assert fails.calls == 3
    assert len(extractions) == 1
    assert info is not None
    assert not info.has_failed_jobs
    assert count(shop_pipeline, "orders") == 2


def test_what_extract_has_done_survives_the_end_of_the_process(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractions: list[int] = []
    with monkeypatch.context() as patch:
        first = pipeline()
        failing_load(first, patch, ConnectionError("asleep"), times=99)
        with pytest.raises(PipelineStepFailed):
            runner(first).run(counted_rows(extractions))

    # A new object knows no more than a new process does; the dataset does not exist yet.
    again = pipeline()
    runner(again).run([{"id": 3}], table_name="orders")

    assert len(extractions) == 1
    assert count(again, "orders") == 3


def test_pending_data_is_finalised_on_its_own(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        first = pipeline()
        failing_load(first, patch, ConnectionError("asleep"), times=99)
        with pytest.raises(PipelineStepFailed):
            runner(first).run(shop())

    again = pipeline()
    info = runner(again).finalize()

    assert info is not None
    assert not again.has_pending_data
    assert count(again, "customers") == 3
    assert runner(again).finalize() is None


@pytest.mark.parametrize("has_destination", [True, False])
def test_pending_data_goes_where_the_run_goes_when_its_pipeline_does_not_know(
    own_folder: Path, has_destination: bool
) -> None:
    def build() -> Pipeline:
        return dlt.pipeline(
            "shop",
            pipelines_dir=str(own_folder / "pipelines"),
            destination="duckdb" if has_destination else None,
            dataset_name="shop_data",
        )

    build().extract([{"id": 1}], table_name="orders")
    place = {"credentials": str(own_folder / "warehouse.duckdb")}

    shop = build()
    runner(shop).run(
        [{"id": 2}], table_name="orders", **place if has_destination else {"destination": "duckdb", **place}
    )

    assert count(shop, "orders") == 2
    assert [path.name for path in own_folder.glob("*.duckdb")] == ["warehouse.duckdb"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1), TerminationSignal(15)])
def test_a_request_to_stop_is_not_retried(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    shop_pipeline = pipeline()
    fails = failing_load(shop_pipeline, monkeypatch, stop, times=99)

    # dlt wraps Ctrl-C in an error of its own, which callers would take for a failure.
    with pytest.raises(type(stop)) as raised:
        runner(shop_pipeline, retry_policy=THREE).run(shop())

    assert raised.value is stop
    assert fails.calls == 1
    assert shop_pipeline.has_pending_data


def test_a_step_that_is_not_named_is_not_retried(pipeline: Callable[..., Pipeline]) -> None:
    fails = Fails(ConnectionError("asleep"), times=99)

    @dlt.resource
    def orders() -> Iterator[Any]:
        fails()
        yield [{"id": 1}]

    with pytest.raises(PipelineStepFailed):
        runner(pipeline(), retry_policy=THREE, retry_pipeline_steps=["load"]).run(orders)
    assert fails.calls == 1


def test_extract_is_retried_when_it_is_named(pipeline: Callable[..., Pipeline]) -> None:
    fails = Fails(ConnectionError("asleep"), times=2)

    @dlt.resource
    def orders() -> Iterator[Any]:
        fails()
        yield [{"id": 1}]

    shop_pipeline = pipeline()
    runner(shop_pipeline, retry_policy=THREE, retry_pipeline_steps=ALL_STEPS).run(orders)

    assert fails.calls == 3
    assert count(shop_pipeline, "orders") == 1


def test_a_generator_that_fails_once_reports_its_own_error(pipeline: Callable[..., Pipeline]) -> None:
    def rows() -> Iterator[Any]:
        yield {"id": 1}
        raise ConnectionError("the line is dead")

    with pytest.raises(PipelineStepFailed, match="the line is dead") as raised:
        runner(pipeline(), retry_policy=THREE, retry_pipeline_steps=ALL_STEPS).run(rows(), table_name="orders")
    assert any(isinstance(cause, ConnectionError) for cause in chain(raised.value, explicit=True))


def test_the_policy_of_the_user_keeps_its_own_before_sleep(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[int] = []
    shop_pipeline = pipeline()
    failing_load(shop_pipeline, monkeypatch, ConnectionError("asleep"), times=1)
    policy = THREE.copy(before_sleep=lambda state: slept.append(state.attempt_number))

    runner(shop_pipeline, retry_policy=policy).run(shop())

    assert slept == [1]


@pytest.mark.slow
def test_a_trace_is_stored_for_each_attempt(pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    shop_pipeline = pipeline()
    attempts = Fails(ConnectionError("asleep"), times=1)

    @dlt.resource
    def orders() -> Iterator[Any]:
        attempts()
        yield [{"id": 1}]

    runner(shop_pipeline, retry_policy=THREE, retry_pipeline_steps=ALL_STEPS, store_trace_info=True).run(orders)

    with shop_pipeline.sql_client() as client:
        table = client.make_qualified_table_name("shop_trace")
        stored = client.execute_sql(f"SELECT DISTINCT attempt FROM {table} ORDER BY attempt")
    assert [attempt for (attempt,) in stored or ()] == [1, 2]
    assert count(shop_pipeline, "orders") == 1
    assert dlt.current.pipeline().pipeline_name == "shop"


def test_a_trace_that_cannot_be_stored_is_kept_as_a_file(pipeline: Callable[..., Pipeline]) -> None:
    shop_pipeline = pipeline()
    elsewhere = dlt.pipeline(
        "traces", pipelines_dir=shop_pipeline.pipelines_dir, destination=dlt.destinations.dummy(fail_schema_update=True)
    )

    runner(shop_pipeline, store_trace_info=elsewhere).run(shop())

    (kept,) = (Path(shop_pipeline.working_dir) / "traces").glob("*_attempt_1_trace.json")
    assert json.loads(kept.read_text(encoding="utf-8"))
    assert count(shop_pipeline, "orders") == 2


def test_a_clean_folder_restores_the_state_from_the_destination(pipeline: Callable[..., Pipeline]) -> None:
    cursors: list[Any] = []

    @dlt.resource(primary_key="id")
    def orders(cursor: Any = dlt.sources.incremental("id")) -> Iterator[Any]:  # noqa: B008 - dlt's way
        cursors.append(cursor.last_value)
        yield [{"id": 1}, {"id": 2}]

    shop_pipeline = pipeline()
    runner(shop_pipeline).run(orders)
    marker = Path(shop_pipeline.working_dir) / "left-behind"
    marker.touch()

    runner(shop_pipeline, run_from_clean_folder=True).run(orders)

    assert not marker.exists()
    assert cursors == [None, 2]
    assert count(shop_pipeline, "orders") == 2


def test_a_clean_folder_is_refused_while_data_is_pending(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop_pipeline = pipeline()
    failing_load(shop_pipeline, monkeypatch, ConnectionError("asleep"), times=1)
    with pytest.raises(PipelineStepFailed):
        runner(shop_pipeline).run(shop())

    with pytest.raises(PendingDataError, match="not loaded yet"):
        runner(shop_pipeline, run_from_clean_folder=True).run(shop())
    assert shop_pipeline.has_pending_data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"retry_policy": 3}, "tenacity"),
        ({"retry_policy": AsyncRetrying()}, "tenacity"),
        ({"retry_pipeline_steps": "load"}, "list of 'extract', 'normalize', 'load'"),
        ({"retry_pipeline_steps": ["lod"]}, "list of 'extract', 'normalize', 'load'"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(
    pipeline: Callable[..., Pipeline], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        runner(pipeline(), **arguments)


def test_something_that_is_no_pipeline_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"dlt\.pipeline"):
        runner("shop")  # type: ignore[arg-type]


def test_the_record_tells_of_tables_attempts_and_load_ids(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop_pipeline = pipeline()
    failing_load(shop_pipeline, monkeypatch, ConnectionError("asleep"), times=1)

    run = runner(shop_pipeline, retry_policy=THREE)
    info = run.run(shop())

    assert run.record is not None
    assert info is not None
    assert run.record.attempts == 2
    assert run.record.load_ids == info.loads_ids
    assert [(table.name, table.rows) for table in run.record.tables()] == [
        ("customers", 3),
        ("greetings", 3),
        ("orders__items", 3),
        ("orders", 2),
    ]


def test_a_retry_is_told_where_progress_goes(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    shop_pipeline = pipeline(progress=CallbackCollector(logger=stream))
    failing_load(shop_pipeline, monkeypatch, ConnectionError("asleep"), times=1)

    runner(shop_pipeline, retry_policy=THREE).run(shop())

    told = "Attempt 1 of pipeline 'shop' failed, and the next one starts in 0.0 s: ConnectionError: asleep"
    assert told in stream.getvalue()


@pytest.mark.slow
def test_a_run_without_a_trace_stores_none_of_an_earlier_run(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner(pipeline(), store_trace_info=True).run(shop())
    monkeypatch.setenv("ENABLE_RUNTIME_TRACE", "false")
    shop_pipeline = pipeline()

    runner(shop_pipeline, store_trace_info=True).run(shop())

    assert count(shop_pipeline, "orders") == 4
    assert count(shop_pipeline, "shop_trace") == 1


def test_the_record_tells_of_tables_that_an_earlier_run_had_prepared(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        first = pipeline()
        failing_load(first, patch, ConnectionError("asleep"), times=99)
        with pytest.raises(PipelineStepFailed):
            runner(first).run(shop())

    run = runner(pipeline())
    run.run([{"id": 1}], table_name="orders")

    assert run.record is not None
    assert {table.name: table.rows_text for table in run.record.tables()} == {
        "orders": "1 + earlier",
        "orders__items": "earlier",
        "customers": "earlier",
        "greetings": "earlier",
    }


def test_data_that_cannot_be_built_is_retried_and_reported(pipeline: Callable[..., Pipeline]) -> None:
    fails = Fails(ConnectionError("no such host"), times=2)

    def build() -> Any:
        fails()
        return shop()

    shop_pipeline = pipeline()
    run = runner(shop_pipeline, retry_policy=THREE)
    run.run(build)

    assert fails.calls == 3
    assert run.record is not None
    assert [str(attempt.error) for attempt in run.record.failed_attempts] == ["no such host", "no such host"]
    assert count(shop_pipeline, "orders") == 2


def test_each_failed_attempt_is_recorded_with_what_waits_and_what_is_next(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop_pipeline = pipeline(progress=CallbackCollector(logger=io.StringIO()))
    fails = Fails(ConnectionError("asleep"), times=3)
    client = type(shop_pipeline.destination_client())
    monkeypatch.setattr(client, "update_stored_schema", lambda *_args, **_options: fails())
    run = runner(shop_pipeline, retry_policy=THREE)

    with pytest.raises(PipelineStepFailed):
        run.run(shop())

    assert run.record is not None
    first, second, last = run.record.failed_attempts
    assert [attempt.name for attempt in (first, second, last)] == [f"attempt {n} of 3" for n in (1, 2, 3)]
    assert {attempt.step for attempt in (first, second, last)} == {"load"}
    (load_id,) = shop_pipeline.list_normalized_load_packages()
    assert first.pending == last.pending == (f"load package {load_id}: normalised, 0 of 5 jobs loaded",)
    assert first.next == (
        "The next attempt starts in 0.0 s, and begins with load: what was extracted and normalised is kept, and so are "
        "the jobs that were loaded."
    )
    assert last.next == (
        "No further attempt: the retry policy allows no more (3 attempts). The next run loads first what is pending."
    )
    assert run.record.attempts == 3
    assert run.record.error is last.error


def test_a_failure_that_is_not_retried_says_why(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.resource
    def orders() -> Iterator[Any]:
        raise ConnectionError("asleep")
        yield

    run = runner(pipeline(), retry_policy=THREE)
    with pytest.raises(PipelineStepFailed):
        run.run(orders)

    assert run.record is not None
    (attempt,) = run.record.failed_attempts
    assert attempt.name == "attempt 1 of 3"
    assert attempt.next.startswith("No further attempt: extract is none of the steps that are retried (load).")


def test_attempts_at_what_an_earlier_run_left_count_as_well(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop_pipeline = pipeline()
    shop_pipeline.extract(shop())
    shop_pipeline.normalize()
    client = type(shop_pipeline.destination_client())
    original = client.update_stored_schema
    fails = Fails(ConnectionError("asleep"), times=1)

    def update_stored_schema(self: Any, *args: Any, **options: Any) -> Any:
        fails()
        return original(self, *args, **options)

    monkeypatch.setattr(client, "update_stored_schema", update_stored_schema)
    run = runner(shop_pipeline, retry_policy=THREE)
    build = Fails(ConnectionError("no such host"), times=1)

    def source() -> Any:
        build()
        return shop()

    run.run(source)

    assert run.record is not None
    assert [attempt.name for attempt in run.record.failed_attempts] == ["attempt 1 of 3", "attempt 2 of 4"]
    assert count(shop_pipeline, "orders") == 4


@pytest.mark.slow
def test_how_a_run_is_set_up_is_part_of_its_record(pipeline: Callable[..., Pipeline]) -> None:
    run = runner(pipeline(), retry_policy=THREE, retry_pipeline_steps=ALL_STEPS, store_trace_info=True)
    run.run(shop())

    assert run.record is not None
    assert run.record.settings == {
        "Retry policy": "3 attempts",
        "Steps retried": "extract, normalize, load",
        "Trace pipeline": "_trace_shop",
        "Trace table": "shop_trace",
        "Pending data": "loaded first",
        "Clean folder": "no",
        "Verified": "no",
        "Checkpoint": f"none but the working directory, {run.pipeline.working_dir}",
    }


def test_a_callable_builds_the_data_anew_for_each_attempt(pipeline: Callable[..., Pipeline]) -> None:
    built: list[int] = []

    def build() -> Any:
        built.append(1)

        def rows() -> Any:
            yield {"id": 1}
            if len(built) == 1:
                raise ConnectionError("the source went away")
            yield {"id": 2}

        return rows()

    shop_pipeline = pipeline()

    runner(shop_pipeline, retry_policy=THREE, retry_pipeline_steps=ALL_STEPS).run(build, table_name="orders")

    assert len(built) == 2
    assert count(shop_pipeline, "orders") == 2


def test_a_source_factory_builds_the_source(pipeline: Callable[..., Pipeline]) -> None:
    shop_pipeline = pipeline()

    runner(shop_pipeline).run(shop)

    assert count(shop_pipeline, "orders") == 2


@pytest.mark.parametrize("pending", [False, True])
def test_a_load_that_ends_with_failed_jobs_names_table_file_and_message(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch, pending: bool
) -> None:
    monkeypatch.setenv("LOAD__RAISE_ON_FAILED_JOBS", "false")
    shop_pipeline = pipeline()
    # The second file has a value that DuckDB cannot take for the column's type.
    shop_pipeline.run([{"id": 1}], table_name="items", loader_file_format="jsonl")
    shop_pipeline.extract([{"id": 2}], table_name="items", loader_file_format="jsonl")
    shop_pipeline.normalize()
    (file,) = Path(shop_pipeline.working_dir).glob("load/normalized/*/new_jobs/items.*")
    file.write_bytes(gzip.compress(b'{"id": "two", "_dlt_load_id": "x", "_dlt_id": "y"}\n'))

    run = runner(shop_pipeline, retry_policy=THREE)
    with pytest.raises(FailedJobsError) as failure:
        run.run([{"id": 3}] if pending else None, table_name="items")

    (job,) = failure.value.jobs
    assert job[1] == "items"
    assert Path(job[2]).is_file()
    assert "two" in job[3]
    assert all(part in str(failure.value) for part in ("'items'", file.name.split(".")[1], "'shop'"))
    # What was given is loaded all the same, and the failure is told with the run.
    assert count(shop_pipeline, "items") == (2 if pending else 1)
    assert run.record is not None
    assert [attempt.error for attempt in run.record.failed_attempts] == [failure.value]


def test_rows_that_were_normalised_again_are_counted_once(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = LoadStorage.commit_new_load_package
    fails = iter([OSError("disk full")])

    def commit_but_once(storage: LoadStorage, load_id: str) -> None:
        for error in fails:
            raise error
        commit(storage, load_id)

    monkeypatch.setattr(LoadStorage, "commit_new_load_package", commit_but_once)
    run = runner(pipeline(), retry_policy=THREE, retry_pipeline_steps=ALL_STEPS)

    run.run([{"id": 1}, {"id": 2}], table_name="orders")

    assert run.record is not None
    assert [(table.name, table.rows) for table in run.record.tables()] == [("orders", 2)]
