"""Programs of the kind that users of other integrations bring along, with nothing but the imports changed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dlt
import duckdb
import pytest
import tenacity
from dlt.common.pipeline import SupportsPipeline
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.trace import PipelineTrace
from dlt.sources.sql_database import sql_database
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker
from tenacity import Retrying, stop_after_attempt, stop_after_delay, stop_before_delay, wait_fixed

from prefect_dlt import PrefectCollector, runner
from tests.runtime.sources import shop
from tests.runtime.test_collector import artifacts_of, current_flow_run_id

pytestmark = pytest.mark.usefixtures("prefect_api")

MY_RETRY_POLICY = Retrying(stop=stop_after_attempt(3), reraise=True)


@pytest.fixture(autouse=True)
def _items(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite database with the table that the programs load, named by the configuration."""
    with sqlite3.connect(own_folder / "shop.sqlite") as connection:
        connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO items VALUES (?, ?)", [(1, "nut"), (2, "bolt"), (3, "screw")])
    monkeypatch.setenv("SOURCES__SQL_DATABASE__CREDENTIALS", f"sqlite:///{own_folder / 'shop.sqlite'}")


@pytest.fixture
def dummy_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The destination called "dummy" fails, in a way that may pass."""
    monkeypatch.setenv("DESTINATION__DUMMY__FAIL_SCHEMA_UPDATE_TRANSIENTLY", "true")


def test_a_task_whose_pipeline_has_a_collector_shows_its_stages() -> None:
    source = shop()

    @task
    def my_dlt_task() -> Any:
        pipeline = dlt.pipeline(
            pipeline_name="my_pipeline",
            destination="duckdb",
            dataset_name="my_dataset",
            progress=PrefectCollector(),
        )

        return pipeline.run(source)

    @flow
    def main() -> Any:
        return my_dlt_task(), current_flow_run_id()

    load_info, flow_run_id = main()

    assert not load_info.has_failed_jobs
    assert rows("my_pipeline.duckdb", "my_dataset.customers") == 3
    stages = ("my-pipeline-extract", "my-pipeline-normalize", "my-pipeline-load", "my-pipeline-summary")
    assert set(stages) <= set(artifacts_of(flow_run_id))


def test_a_resilient_task_loads_a_table_of_a_database_and_logs_its_progress() -> None:
    @task(log_prints=True)
    def resilient_pipeline_task() -> Any:
        pipeline = dlt.pipeline("my_pipeline", destination="duckdb", progress=PrefectCollector())
        source = sql_database(table_names=["items"])

        return runner(
            pipeline,
            retry_policy=MY_RETRY_POLICY,
            retry_pipeline_steps=["extract", "normalize", "load"],
        ).run(source)

    @flow
    def main() -> Any:
        return resilient_pipeline_task(), current_flow_run_id()

    load_info, flow_run_id = main()

    assert not load_info.has_failed_jobs
    assert rows("my_pipeline.duckdb", "my_pipeline_dataset.items") == 3
    APILogWorker.drain_all(timeout=30)
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])))
    assert any(log.message.startswith("extract · 1 of 1 resource · 3 rows") for log in logs)


@pytest.mark.usefixtures("dummy_fails")
def test_a_collector_with_a_logger_of_the_task_is_told_of_each_retry() -> None:
    told: list[tuple[str, int, bool]] = []

    class MyCustomCollector(PrefectCollector):
        def on_retry(
            self,
            pipeline: SupportsPipeline,
            trace: PipelineTrace,
            retry_attempt: int,
            last_attempt: bool,
            exception: Exception,
        ) -> None:
            told.append((pipeline.pipeline_name, retry_attempt, last_attempt))
            failed = [step for step in trace.steps if step.step == "load" and step.step_exception]
            assert exception.__class__ is PipelineStepFailed
            assert str(failed[-1].step_exception) in str(exception)

    @task
    def my_task() -> Any:
        prefect_logger = get_run_logger()
        my_collector = MyCustomCollector(1, logger=prefect_logger)

        pipeline = dlt.pipeline(
            pipeline_name="my_pipeline",
            destination="dummy",
            progress=my_collector,
        )
        source = sql_database(table_names=["items"])
        return runner(pipeline, retry_policy=MY_RETRY_POLICY).run(source)

    @flow
    def main() -> Any:
        return my_task()

    with pytest.raises(PipelineStepFailed):
        main()

    assert told == [("my_pipeline", 1, False), ("my_pipeline", 2, True)]


# One attempt takes no time here, and each pause 4 seconds.
@pytest.mark.parametrize(
    ("stop", "last_attempts"),
    [
        (stop_after_attempt(3), [False, True]),
        (stop_after_delay(10), [False, False, True]),
        (stop_before_delay(10), [False, True]),
        (stop_after_attempt(2) | stop_after_delay(10), [True]),
        (stop_after_attempt(9) | stop_after_delay(10), [False, False, True]),
        (stop_after_attempt(2) & stop_after_delay(5), [False, True]),
    ],
    ids=["attempts", "delay", "before a delay", "attempts or delay", "delay or attempts", "attempts and delay"],
)
@pytest.mark.usefixtures("dummy_fails")
def test_each_retry_is_counted_and_the_last_one_known(
    stop: Any, last_attempts: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, bool]] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    class MyCollector(PrefectCollector):
        def on_retry(
            self, pipeline: Any, trace: Any, retry_attempt: int, last_attempt: bool, exception: BaseException
        ) -> None:
            told.append((retry_attempt, last_attempt))

    monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=lambda: now))
    pipeline = dlt.pipeline("my_pipeline", destination="dummy", progress=MyCollector())
    policy = Retrying(stop=stop, wait=wait_fixed(4), sleep=sleep, reraise=True)
    with pytest.raises(PipelineStepFailed):
        runner(pipeline, retry_policy=policy).run(shop())

    assert told == [(number, is_last) for number, is_last in enumerate(last_attempts, 1)]


def rows(database: str, table: str) -> int:
    with duckdb.connect(database, read_only=True) as connection:
        found = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(found[0]) if found else 0
