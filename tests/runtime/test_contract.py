"""The programs that show the API, run as a user would write them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dlt
import duckdb
import psycopg2
import pytest
from dlt.sources.sql_database import sql_database
from prefect import flow, get_run_logger, task
from prefect.task_runners import ThreadPoolTaskRunner
from tenacity import Retrying, stop_after_attempt

from prefect_dlt import PrefectCollector, create_run_pipeline_flow, runner
from tests.runtime.sources import shop

pytestmark = pytest.mark.usefixtures("prefect_api")

MY_RETRY_POLICY = Retrying(stop=stop_after_attempt(3), reraise=True)


@pytest.fixture
def shop_database(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A SQLite database with two tables, which dlt's configuration names as the source."""
    path = own_folder / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO items VALUES (?, ?)", [(1, "nut"), (2, "bolt"), (3, "screw")])
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, item INTEGER)")
        connection.executemany("INSERT INTO orders VALUES (?, ?)", [(1, 2), (2, 2)])
    address = f"sqlite:///{path}"
    monkeypatch.setenv("SOURCES__SQL_DATABASE__CREDENTIALS", address)
    return address


def test_a_task_with_a_collector_loads() -> None:
    source = shop()

    @task
    def load_orders() -> Any:
        pipeline = dlt.pipeline("orders", destination="duckdb", dataset_name="shop", progress=PrefectCollector())
        return pipeline.run(source)

    assert not load_orders().has_failed_jobs
    assert rows("orders.duckdb", "shop.customers") == 3


@pytest.mark.usefixtures("shop_database")
def test_a_resilient_task_loads_and_stores_its_trace() -> None:
    @task(log_prints=True)
    def resilient() -> Any:
        pipeline = dlt.pipeline("orders", destination="duckdb", progress=PrefectCollector())
        return runner(
            pipeline,
            retry_policy=MY_RETRY_POLICY,
            retry_pipeline_steps=["extract", "normalize", "load"],
            store_trace_info=True,
            run_from_clean_folder=False,
        ).run(sql_database(table_names=["items"]))

    assert not resilient().has_failed_jobs
    assert rows("orders.duckdb", "orders_dataset.items") == 3
    assert rows("orders.duckdb", "orders_dataset.orders_trace") == 1


def test_a_subclass_acts_between_attempts() -> None:
    retries: list[tuple[int, bool, str]] = []

    class MyCollector(PrefectCollector):
        def on_retry(
            self, pipeline: Any, trace: Any, retry_attempt: int, last_attempt: bool, exception: BaseException
        ) -> None:
            retries.append((retry_attempt, last_attempt, pipeline.pipeline_name))

    @task
    def load_with_hooks() -> Any:
        my_collector = MyCollector(1, logger=get_run_logger())
        pipeline = dlt.pipeline(
            "orders", destination=dlt.destinations.dummy(fail_schema_update_transiently=True), progress=my_collector
        )
        return runner(pipeline, retry_policy=MY_RETRY_POLICY).run(shop())

    with pytest.raises(Exception, match="fail_schema_update_transiently"):
        load_with_hooks()

    assert retries == [(1, False, "orders"), (2, True, "orders")]


@pytest.mark.slow
def test_a_flow_takes_a_database_apart(make_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    address = make_database("contract")
    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA shop; CREATE TABLE shop.items AS SELECT 1 AS id UNION SELECT 2 UNION SELECT 3")
        cursor.execute("CREATE TABLE shop.orders AS SELECT 1 AS id UNION SELECT 2")
    monkeypatch.setenv("SOURCES__SQL_DATABASE__CREDENTIALS", address.replace("postgresql", "postgresql+psycopg2", 1))

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=5))
    def main() -> Any:
        pipeline = dlt.pipeline("orders", destination=dlt.destinations.duckdb("shop.duckdb"), dataset_name="shop_data")
        load = create_run_pipeline_flow(
            pipeline=pipeline, source=sql_database(schema="shop"), decompose=True, flow_name="load_shop",
            extract_workers=10, normalize_workers=3, file_max_items=10_000, file_max_bytes=1_000_000,
        )  # fmt: skip
        return load(write_disposition="append")

    result = main()

    assert [(part.name, part.pipeline_name) for part in result.components] == [
        ("items", "orders__items"),
        ("orders", "orders__orders"),
    ]
    assert rows("shop.duckdb", "shop_data.items") == 3
    assert rows("shop.duckdb", "shop_data.orders") == 2


@pytest.mark.slow
def test_a_flow_runs_as_wide_as_the_flow_that_calls_it(own_folder: Path) -> None:
    running, most = 0, 0
    lock = threading.Lock()
    together = threading.Barrier(2)

    def resource(name: str) -> Any:
        def rows() -> Any:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            # Two at a time is reached: the first waits for the second, not for a clock.
            together.wait(timeout=60)
            yield [{"id": 1}]
            with lock:
                running -= 1

        return dlt.resource(rows, name=name)

    @dlt.source
    def wide() -> Any:
        return [resource(f"part_{number}") for number in range(6)]

    def pipeline() -> Any:
        return dlt.pipeline(
            "wide",
            pipelines_dir=str(own_folder / "pipelines"),
            destination=dlt.destinations.duckdb(str(own_folder / "wide_file.duckdb")),
            dataset_name="wide_data",
        )

    load = create_run_pipeline_flow(pipeline=pipeline, source=wide, decompose="parallel", flow_name="wide")

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
    def main() -> Any:
        return load()

    assert len(main().components) == 6
    assert most == 2


def rows(database: str, table: str) -> int:
    with duckdb.connect(database, read_only=True) as connection:
        found = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(found[0]) if found else 0
