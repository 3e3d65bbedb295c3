"""The collector without Prefect: which callbacks come, in which order, and what one that fails costs."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import dlt
import pyarrow as pa
import pytest
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline
from tenacity import Retrying, stop_after_attempt

from prefect_dlt import CallbackCollector, runner
from prefect_dlt.record import RunRecord
from prefect_dlt.schema_changes import TableChange
from tests.runtime.conftest import count
from tests.runtime.sources import shop


class Recorder(CallbackCollector):
    """Writes down every callback but `on_log`."""

    def __init__(self) -> None:
        super().__init__(logger=io.StringIO())
        self.calls: list[str] = []
        self.errors: list[BaseException | None] = []
        self.changes: dict[str, Any] = {}

    def on_before(self, pipeline: Any) -> None:
        self.calls.append("on_before")

    def on_after(self, pipeline: Any, trace: Any, exception: BaseException | None) -> None:
        self.calls.append("on_after")
        self.errors.append(exception)

    def on_retry(self, pipeline: Any, trace: Any, retry_attempt: int, last_attempt: bool, exception: Any) -> None:
        self.calls.append(f"on_retry {retry_attempt}")

    def before_extract(self, pipeline: Any, trace: Any) -> None:
        self.calls.append("before_extract")

    def after_extract(self, pipeline: Any, trace: Any) -> None:
        self.calls.append("after_extract")

    def before_normalize(self, pipeline: Any, trace: Any) -> None:
        self.calls.append("before_normalize")

    def after_normalize(self, pipeline: Any, trace: Any) -> None:
        self.calls.append("after_normalize")

    def before_load(self, pipeline: Any, trace: Any) -> None:
        self.calls.append("before_load")

    def after_load(self, pipeline: Any, trace: Any) -> None:
        self.calls.append("after_load")

    def on_schema_change(self, pipeline: Any, trace: Any, schema_name: str, changes: Any) -> None:
        self.calls.append(f"on_schema_change {schema_name}")
        self.changes |= changes


def state_of(collector: CallbackCollector) -> dict[str, Any]:
    """Return what a collector keeps of a run, apart from its settings."""
    return {name: value for name, value in vars(collector).items() if name.startswith("_CallbackCollector__")}


STEPS = [
    "before_extract",
    "after_extract",
    "before_normalize",
    "on_schema_change shop",
    "after_normalize",
    "before_load",
    "after_load",
]


def test_a_plain_run_calls_back_once_around_it_and_around_each_step(pipeline: Callable[..., Pipeline]) -> None:
    collector = Recorder()

    pipeline(progress=collector).run(shop())

    assert collector.calls == ["on_before", *STEPS, "on_after"]
    assert collector.errors == [None]


def test_the_runner_calls_back_once_around_all_that_it_does(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Recorder()
    shop_pipeline = pipeline(progress=collector)
    client = type(shop_pipeline.destination_client())
    original = client.update_stored_schema
    failures = [ConnectionError("asleep")]

    def update_stored_schema(self: Any, *args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(client, "update_stored_schema", update_stored_schema)

    runner(shop_pipeline, retry_policy=Retrying(stop=stop_after_attempt(2), reraise=True)).run(shop())

    assert collector.calls == ["on_before", *STEPS, "on_retry 1", "before_load", "after_load", "on_after"]
    assert collector.errors == [None]


def test_a_schema_change_names_the_tables_and_columns_that_are_new(pipeline: Callable[..., Pipeline]) -> None:
    collector = Recorder()
    shop_pipeline = pipeline(progress=collector)
    shop_pipeline.run([{"id": 1}], table_name="orders")
    collector.changes.clear()

    shop_pipeline.run([{"id": 2, "note": "gift"}], table_name="orders")

    (orders,) = collector.changes.values()
    assert (orders.table, orders.is_new) == ("orders", False)
    assert {name: column.data_type for name, column in orders.columns.items()} == {"note": "text"}


def test_a_failed_run_hands_its_error_to_on_after(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.resource
    def orders() -> Iterator[Any]:
        raise ConnectionError("asleep")
        yield

    collector = Recorder()
    with pytest.raises(PipelineStepFailed) as raised:
        pipeline(progress=collector).run(orders)

    assert collector.errors == [raised.value]


def test_a_run_inside_an_except_block_is_no_failed_run(pipeline: Callable[..., Pipeline]) -> None:
    collector = Recorder()
    try:
        raise ValueError("of the user's own")
    except ValueError:
        pipeline(progress=collector).run(shop())

    assert collector.errors == [None]


def test_a_callback_that_raises_costs_neither_the_run_nor_the_next_callback(
    pipeline: Callable[..., Pipeline], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Recorder):
        def on_before(self, pipeline: Any) -> None:
            raise RuntimeError("the pager is down: https://ada:s3cret@pager.example")

        def on_log(self) -> None:
            raise RuntimeError("the disk is full")

    collector = Broken()
    shop_pipeline = pipeline(progress=collector)
    shop_pipeline.run(shop())

    assert collector.calls == [*STEPS, "on_after"]
    assert count(shop_pipeline, "orders") == 2
    (text,) = {record.getMessage() for record in caplog.records if "on_before" in record.getMessage()}
    assert "Traceback" in text
    assert "the pager is down" in text
    assert "s3cret" not in text


def test_each_callback_may_raise_and_each_error_is_logged_once_without_secrets(
    pipeline: Callable[..., Pipeline], caplog: pytest.LogCaptureFixture
) -> None:
    names = [name for name in vars(CallbackCollector) if name.startswith(("before_", "after_", "on_"))]
    callbacks = [name for name in names if "trace" not in name and name != "on_log"]
    called: list[str] = []

    def broken(name: str) -> Any:
        def callback(self: Any, *args: Any) -> None:
            called.append(name)
            raise RuntimeError(f"{name}: https://ada:s3cret@pager.example does not answer")

        callback.__name__ = name
        return callback

    collector = type("AllBroken", (CallbackCollector,), {name: broken(name) for name in callbacks})(
        logger=io.StringIO()
    )
    shop_pipeline = pipeline(progress=collector)
    attempts = iter([ConnectionError("asleep")])

    @dlt.resource
    def orders() -> Iterator[Any]:
        for error in attempts:
            raise error
        yield [{"id": 1}]

    policy = Retrying(stop=stop_after_attempt(2), reraise=True)
    runner(shop_pipeline, retry_policy=policy, retry_pipeline_steps=["extract"]).run(orders)

    assert count(shop_pipeline, "orders") == 1
    assert set(called) == set(callbacks)
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [line.partition(" raised")[0] for line in logged] == [f"AllBroken.{name}" for name in called]
    for text in logged:
        assert "Traceback" in text
        assert "does not answer" in text
        assert "s3cret" not in text


def test_progress_is_logged_at_most_once_a_period_and_when_a_stage_ends(pipeline: Callable[..., Pipeline]) -> None:
    now = 0.0
    stream = io.StringIO()

    @dlt.resource
    def orders() -> Iterator[Any]:
        nonlocal now
        for second in (0.0, 4.0, 8.0, 12.0):
            now = second
            yield [{"id": second}]

    collector = CallbackCollector(10.0, logger=stream, clock=lambda: now)
    pipeline(progress=collector).run(orders)

    lines = [line for line in stream.getvalue().splitlines() if line.startswith("extract")]
    assert lines == [
        "extract · 0 of 1 resource",
        "extract · 0 of 1 resource · 4 rows · 0.3 rows/s",
        "extract · 1 of 1 resource · 4 rows · 0.3 rows/s",
    ]


def test_progress_goes_to_a_logger_of_the_users(
    pipeline: Callable[..., Pipeline], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="mine")

    pipeline(progress=CallbackCollector(logger=logging.getLogger("mine"), log_level=logging.DEBUG)).run(shop())

    lines = [record.getMessage() for record in caplog.records if record.name == "mine"]
    assert "load · 5 of 5 jobs" in lines


def test_a_copy_made_during_a_run_keeps_the_settings_and_reports_a_run_of_its_own(
    pipeline: Callable[..., Pipeline],
) -> None:
    copies: list[CallbackCollector] = []

    class Copied(CallbackCollector):
        def before_load(self, pipeline: Any, trace: Any) -> None:
            # An open stream cannot be copied: settings are shared.
            copies.append(copy.deepcopy(self))

    with Path("progress.log").open("w") as stream:
        pipeline(progress=Copied(7.0, logger=stream)).run(shop())

    (twin,) = copies
    assert isinstance(twin, Copied)
    assert twin.log_period == 7.0
    assert twin.logger is stream
    assert state_of(twin) == state_of(CallbackCollector())


class Travelling(CallbackCollector):
    """Sends itself elsewhere in the middle of a run; importable, so that its class travels by name."""

    def before_load(self, pipeline: Any, trace: Any) -> None:
        state_of(self)["_CallbackCollector__run"].record.secrets.add("s3cret")
        SENT.append(cloudpickle.dumps(self))


SENT: list[bytes] = []


def test_a_collector_travels_with_its_settings_and_without_the_run_it_was_in(
    pipeline: Callable[..., Pipeline],
) -> None:
    collector = Travelling(7.0, logger=logging.LoggerAdapter(logging.getLogger("mine"), {"run": "first"}))
    pipeline(progress=collector).run(shop())

    for data in (SENT.pop(), cloudpickle.dumps(collector)):
        twin = pickle.loads(data)  # noqa: S301 - the bytes are our own
        assert isinstance(twin, Travelling)
        assert twin.log_period == 7.0
        assert isinstance(twin.logger, logging.LoggerAdapter)
        assert twin.logger.logger is logging.getLogger("mine")
        assert twin.logger.extra == {"run": "first"}
        assert state_of(twin) == state_of(CallbackCollector())
        assert b"s3cret" not in data


def test_a_logger_that_fails_does_not_end_the_run(pipeline: Callable[..., Pipeline]) -> None:
    closed = io.StringIO()
    closed.close()
    shop_pipeline = pipeline(progress=CallbackCollector(logger=closed))

    runner(shop_pipeline).run(shop())

    assert count(shop_pipeline, "orders") == 2


def test_a_collector_survives_dlts_own_copy_of_a_pipeline(pipeline: Callable[..., Pipeline]) -> None:
    other = pipeline(progress=Recorder()).drop(pipeline_name="other")

    other.run(shop())

    assert isinstance(other.collector, Recorder)
    assert count(other, "orders") == 2


# -- one collector, two pipelines --------------------------------------------------------------------------------------


class Observed(CallbackCollector):
    """Keeps the record of each run it serves; copies share the list."""

    def __init__(self) -> None:
        super().__init__(logger=io.StringIO())
        self.records: list[RunRecord] = []

    def run_ended(self, pipeline: Any, record: RunRecord) -> None:
        self.records.append(record)


@pytest.mark.slow
def test_two_pipelines_that_run_at_once_with_one_collector_are_reported_apart(
    pipeline: Callable[..., Pipeline], tmp_path: Path
) -> None:
    collector = Observed()
    together = threading.Barrier(2, timeout=60)

    def load(name: str, rows: int) -> None:
        @dlt.resource(name=f"{name}_rows")
        def data() -> Iterator[Any]:
            together.wait()
            yield [{"id": number} for number in range(rows)]
            together.wait()

        database = dlt.destinations.duckdb(str(tmp_path / f"{name}_file.duckdb"))
        options = {"pipelines_dir": str(tmp_path / name), "destination": database, "dataset_name": "d"}
        dlt.pipeline(name, progress=collector, **options).run(data)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(load, "one", 1), pool.submit(load, "two", 2)]:
            future.result()

    tables = {each.pipeline_name: [(row.name, row.rows) for row in each.tables()] for each in collector.records}
    assert tables == {"one": [("one_rows", 1)], "two": [("two_rows", 2)]}
    assert [row.tries for each in collector.records for row in each.stages()] == [1] * 6


def test_two_pipelines_one_after_another_share_a_collector(pipeline: Callable[..., Pipeline]) -> None:
    collector = Observed()
    one, two = pipeline("one", progress=collector), pipeline("two", progress=collector)

    one.run([{"id": 1}], table_name="orders")
    runner(two).run([{"id": 1}], table_name="orders")
    one.run([{"id": 1}], table_name="orders")

    assert one.collector is two.collector is collector
    assert [each.pipeline_name for each in collector.records] == ["one", "two", "one"]


# -- steps by themselves, and failures ---------------------------------------------------------------------------------


def test_steps_that_are_called_one_by_one_are_one_report(pipeline: Callable[..., Pipeline]) -> None:
    collector = Observed()
    shop_pipeline = pipeline(progress=collector)

    shop_pipeline.extract(shop())
    shop_pipeline.normalize()
    shop_pipeline.load()
    shop_pipeline.extract([{"id": 1}], table_name="orders")

    first, *_, last = collector.records
    assert collector.records == [first, first, first, last]
    assert [row.name for row in first.stages()] == ["extract", "normalize", "load"]
    assert [row.name for row in last.stages()] == ["extract"]
    assert first.finished_at is not None
    assert first.schema_changes["shop"].keys() == {"customers", "greetings", "orders", "orders__items"}


def test_steps_of_two_pipelines_with_one_collector_are_reported_apart(pipeline: Callable[..., Pipeline]) -> None:
    collector = Observed()
    one, two = pipeline("one", progress=collector), pipeline("two", progress=collector)

    one.extract([{"id": 1}], table_name="t1")
    two.extract([{"id": 1}, {"id": 2}], table_name="t2")
    for act in ("normalize", "load"):
        getattr(one, act)()
        getattr(two, act)()

    loaded = {each.pipeline_name: [(row.name, row.rows) for row in each.tables()] for each in collector.records[-2:]}
    assert loaded == {"one": [("t1", 1)], "two": [("t2", 2)]}


def test_a_load_after_all_is_loaded_is_no_part_of_the_report_before(pipeline: Callable[..., Pipeline]) -> None:
    collector = Observed()
    shop_pipeline = pipeline(progress=collector)
    for act in (lambda: shop_pipeline.extract(shop()), shop_pipeline.normalize, shop_pipeline.load, shop_pipeline.load):
        act()

    first, *_, last = collector.records
    assert [row.name for row in first.stages()] == ["extract", "normalize", "load"]
    assert last.tables() == []


def test_what_extract_and_normalize_change_step_by_step_is_told_once(pipeline: Callable[..., Pipeline]) -> None:
    told: list[dict[str, TableChange]] = []

    class Told(CallbackCollector):
        def on_schema_change(self, pipeline: Any, trace: Any, schema_name: str, changes: Any) -> None:
            told.append(changes)

    shop_pipeline = pipeline(progress=Told(logger=io.StringIO()))
    shop_pipeline.extract(pa.table({"id": [1]}), table_name="orders")
    shop_pipeline.normalize()
    shop_pipeline.extract([{"id": 1, "lines": [{"id": 1}]}], table_name="orders")
    shop_pipeline.normalize()

    assert all(each["orders"].is_new for each in told[:1])
    columns = [(table, column) for each in told for table, change in each.items() for column in change.columns]
    assert len(columns) == len(set(columns))
    assert ("orders", "id") in columns
    assert ("orders__lines", "id") in columns


def test_steps_that_fail_again_and_again_are_counted_without_a_limit(pipeline: Callable[..., Pipeline]) -> None:
    collector = Observed()
    shop_pipeline = pipeline(progress=collector)
    shop_pipeline.extract(shop())
    shop_pipeline.normalize()
    client = type(shop_pipeline.destination_client())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "update_stored_schema", raise_asleep)
        for _ in range(2):
            with pytest.raises(PipelineStepFailed):
                shop_pipeline.load()

    assert [each.name for each in collector.records[-1].failed_attempts] == ["attempt 1", "attempt 2"]


def raise_asleep(*_args: Any, **_options: Any) -> None:
    raise ConnectionError("asleep")


def test_where_a_run_is_told_to_load_to_is_told(pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
    collector = Observed()
    unset = dlt.pipeline("unset", pipelines_dir=str(tmp_path / "unset"), progress=collector)

    unset.run(
        [{"id": 1}],
        table_name="orders",
        destination=dlt.destinations.duckdb(str(tmp_path / "later.duckdb")),
        dataset_name="given",
    )

    (record,) = collector.records
    assert (record.destination, record.dataset_name) == ("duckdb", "given")


def test_attributes_of_a_subclass_are_its_own(pipeline: Callable[..., Pipeline]) -> None:
    class Mine(CallbackCollector):
        def __init__(self) -> None:
            super().__init__(logger=io.StringIO())
            self._key = self._run = self._record = self._changed = self._steps = "mine"  # type: ignore[assignment]
            self.retry = self.say = self.record = self.steps = 3

    collector = Mine()
    policy = Retrying(stop=stop_after_attempt(2), reraise=True)
    build = iter([ConnectionError("asleep"), shop()])

    def source() -> Any:
        found = next(build)
        if isinstance(found, Exception):
            raise found
        return found

    runner(pipeline(progress=collector), retry_policy=policy).run(source)

    twin = copy.deepcopy(collector)
    for each in (collector, twin):
        assert (each._key, each._run, each._record, each._changed, each._steps) == ("mine",) * 5  # type: ignore[comparison-overlap]
        assert (each.retry, each.say, each.record, each.steps) == (3, 3, 3, 3)


def test_a_stop_in_the_last_report_leaves_the_collector_free(pipeline: Callable[..., Pipeline]) -> None:
    class Stopped(CallbackCollector):
        def run_ended(self, pipeline: Any, record: RunRecord) -> None:
            raise KeyboardInterrupt

    collector = Stopped(logger=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        runner(pipeline("one", progress=collector)).run([{"id": 1}], table_name="orders")

    assert state_of(collector) == state_of(CallbackCollector())


def test_nothing_of_a_run_that_has_ended_is_kept(pipeline: Callable[..., Pipeline]) -> None:
    collector = CallbackCollector(logger=io.StringIO())
    try:
        raise ValueError("of the user's own")
    except ValueError:
        pipeline(progress=collector).run(shop())

    assert state_of(collector) == state_of(CallbackCollector())


def test_a_step_by_itself_has_its_callbacks_but_those_of_a_run(pipeline: Callable[..., Pipeline]) -> None:
    collector = Recorder()

    pipeline(progress=collector).extract(shop())

    assert collector.calls == ["before_extract", "after_extract"]


@pytest.mark.parametrize("act", ["run", "extract"])
def test_a_failure_without_the_runner_is_told_with_what_is_next(act: str, pipeline: Callable[..., Pipeline]) -> None:
    @dlt.resource
    def orders() -> Iterator[Any]:
        raise ConnectionError("asleep")
        yield

    collector = Observed()
    with pytest.raises(PipelineStepFailed) as error:
        getattr(pipeline(progress=collector), act)(orders)

    (record,) = collector.records
    (attempt,) = record.failed_attempts
    assert attempt.error is error.value
    name = "attempt 1 of 1" if act == "run" else "attempt 1"
    assert (attempt.name, attempt.step, attempt.pending) == (name, "extract", ())
    assert attempt.next == f"No further attempt: pipeline.{act}() makes one."


def test_a_failure_that_leaves_data_says_what_waits(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Observed()
    shop_pipeline = pipeline(progress=collector)

    def asleep(*_args: Any, **_options: Any) -> None:
        raise ConnectionError("asleep")

    monkeypatch.setattr(type(shop_pipeline.destination_client()), "update_stored_schema", asleep)
    with pytest.raises(PipelineStepFailed):
        shop_pipeline.run(shop())

    (attempt,) = collector.records[0].failed_attempts
    (load_id,) = shop_pipeline.list_normalized_load_packages()
    assert attempt.pending == (f"load package {load_id}: normalised, 0 of 5 jobs loaded",)
    assert "The next pipeline.run() loads what is pending, and nothing else" in attempt.next


def test_a_schema_change_of_a_step_that_failed_is_told_by_the_try_that_succeeds(
    pipeline: Callable[..., Pipeline],
) -> None:
    failures = [ConnectionError("asleep")]

    @dlt.resource(columns={"id": {"data_type": "bigint"}})
    def orders() -> Iterator[Any]:
        yield {"id": 1}
        if failures:
            raise failures.pop()

    collector = Recorder()
    policy = Retrying(stop=stop_after_attempt(2), reraise=True)
    runner(pipeline(progress=collector), retry_policy=policy, retry_pipeline_steps=["extract"]).run(orders)

    assert collector.calls.count("on_schema_change shop") == 1
    assert collector.changes["orders"].is_new
    assert collector.changes["orders"].columns.keys() == {"id", "_dlt_id", "_dlt_load_id"}


def test_what_only_extract_changed_is_told_when_the_run_ends(pipeline: Callable[..., Pipeline]) -> None:
    collector = Recorder()

    pipeline(progress=collector).extract(pa.table({"id": [1]}), table_name="orders")

    assert collector.calls == ["before_extract", "after_extract", "on_schema_change shop"]
    assert collector.changes["orders"].columns.keys() == {"id"}
