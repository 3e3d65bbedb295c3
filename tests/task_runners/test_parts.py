"""Parts of a source in tasks of every kind of task runner, built there by functions that are imported."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
import pytest
from dlt.common.pipeline import LoadInfo
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterName
from prefect.exceptions import TerminationSignal
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from prefect_dlt import create_run_pipeline_flow
from prefect_dlt.errors import CallableNeededError, ComponentsFailedError
from tests.task_runners import parts
from tests.task_runners.ends import terminated_at
from tests.task_runners.test_task_runners import dask, process, ray, threads

NAMES = ["people", "places"]


@pytest.fixture(scope="session")
def database(make_database: Callable[[str], str]) -> str:
    """Return the address of a database for all tests of these."""
    return make_database("parts")


@pytest.fixture(
    scope="module",
    params=[threads, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (process, dask, ray))],
    ids=lambda kind: kind.__name__,
)
def task_runner(request: pytest.FixtureRequest, prefect_api: None, home_of_workers: Path) -> TaskRunner[Any]:
    """A task runner of each kind."""
    return request.param(request)


def rows(database: str, folder: Path, table: str) -> list[tuple[int, int]]:
    """Return how many rows a table has, and how many different ones."""
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        column = "_dlt_id" if "__" in table else "id"
        cursor.execute(f'SELECT count(*), count(DISTINCT {column}) FROM "{folder.name}".{table}')
        return cursor.fetchall()


def ended_as(flow_run_name: str) -> list[str | None]:
    """Return the states of a flow run and of its task runs."""
    with get_client(sync_client=True) as client:
        (flow_run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[flow_run_name])))
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
        return [run.state_name for run in (flow_run, *client.read_task_runs(flow_run_filter=chosen))]


@pytest.mark.parametrize("mode", ["parallel", "none"])
def test_the_same_flow_runs_on_each(
    task_runner: TaskRunner[Any], database: str, tmp_path: Path, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", database)
    load = create_run_pipeline_flow(
        functools.partial(parts.into_postgres_at, str(tmp_path), database),
        functools.partial(parts.shop, str(tmp_path), NAMES),
        decompose=mode,
        task_runner=task_runner.duplicate(),
    )

    result = load()

    assert [part.name for part in result.components] == (NAMES if mode == "parallel" else ["the whole source"])
    assert {table.name: table.rows for table in result.tables} == {
        "people": 40, "people__lines": 80, "places": 40, "places__lines": 80,
    }  # fmt: skip
    for part in result.components:
        assert isinstance(part.load_info, LoadInfo)
        assert not part.load_info.has_failed_jobs
        assert part.seconds > 0
    for name in NAMES:
        assert rows(database, tmp_path, name) == [(40, 40)]
        assert rows(database, tmp_path, f"{name}__lines") == [(80, 80)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [dask, ray], ids=lambda kind: kind.__name__)
def test_a_part_on_a_cluster_is_told_when_the_flow_is_cancelled(
    kind: Any, prefect_api: None, home_of_workers: Path, request: pytest.FixtureRequest, database: str, tmp_path: Path
) -> None:
    (tmp_path / "waits_people").touch()
    load = create_run_pipeline_flow(
        functools.partial(parts.into_postgres_at, str(tmp_path), database),
        functools.partial(parts.shop, str(tmp_path), ["people"]),
        decompose="parallel",
        task_runner=kind(request),
    )

    with terminated_at(tmp_path / "extracts_people"), pytest.raises(TerminationSignal):
        load.with_options(flow_run_name=f"ended on {kind.__name__}")()

    assert (tmp_path / "told_people").exists()
    assert ended_as(f"ended on {kind.__name__}") == ["Cancelled", "Cancelled"]
    (tmp_path / "waits_people").unlink()
    # And whatever the process does next is not stopped.
    assert [table.rows for table in load.with_options(task_runner=kind(request))().tables] == [80, 40]


@pytest.mark.slow
def test_parts_in_processes_stop_when_one_fails(prefect_api: None, database: str, tmp_path: Path) -> None:
    (tmp_path / "fails_people").touch()
    (tmp_path / "waits_places").touch()
    load = create_run_pipeline_flow(
        functools.partial(parts.into_postgres_at, str(tmp_path), database),
        functools.partial(parts.shop, str(tmp_path), NAMES, together=True),
        decompose="parallel",
        on_failure="cancel",
        task_runner=ProcessPoolTaskRunner(max_workers=2),
    )

    with pytest.raises(ComponentsFailedError) as raised:
        load()

    assert (tmp_path / "told_places").exists()
    assert [(each.name, each.outcome) for each in raised.value.results] == [
        ("people", "failed"),
        ("places", "interrupted"),
    ]


@pytest.mark.slow
def test_on_duckdb_processes_extract_at_the_same_time_and_load_one_after_another(
    prefect_api: None, tmp_path: Path
) -> None:
    load = create_run_pipeline_flow(
        functools.partial(parts.into_duckdb, str(tmp_path)),
        functools.partial(parts.shop, str(tmp_path), NAMES, together=True),
        decompose="parallel",
        task_runner=ProcessPoolTaskRunner(max_workers=2),
        store_trace_info=True,
        verify=True,
    )

    # Each waits, while it extracts, until the other one does so too.
    load()

    # And the first one to load went on only when the other one had something to load.
    assert not (tmp_path / "overlap").exists()
    with duckdb.connect(str(tmp_path / "warehouse.duckdb"), read_only=True) as connection:
        for name in NAMES:
            assert connection.execute(f"SELECT count(*) FROM shop_data.{name}__lines").fetchall() == [(80,)]
            assert connection.execute(f"SELECT count(*) FROM shop_data.shop__{name}_trace").fetchall() == [(1,)]


class TakesSignal(ThreadPoolTaskRunner):
    """Has SIGTERM end the process, as Ray does when a flow starts it."""

    def __enter__(self) -> Any:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        return super().__enter__()


def test_a_flow_is_cancelled_though_its_task_runner_has_taken_the_signal(
    prefect_api: None, database: str, tmp_path: Path
) -> None:
    (tmp_path / "waits_people").touch()
    load = create_run_pipeline_flow(
        functools.partial(parts.into_postgres_at, str(tmp_path), database),
        functools.partial(parts.shop, str(tmp_path), ["people"]),
        decompose="parallel",
        task_runner=TakesSignal(),  # pyright: ignore[reportArgumentType]
    )

    with terminated_at(tmp_path / "extracts_people"), pytest.raises(TerminationSignal):
        load.with_options(flow_run_name="ended in spite of all")()

    assert (tmp_path / "told_people").exists()
    assert ended_as("ended in spite of all")[0] == "Cancelled"


@pytest.mark.parametrize("mode", ["parallel", "none"])
def test_an_object_is_refused_before_anything_runs_where_tasks_leave_the_process(
    prefect_api: None, tmp_path: Path, mode: Any
) -> None:
    pipeline = parts.into_duckdb(str(tmp_path))
    load = create_run_pipeline_flow(
        pipeline,
        functools.partial(parts.shop, str(tmp_path), NAMES),
        decompose=mode,
        task_runner=ProcessPoolTaskRunner(max_workers=1),
    )

    with pytest.raises(CallableNeededError, match=r"Tasks of a ProcessPoolTaskRunner[\s\S]*def build_pipeline"):
        load()
    assert not (tmp_path / "warehouse.duckdb").exists()
