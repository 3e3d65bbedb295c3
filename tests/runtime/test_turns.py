"""Processes that load into one DuckDB file take turns, and threads of one process share theirs."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pytest
from dlt.common.exceptions import SignalReceivedException
from dlt.destinations.impl.duckdb.configuration import DuckDbConnectionPool
from dlt.pipeline.pipeline import Pipeline
from fasteners import InterProcessLock
from typing_extensions import override

from prefect_dlt import CallbackCollector, turns, verify
from prefect_dlt.configuration import RunnerSettings
from prefect_dlt.runner import PipelineRunner
from prefect_dlt.stop import stopping
from prefect_dlt.turns import database_of, taking_turns
from tests.runtime import turns_of_another

ROOT = Path(__file__).parents[2]
LONG = 30.0
ROWS = [{"id": number} for number in range(3)]


class Another:
    """Another process, which has its turn when it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", turns_of_another.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def does(self, what: str, path: Path) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what} {path}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == what

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def another() -> Iterator[Another]:
    """Another process for all tests; the last one kills it."""
    process = Another()
    yield process
    process.kill()


@pytest.fixture
def warehouse(tmp_path: Path) -> Path:
    return tmp_path / "warehouse.duckdb"


def is_free(warehouse: Path) -> bool:
    """Tell whether another process could have its turn."""
    lock = warehouse.with_name(".warehouse.duckdb.turn.lock")
    attempt = f"from fasteners import InterProcessLock as L; print(L({str(lock)!r}).acquire(blocking=False))"
    return subprocess.check_output([sys.executable, "-c", attempt], text=True).strip() == "True"


def connect(pipeline: Pipeline) -> None:
    with pipeline.sql_client() as client:
        client.execute_sql("SELECT 1")


def test_whatever_connects_waits_while_another_process_has_its_turn(
    pipeline: Callable[..., Pipeline], warehouse: Path, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, waited = pipeline(), []
    pause = turns.pause

    def give_up(seconds: float) -> None:
        if not waited:
            another.does("give", warehouse)
        waited.append(seconds)
        pause(seconds)

    with taking_turns(shop):
        shop.run(ROWS, table_name="orders")
        for act in (lambda: connect(shop), lambda: shop.run(ROWS, table_name="orders"), shop.sync_destination):
            waited.clear()
            monkeypatch.setattr(turns, "pause", pause)
            another.does("take", warehouse)
            monkeypatch.setattr(turns, "pause", give_up)
            act()
            assert waited

    with duckdb.connect(str(warehouse)) as connection:
        assert connection.execute("SELECT count(*) FROM shop_data.orders").fetchall() == [(6,)]


def test_a_process_that_waits_stops_when_it_is_asked_to(
    pipeline: Callable[..., Pipeline], warehouse: Path, another: Another, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(turns, "TOLD_AFTER", 0.0)
    asks, pause = threading.Event(), turns.pause

    def waits(seconds: float) -> None:
        asks.set()
        pause(seconds)

    another.does("take", warehouse)
    monkeypatch.setattr(turns, "pause", waits)
    with (
        caplog.at_level(logging.INFO, "prefect_dlt"),
        ThreadPoolExecutor(1) as threads,
        taking_turns(shop := pipeline()),
    ):
        connects = threads.submit(connect, shop)
        try:
            assert asks.wait(LONG)
            with stopping(signal.SIGTERM), pytest.raises(SignalReceivedException):
                connects.result(LONG)
        finally:
            another.does("give", warehouse)

    assert "Another process loads into" in caplog.text
    with taking_turns(shop):
        connect(shop)


def test_others_have_their_turn_while_a_process_extracts_and_normalises_and_not_while_it_loads_or_verifies(
    pipeline: Callable[..., Pipeline], warehouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, bool] = {}

    class Notes(CallbackCollector):
        @override
        def before_normalize(self, pipeline: Any, trace: Any) -> None:
            found["normalize"] = is_free(warehouse)

        @override
        def before_load(self, pipeline: Any, trace: Any) -> None:
            found["load"] = is_free(warehouse)

    @dlt.resource
    def orders() -> Iterator[Any]:
        found["extract"] = is_free(warehouse)
        yield ROWS

    ask = verify._Questions._number

    def noting(self: Any, query: Any) -> int:
        found["verify"] = is_free(warehouse)
        return ask(self, query)

    monkeypatch.setattr(verify._Questions, "_number", noting)
    shop = pipeline(progress=Notes())
    with taking_turns(shop):
        PipelineRunner(shop, RunnerSettings(verify="raise")).run(orders)
        assert is_free(warehouse)

    assert found == {"extract": True, "normalize": True, "load": False, "verify": False}


def test_threads_of_a_process_have_its_turn_together(pipeline: Callable[..., Pipeline], warehouse: Path) -> None:
    both = threading.Barrier(2)

    def load(name: str) -> None:
        shop = pipeline(name)
        with taking_turns(shop), shop.sql_client() as client:
            both.wait(LONG)
            client.execute_sql("SELECT 1")
            assert not is_free(warehouse)
            both.wait(LONG)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(load, ["north", "south"]))

    assert is_free(warehouse)


def test_connections_that_are_thrown_away_give_their_turn_back(
    pipeline: Callable[..., Pipeline], warehouse: Path
) -> None:
    shop = pipeline()
    with taking_turns(shop):
        pool = DuckDbConnectionPool(shop.destination_client().config.credentials)
        pool.borrow_conn()
        assert not is_free(warehouse)

        del pool
        gc.collect()
        # It is found out about when somebody takes a turn, or ends with it.
        connect(shop)
        assert is_free(warehouse)


@pytest.mark.parametrize("database", [":memory:", "opened.duckdb"])
def test_nobody_waits_for_what_is_no_file_or_what_somebody_else_has_opened(database: str, tmp_path: Path) -> None:
    opened: Any = duckdb.connect(database)
    shop = dlt.pipeline("shop", destination=dlt.destinations.duckdb(opened), dataset_name="shop_data")
    with taking_turns(shop):
        assert database_of(shop) is None
    files = dlt.pipeline("files", destination=dlt.destinations.filesystem(str(tmp_path / "files")))
    assert database_of(files) is None


def test_where_there_are_no_locks_a_load_goes_on_with_a_warning(
    pipeline: Callable[..., Pipeline], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, **options: Any) -> bool:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(InterProcessLock, "acquire", refuse)
    shop = pipeline()
    with taking_turns(shop):
        connect(shop)
    assert "cannot take turns" in caplog.text


def test_a_process_that_is_killed_in_its_turn_blocks_nobody(
    pipeline: Callable[..., Pipeline], warehouse: Path, another: Another
) -> None:
    another.does("take", warehouse)
    assert not is_free(warehouse)

    another.kill()

    shop = pipeline()
    with taking_turns(shop):
        PipelineRunner(shop, RunnerSettings()).run(ROWS, table_name="orders")
    assert is_free(warehouse)
