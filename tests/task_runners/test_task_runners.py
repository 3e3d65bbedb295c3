"""A collector in tasks of every kind of task runner: what is loaded, and what arrives in Prefect."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import duckdb
import pytest
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.context import FlowRunContext
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from prefect_dlt import PrefectCollector
from tests.task_runners import loads
from tests.task_runners.conftest import processes


def threads(request: pytest.FixtureRequest) -> TaskRunner[Any]:
    return ThreadPoolTaskRunner(max_workers=2)


def process(request: pytest.FixtureRequest) -> TaskRunner[Any]:
    return ProcessPoolTaskRunner(max_workers=1)


def dask(request: pytest.FixtureRequest) -> TaskRunner[Any]:
    from prefect_dask import DaskTaskRunner

    return DaskTaskRunner(address=request.getfixturevalue("dask_address"))


def ray(request: pytest.FixtureRequest) -> TaskRunner[Any]:
    request.getfixturevalue("ray_instance")
    from prefect_ray import RayTaskRunner

    return RayTaskRunner()


def run_flow(task_runner: TaskRunner[Any], act: Callable[[], Any]) -> Any:
    @flow(task_runner=task_runner)
    def main() -> Any:
        return act()

    return main()


def run_async_flow(task_runner: TaskRunner[Any], act: Callable[[], Any]) -> Any:
    @flow(task_runner=task_runner)
    async def main() -> Any:
        return act()

    return asyncio.run(cast("Any", main()))


@dataclass
class Outcome:
    """What a flow did: in which folder and flow run, what each task told, and with which error one failed."""

    folder: Path
    flow_run_id: Any
    told: dict[str, loads.Told]
    failed_task_run_id: str
    error: BaseException
    retried_task_run_id: str
    left_behind: set[int]

    def artifacts(self) -> dict[str, dict[str, Artifact]]:
        """Return the flow run's artifacts by task run and key; a key that comes twice in a task run is an error."""
        filters = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[self.flow_run_id]))
        found: dict[str, dict[str, Artifact]] = defaultdict(dict)
        with get_client(sync_client=True) as client:
            for artifact in client.read_artifacts(artifact_filter=filters):
                assert artifact.key not in found[str(artifact.task_run_id)]
                found[str(artifact.task_run_id)][str(artifact.key)] = artifact
        return found

    def rows(self, name: str, table: str) -> int:
        with duckdb.connect(str(self.folder / f"{name}.duckdb"), read_only=True) as connection:
            found = connection.execute(f"SELECT count(*) FROM shop_data.{table}").fetchone()
        return int(found[0]) if found else 0


@pytest.fixture(
    scope="module",
    # Flows that are not async run on each of them in test_parts.py.
    params=[
        pytest.param((threads, run_flow), id="threads, flow"),
        pytest.param((threads, run_async_flow), id="threads, async flow"),
        *(
            pytest.param((kind, run_async_flow), id=f"{kind.__name__}, async flow", marks=pytest.mark.slow)
            for kind in (process, dask, ray)
        ),
    ],
)
def kind(request: pytest.FixtureRequest) -> Any:
    """A kind of task runner, and how a flow is run on it."""
    return request.param


@pytest.fixture(scope="module")
def task_runner(request: pytest.FixtureRequest, kind: Any, prefect_api: None, home_of_workers: Path) -> TaskRunner[Any]:
    """A task runner of each kind."""
    return kind[0](request)


@pytest.fixture(scope="module")
def outcome(kind: Any, task_runner: TaskRunner[Any], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What became of five tasks: plain, a coroutine, with a collector of the flow's, with factories, and in vain."""
    folder = tmp_path_factory.mktemp("shop")

    def act() -> Outcome:
        collector = PrefectCollector(1, logger=get_run_logger())
        futures = {
            "plain": loads.load.submit(str(folder), "plain"),
            "coroutine": loads.load_async.submit(str(folder), "coroutine"),
            "handed": loads.load.submit(str(folder), "handed", collector),
        }
        retried = loads.task_with_factories(str(folder), "retried").submit()
        failed = loads.load_in_vain.submit(str(folder), "failed")
        with pytest.raises(Exception, match="is dead") as raised:
            failed.result()
        told = {name: future.result() for name, future in futures.items()}
        assert retried.result().has_failed_jobs is False
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        ids = str(failed.task_run_id), str(retried.task_run_id)
        return Outcome(folder, context.flow_run.id, told, ids[0], raised.value, ids[1], set())

    before = processes()
    result = kind[1](task_runner.duplicate(), act)
    result.left_behind = processes() - before
    return result


def test_each_task_loads(outcome: Outcome) -> None:
    for name in (*outcome.told, "retried"):
        assert outcome.rows(name, "orders") == loads.ROWS
        assert outcome.rows(name, "orders__lines") == 2 * loads.ROWS


def test_tasks_run_in_other_processes_where_the_task_runner_says_so(
    outcome: Outcome, task_runner: TaskRunner[Any]
) -> None:
    is_here = {told.process == os.getpid() for told in outcome.told.values()}
    assert is_here == {isinstance(task_runner, ThreadPoolTaskRunner)}


def test_the_artifacts_of_each_task_are_under_its_own_run(outcome: Outcome) -> None:
    artifacts = outcome.artifacts()

    assert set(artifacts) == {
        outcome.failed_task_run_id,
        outcome.retried_task_run_id,
        *(told.task_run_id for told in outcome.told.values()),
    }
    for name, told in outcome.told.items():
        own = artifacts[told.task_run_id]
        assert {f"{name}-extract", f"{name}-normalize", f"{name}-load", f"{name}-summary"} <= set(own)
        assert all(key.startswith(f"{name}-") for key in own)
        assert own[f"{name}-load"].data == 100.0
        assert str(own[f"{name}-summary"].description).startswith("Loaded · 300 rows · 2 tables")


def test_a_retry_is_in_the_report(outcome: Outcome) -> None:
    summary = outcome.artifacts()[outcome.retried_task_run_id]["retried-summary"]
    assert str(summary.description).startswith("Loaded · 300 rows")
    assert "the shop does not answer" in str(summary.data)


def test_a_failed_load_leaves_its_error_without_secrets(outcome: Outcome) -> None:
    summary = outcome.artifacts()[outcome.failed_task_run_id]["failed-summary"]
    assert "Traceback" in str(summary.data)
    assert "is dead" in str(summary.data)
    assert "s3cret" not in str(summary.data)


def test_nothing_is_warned_of(outcome: Outcome) -> None:
    # On threads, a task also hears of the retry of its neighbour.
    heard = {line for told in outcome.told.values() for line in told.warnings if "'retried'" not in line}
    assert heard == set()


def test_processes_end_with_the_flow(outcome: Outcome) -> None:
    assert outcome.left_behind == set()
