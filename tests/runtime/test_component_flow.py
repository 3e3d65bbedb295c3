"""A part in a flow run of its own goes on where earlier ones have ended."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.destinations.impl.duckdb.duck import DuckDbClient
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Crashed, Running

from prefect_dlt import component_flow
from prefect_dlt.abandoned import begun, home_of, place_of
from prefect_dlt.component_flow import load_here
from prefect_dlt.component_load import WHOLE, ComponentLoad
from prefect_dlt.results import ComponentResult
from prefect_dlt.signs_of_life import SignsOfLife, runs_of, tag_at, tag_of
from prefect_dlt.told import Begun
from tests.runtime.conftest import count

pytestmark = pytest.mark.usefixtures("prefect_api")

ROWS = 10


@dlt.source
def two() -> Any:
    """Two tables in one load package."""
    return [dlt.resource([{"id": number} for number in range(ROWS)], name=name) for name in ("a", "b")]


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def name(tmp_path: Path) -> str:
    """The name of a pipeline of the test's own: flow runs of other tests are not its."""
    return f"shop_{abs(hash(tmp_path))}"


def load(make: Callable[[], Pipeline], **runner_options: Any) -> ComponentResult:
    """Load both tables in a flow run, as a worker does."""
    work = ComponentLoad(make, two, runner_options)

    @flow
    def part() -> ComponentResult:
        return load_here(work, WHOLE, None, {})

    return part()


def run_elsewhere(client: SyncPrefectClient, pipeline: Pipeline) -> FlowRun:
    """Return a flow run of the same part on some worker."""

    @flow
    def part() -> None:
        """Stand for what a worker runs."""

    tags = [tag_of(pipeline.pipeline_name), tag_at(pipeline.pipeline_name, place_of(pipeline))]
    return client.create_flow_run(part, state=Running(), tags=tags)


def load_one_of_two(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> tuple[Begun, ...]:
    """Load one of two tables of a package, and fail at the other one; return what was begun."""
    pipeline.extract(two())
    pipeline.normalize()
    packages = tuple(begun(pipeline))
    create, loaded = DuckDbClient.create_load_job, set[str]()

    def refuse_the_second(self: Any, table: Any, *args: Any, **kwargs: Any) -> Any:
        loaded.update({table["name"]} & {"a", "b"})
        if len(loaded) == 2:
            raise ConnectionError("the container is evicted")
        return create(self, table, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setenv("LOAD__WORKERS", "1")
        patch.setattr(DuckDbClient, "create_load_job", refuse_the_second)
        with pytest.raises((ConnectionError, PipelineStepFailed)):
            pipeline.load()
    return packages


@pytest.mark.parametrize("home", [None, "what the directory was called before"])
def test_another_container_with_the_same_volume_finishes_what_waits_there(
    home: str | None,
    client: SyncPrefectClient,
    name: str,
    pipeline: Callable[..., Pipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "pod-1")
    shop = pipeline(name)
    packages = load_one_of_two(shop, monkeypatch)
    assert count(shop, "a") + count(shop, "b") == ROWS
    ended = run_elsewhere(client, shop)
    SignsOfLife(ended.id, home or home_of(shop)).tell(begun=packages)
    client.set_flow_run_state(ended.id, Crashed(), force=True)

    monkeypatch.setattr(socket, "gethostname", lambda: "pod-2")
    load(lambda: pipeline(name))

    # What was waiting, and what this run has extracted.
    assert {table: count(shop, table) for table in "ab"} == {"a": 2 * ROWS, "b": 2 * ROWS}


def test_what_was_left_in_another_dataset_is_left_to_runs_that_load_there(
    client: SyncPrefectClient, name: str, tmp_path: Path
) -> None:
    def into(dataset: str, folder: str = "here") -> Pipeline:
        database = dlt.destinations.duckdb(str(tmp_path / "warehouse.duckdb"))
        return dlt.pipeline(name, pipelines_dir=str(tmp_path / folder), destination=database, dataset_name=dataset)

    ended = run_elsewhere(client, into("prod", "there"))
    SignsOfLife(ended.id, "there").tell(begun=(Begun("17.1", (("a",),)),))
    client.set_flow_run_state(ended.id, Crashed(), force=True)

    def is_settled() -> bool:
        (told,) = [run.told for run in runs_of(client, tag_of(name)) if run.flow_run.id == ended.id]
        return told.is_settled

    load(lambda: into("dev"))
    assert not is_settled()
    load(lambda: into("prod"))
    assert is_settled()


def test_what_is_loaded_does_not_fail_when_its_result_cannot_be_told(
    name: str, pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = SignsOfLife.tell

    def refuse_results(self: SignsOfLife, **changes: Any) -> None:
        if "result" in changes:
            raise ConnectionError("the API is away")
        tell(self, **changes)

    monkeypatch.setattr(SignsOfLife, "tell", refuse_results)

    assert load(lambda: pipeline(name)).error is None
    assert count(pipeline(name), "a") == ROWS


def test_a_part_gives_signs_of_life_while_it_takes_back_what_was_left(
    client: SyncPrefectClient, name: str, pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = run_elsewhere(client, pipeline(name))
    SignsOfLife(ended.id, "there").tell(begun=(Begun("17.1", (("a",),)),))
    client.set_flow_run_state(ended.id, Crashed(), force=True)
    alive: list[bool] = []

    def look(*args: Any) -> list[str]:
        alive.append("signs-of-life" in {thread.name for thread in threading.enumerate()})
        return []

    monkeypatch.setattr(component_flow, "take_back", look)
    load(lambda: pipeline(name))

    assert alive == [True]


def test_what_waits_here_is_put_aside_when_it_was_loaded_elsewhere_since(
    client: SyncPrefectClient, name: str, pipeline: Callable[..., Pipeline]
) -> None:
    shop = pipeline(name)
    shop.extract(two())
    elsewhere = run_elsewhere(client, shop)
    SignsOfLife(elsewhere.id, "there").tell()
    client.set_flow_run_state(elsewhere.id, Completed(), force=True)

    load(lambda: pipeline(name))

    # That this run works here as well, as it has told before, says nothing of what waits.
    assert count(shop, "a") == ROWS
