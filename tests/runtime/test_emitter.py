"""Events of real runs, as a real Prefect server stores them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from dlt.pipeline.pipeline import Pipeline
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import FlowRunContext, TaskRunContext

from prefect_dlt import PrefectCollector, runner
from tests.runtime.sources import shop

GENEROUS = 60.0
"""Seconds to wait for what the server does within one or two when the machine has nothing else to do."""

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def events_of(client: SyncPrefectClient, name: str, related: str) -> list[dict[str, Any]]:
    """Return the events with this name that a resource has to do with, oldest first."""
    chosen = {"event": {"name": [name]}, "any_resource": {"id": [related]}, "order": "ASC"}
    return client.request("POST", "/events/filter", json={"filter": chosen, "limit": 50}).json()["events"]


def wait_for(condition: Callable[[], Any]) -> Any:
    """Return what a condition gives as soon as it gives something."""
    deadline = time.monotonic() + GENEROUS
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.1)
    return found


def test_a_run_tells_of_its_tables_and_what_it_loaded(
    pipeline: Callable[..., Pipeline], client: SyncPrefectClient
) -> None:
    runs: list[tuple[UUID, UUID]] = []

    @task
    def load() -> str:
        context = TaskRunContext.get()
        assert context is not None
        assert context.task_run.flow_run_id is not None
        runs.append((context.task_run.flow_run_id, context.task_run.id))
        return pipeline(progress=PrefectCollector()).run(shop()).loads_ids[0]

    @flow
    def main() -> str:
        return load.with_options(tags=["nightly"]).submit().result()

    load_id = main()

    ((flow_run_id, task_run_id),) = runs
    of_run = f"prefect.flow-run.{flow_run_id}"
    names = {"orders", "orders__items", "customers", "greetings"}
    loaded = wait_for(
        lambda: (
            len(found := events_of(client, "prefect.asset.materialization.succeeded", of_run)) == len(names) and found
        )
    )
    assert {each["payload"]["table"]: each["payload"]["rows"] for each in loaded} == {
        "orders": 2,
        "orders__items": 3,
        "customers": 3,
        "greetings": 3,
    }
    items = next(each for each in loaded if each["payload"]["table"] == "orders__items")
    assert items["resource"]["prefect.resource.id"].startswith("duckdb:///")
    assert items["resource"]["prefect.resource.id"].endswith("/warehouse.duckdb/shop_data/orders__items")
    assert items["payload"]["load_id"] == load_id
    assert items["payload"]["parent"] == "orders"
    assert {"name": "sku", "type": "text", "data_type": "text", "nullable": True} in items["payload"]["columns"]
    assert [each["prefect.resource.id"] for each in items["related"] if each["prefect.resource.role"] == "asset"] == [
        "dlt://shop"
    ]
    assert [
        each["resource"]["prefect.resource.id"] for each in events_of(client, "prefect.asset.referenced", of_run)
    ] == ["dlt://shop"]
    # The server keeps events some at a time, and these come last.
    changed = wait_for(lambda: len(found := events_of(client, "dlt.schema.changed", of_run)) == len(names) and found)
    assert {each["resource"]["dlt.table"]: each["resource"]["dlt.table.change"] for each in changed} == dict.fromkeys(
        names, "new"
    )
    roles = {each["prefect.resource.role"]: each for each in changed[0]["related"]}
    assert roles["task-run"]["prefect.resource.id"] == f"prefect.task-run.{task_run_id}"
    assert roles["flow"]["prefect.resource.name"] == "main"
    assert roles["tag"]["prefect.resource.id"] == "prefect.tag.nightly"
    # Prefect's own assets need a task of their own; these cost none.
    of_flow = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    assert [run.id for run in client.read_task_runs(flow_run_filter=of_flow)] == [task_run_id]


@pytest.mark.slow
def test_assets_can_be_left_out(pipeline: Callable[..., Pipeline], client: SyncPrefectClient) -> None:
    @flow
    def main() -> str:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        pipeline(progress=PrefectCollector(assets=False)).run(shop())
        return f"prefect.flow-run.{context.flow_run.id}"

    of_run = main()

    # Changes are sent after assets.
    wait_for(lambda: len(events_of(client, "dlt.schema.changed", of_run)) == 4)
    assert events_of(client, "prefect.asset.materialization.succeeded", of_run) == []


@pytest.mark.slow
def test_changes_of_what_was_pending_and_of_what_is_new_are_told_both(
    pipeline: Callable[..., Pipeline], client: SyncPrefectClient
) -> None:
    pipeline().extract([{"id": 1}], table_name="orders")

    @flow
    def main() -> str:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        runner(pipeline(progress=PrefectCollector())).run([{"id": 1}], table_name="customers")
        return f"prefect.flow-run.{context.flow_run.id}"

    of_run = main()

    changed = wait_for(lambda: len(found := events_of(client, "dlt.schema.changed", of_run)) > 1 and found)
    assert sorted(each["resource"]["dlt.table"] for each in changed) == ["customers", "orders"]
