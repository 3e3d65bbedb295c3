"""Events of real runs in a real Prefect server: what is stored, and what an automation makes of it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from dlt.common.pipeline import SupportsPipeline
from dlt.pipeline.pipeline import Pipeline
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.context import TaskRunContext
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL

from prefect_dlt import CallbackCollector
from prefect_dlt.assets import asset_events
from prefect_dlt.emitter import run_resources, to_events
from prefect_dlt.events import schema_events
from prefect_dlt.record import RunRecord
from tests.runtime.sources import shop

PREFECT = [sys.executable, "-m", "prefect"]
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"

GENEROUS = 60.0
"""Seconds to wait for what the server does within one or two when the machine has nothing else to do."""

pytestmark = pytest.mark.usefixtures("prefect_api")


class EmittingCollector(CallbackCollector):
    """What a `PrefectCollector` does about events, and nothing else."""

    def run_started(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        self.resources = run_resources()

    def run_ended(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        events = to_events([*schema_events(record), *asset_events(record)], self.resources)
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json") for event in events])


@pytest.fixture
def client() -> Any:
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
        return pipeline(progress=EmittingCollector()).run(shop()).loads_ids[0]

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
    changed = events_of(client, "dlt.schema.changed", of_run)
    assert {each["resource"]["dlt.table"]: each["resource"]["dlt.table.change"] for each in changed} == dict.fromkeys(
        names, "new"
    )
    roles = {each["prefect.resource.role"]: each for each in changed[0]["related"]}
    assert roles["task-run"]["prefect.resource.id"] == f"prefect.task-run.{task_run_id}"
    assert roles["flow"]["prefect.resource.name"] == "main"
    assert roles["tag"]["prefect.resource.id"] == "prefect.tag.nightly"


def test_an_automation_acts_on_the_table_it_names_and_on_no_other(
    pipeline: Callable[..., Pipeline], client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The automations are those of the how-to page: one holds a deployment, the other one runs a flow."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("react_to_schema_changes")
    teller = example.tell_of_schema_change.to_deployment("teller", triggers=[example.ANY_TABLE_OF_THE_SHOP]).apply()
    subprocess.run(
        [*PREFECT, "automation", "create", "--from-file", EXAMPLES / "hold_on_type_change.yaml"],
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        check=True,
    )

    @flow
    def load(table: str, value: Any) -> None:
        pipeline(progress=EmittingCollector()).run([{"id": value}], table_name=table)

    nightly = client.create_deployment(client.create_flow(load), "nightly")

    def run_nightly(table: str, value: Any) -> None:
        parameters = {"table": table, "value": value}
        run_flow(load, flow_run=client.create_flow_run_from_deployment(nightly), parameters=parameters)

    def acted(name: str) -> list[dict[str, Any]]:
        found = events_of(client, "prefect.automation.action.executed", f"prefect.deployment.{name}")
        return [each["payload"] for each in found]

    def told() -> list[dict[str, Any]]:
        chosen = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[teller]))
        return [run.parameters for run in client.read_flow_runs(flow_run_filter=chosen)]

    run_nightly("orders", 1)
    run_nightly("customers", 1)
    run_nightly("customers", "one")
    wait_for(lambda: len(told()) == 3)
    assert not client.read_deployment(nightly).paused

    run_nightly("orders", "one")
    wait_for(lambda: client.read_deployment(nightly).paused)
    wait_for(lambda: len(told()) == 4)

    # The server takes events in their order: had another table held the deployment, it would have done so before.
    assert len(wait_for(lambda: acted(str(nightly)))) == 1
    variant = {"name": "id__v_text", "change": "variant", "type": "text", "variant_of": "id"}
    assert {"table": "orders", "columns": [variant]} in told()
