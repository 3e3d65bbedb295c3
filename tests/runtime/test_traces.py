"""A trace is stored after every attempt, without secrets and in a fixed shape, or else kept as a file."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pytest
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.traces import TraceStore, trace_record

STEP_KEYS = {"span_id", "step", "started_at", "finished_at", "state", "exception", "load_ids"}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "shop.duckdb"


@pytest.fixture
def pipeline(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    monkeypatch.chdir(tmp_path)
    return dlt.pipeline(
        "shop",
        destination=dlt.destinations.duckdb(str(database)),
        dataset_name="sales",
        pipelines_dir=str(tmp_path / "pipelines"),
    )


def failed_run(pipeline: Pipeline, message: str) -> None:
    @dlt.resource
    def orders() -> Iterator[dict[str, int]]:
        yield {"id": 1}
        raise ConnectionError(message)

    with pytest.raises(PipelineStepFailed):
        pipeline.run(orders)


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(database)) as connection:
        return connection.sql(query).fetchall()


def store_of(pipeline: Pipeline) -> TraceStore:
    store = TraceStore.of(pipeline, store=True)
    assert store is not None
    return store


def kept(pipeline: Pipeline) -> list[Path]:
    return sorted((Path(pipeline.working_dir) / "traces").glob("*"))


def broken_destination(*errors: BaseException) -> Any:
    left = list(errors)

    @dlt.destination(batch_size=0, name="sink")
    def sink(_items: Any, _table: Any) -> None:
        if left:
            raise left.pop(0)

    return sink


# -- the record --------------------------------------------------------------------------------------------------------


def test_a_record_tells_the_run_and_each_step(pipeline: Pipeline) -> None:
    info = pipeline.run([{"id": 1}], table_name="orders")

    record = trace_record(pipeline.last_trace, 2)

    assert record["pipeline_name"] == "shop"
    assert record["attempt"] == 2
    assert record["started_at"] <= record["finished_at"]
    # dlt leaves out "sync" where there was nothing to synchronise.
    assert {"extract", "normalize", "load", "run"} <= {step["step"] for step in record["steps"]}
    assert {step["state"] for step in record["steps"]} == {"completed"}
    load = next(step for step in record["steps"] if step["step"] == "load")
    assert load["load_ids"] == ",".join(info.loads_ids)


def test_a_record_has_one_shape_failed_or_not(pipeline: Pipeline) -> None:
    pipeline.run([{"id": 1}], table_name="orders")
    loaded = trace_record(pipeline.last_trace, 1)
    failed_run(pipeline, "the source is down")
    failed = trace_record(pipeline.last_trace, 1)

    assert loaded.keys() == failed.keys()
    for step in loaded["steps"] + failed["steps"]:
        assert step.keys() == STEP_KEYS
        assert isinstance(step["exception"], str)
        assert isinstance(step["load_ids"], str)
    extract = next(step for step in failed["steps"] if step["step"] == "extract")
    assert extract["state"] == "failed"
    assert "the source is down" in extract["exception"]


def test_a_record_holds_no_secret(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "K7fQ92mZpL0vB")

    @dlt.resource
    def orders(api_token: str = dlt.secrets.value) -> Iterator[str]:
        yield "x"
        raise ConnectionError(f"{api_token} was refused by postgresql://me:hunter2@db")

    with pytest.raises(PipelineStepFailed):
        pipeline.run(orders)

    text = json.dumps(trace_record(pipeline.last_trace, 1, {"K7fQ92mZpL0vB"}), default=str)
    assert "*** was refused by postgresql://me:***@db" in text
    assert "K7fQ92mZpL0vB" not in text
    assert "hunter2" not in text
    assert "api_token" not in text.replace("api_token: str", "")


# -- stored by dlt -----------------------------------------------------------------------------------------------------


def test_traces_are_rows_beside_the_data(pipeline: Pipeline, database: Path) -> None:
    store = store_of(pipeline)
    failed_run(pipeline, "the source is down, password=hunter2")
    store.store(pipeline.last_trace, 1)
    pipeline.run([{"id": 1}], table_name="orders")
    store.store(pipeline.last_trace, 2)

    assert store.pipeline_name == "_trace_shop"
    assert rows(database, "select pipeline_name, attempt from sales.shop_trace order by attempt") == [
        ("shop", 1),
        ("shop", 2),
    ]
    states = rows(
        database,
        "select distinct t.attempt, s.state, s.exception from sales.shop_trace t"
        " join sales.shop_trace__steps s on s._dlt_parent_id = t._dlt_id where s.step = 'extract' order by 1",
    )
    assert [row[:2] for row in states] == [(1, "failed"), (2, "completed")]
    assert "password=***" in states[0][2]
    assert states[1][2] == ""
    assert kept(pipeline) == []


def test_the_columns_are_there_before_anything_has_failed(pipeline: Pipeline, database: Path) -> None:
    store = store_of(pipeline)
    pipeline.run([{"id": 1}], table_name="orders")
    store.store(pipeline.last_trace, 1)

    columns = rows(
        database, "select column_name from information_schema.columns where table_name = 'shop_trace__steps'"
    )
    assert {name for (name,) in columns if not name.startswith("_dlt")} == STEP_KEYS


def test_the_pipeline_itself_is_left_as_it_was(pipeline: Pipeline) -> None:
    pipeline.run([{"id": 1}], table_name="orders")
    trace, schemas = pipeline.last_trace, set(pipeline.schemas)

    store_of(pipeline).store(trace, 1)

    assert dlt.current.pipeline() is pipeline
    assert pipeline.last_trace is trace
    assert set(pipeline.schemas) == schemas


def test_a_pipeline_of_the_users_stores_traces_where_it_points_to(pipeline: Pipeline, tmp_path: Path) -> None:
    other = tmp_path / "ops.duckdb"
    ops = dlt.pipeline(
        "ops",
        destination=dlt.destinations.duckdb(str(other)),
        dataset_name="traces",
        pipelines_dir=str(tmp_path / "pipelines"),
    )
    pipeline.activate()
    pipeline.run([{"id": 1}], table_name="orders")

    store = TraceStore.of(pipeline, ops)
    assert store is not None
    store.store(pipeline.last_trace, 1)

    assert rows(other, "select attempt from traces.shop_trace") == [(1,)]


def test_nothing_is_stored_where_nothing_was_asked_for(pipeline: Pipeline) -> None:
    assert TraceStore.of(pipeline, store=False) is None


def test_the_staging_of_a_pipeline_is_that_of_its_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    staged = dlt.pipeline(
        "staged",
        destination=dlt.destinations.redshift("redshift://loader:x@localhost/shop"),
        staging=dlt.destinations.filesystem(str(tmp_path / "staging")),
        pipelines_dir=str(tmp_path / "pipelines"),
    )

    assert store_of(staged).pipeline.staging is staged.staging


# -- when that fails ---------------------------------------------------------------------------------------------------


def ops_pipeline(pipeline: Pipeline, *errors: BaseException) -> TraceStore:
    ops = dlt.pipeline(
        "ops", destination=broken_destination(*errors), dataset_name="ops", pipelines_dir=pipeline.pipelines_dir
    )
    pipeline.activate()
    store = TraceStore.of(pipeline, ops)
    assert store is not None
    return store


@pytest.fixture
def _no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAD__RAISE_ON_MAX_RETRIES", "1")  # dlt's own retries of a job take seconds


@pytest.mark.usefixtures("_no_second_try")
def test_a_trace_that_cannot_be_stored_is_kept_as_a_file(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    store = ops_pipeline(pipeline, OSError("disk full at postgresql://me:hunter2@db, K7fQ92mZpL0vB"))
    failed_run(pipeline, "K7fQ92mZpL0vB is no key, password=hunter3")

    with caplog.at_level(logging.WARNING, logger="prefect_dlt"):
        store.store(pipeline.last_trace, 3, {"K7fQ92mZpL0vB"})

    (path,) = kept(pipeline)
    assert path.name == f"{pipeline.last_trace.transaction_id}_attempt_3_trace.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["attempt"] == 3
    assert {step["state"] for step in record["steps"]} == {"failed"}
    (warning,) = [each.getMessage() for each in caplog.records if each.name == "prefect_dlt"]
    assert str(path) in warning
    assert "disk full" in warning
    for secret in ("hunter2", "hunter3", "K7fQ92mZpL0vB"):
        assert secret not in warning
        assert secret not in path.read_text(encoding="utf-8")
    assert dlt.current.pipeline() is pipeline


@pytest.mark.usefixtures("_no_second_try")
def test_the_trace_after_one_that_could_not_be_stored_is_not_lost(pipeline: Pipeline) -> None:
    store = ops_pipeline(pipeline, OSError("disk full"))
    pipeline.run([{"id": 1}], table_name="orders")
    store.store(pipeline.last_trace, 1)
    assert store.pipeline.has_pending_data

    store.store(pipeline.last_trace, 2)

    assert not store.pipeline.has_pending_data
    assert [path.name.partition("_")[2] for path in kept(pipeline)] == ["attempt_1_trace.json"]
    assert store.pipeline.last_trace.last_normalize_info.row_counts["shop_trace"] == 1


@pytest.mark.usefixtures("_no_second_try")
def test_a_trace_that_can_be_put_nowhere_is_a_warning_too(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    store = ops_pipeline(pipeline, OSError("disk full"))
    pipeline.run([{"id": 1}], table_name="orders")
    (Path(pipeline.working_dir) / "traces").write_text("a file where the folder should be")

    with caplog.at_level(logging.WARNING, logger="prefect_dlt"):
        store.store(pipeline.last_trace, 1)

    assert "neither be stored nor kept" in caplog.text


@pytest.mark.usefixtures("_no_second_try")
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_request_is_not_swallowed_and_the_trace_is_kept(pipeline: Pipeline, stop: type[BaseException]) -> None:
    ops = dlt.pipeline("ops", destination="duckdb", dataset_name="ops", pipelines_dir=pipeline.pipelines_dir)

    class StopsInTheMiddle(type(ops.collector)):  # type: ignore[misc] - where dlt calls back on the main thread
        def update(self, *_: Any, **__: Any) -> None:
            raise stop

    ops.collector = StopsInTheMiddle()
    pipeline.activate()
    pipeline.run([{"id": 1}], table_name="orders")
    store = TraceStore.of(pipeline, ops)
    assert store is not None

    with pytest.raises((stop, PipelineStepFailed)) as caught:
        store.store(pipeline.last_trace, 1)

    assert isinstance(caught.value.__cause__ or caught.value, stop)
    assert len(kept(pipeline)) == 1
    assert dlt.current.pipeline() is pipeline
