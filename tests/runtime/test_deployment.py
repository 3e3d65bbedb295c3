"""Which deployment a flow run belongs to, asked at a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from dlt.pipeline.pipeline import Pipeline
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.states import Running

from prefect_dlt.deployment import look_up_names, names_of, note_names
from prefect_dlt.record import RunRecord

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@flow
def nightly() -> None:
    pass


@pytest.fixture
def deployed(client: SyncPrefectClient) -> FlowRun:
    """A flow run of the deployment "load" of the flow "nightly", in a work pool."""
    pool = f"pool-{uuid4().hex[:8]}"
    client.request("POST", "/work_pools/", json=WorkPoolCreate(name=pool, type="process").model_dump(mode="json"))
    flow_id = client.create_flow(nightly)
    deployment_id = client.create_deployment(flow_id, name="load", work_pool_name=pool)
    run = client.create_flow_run_from_deployment(deployment_id, name="of-tonight")
    return client.read_flow_run(run.id)


def test_a_run_of_a_deployment_tells_its_pool_at_once_and_the_api_the_deployments_name(
    client: SyncPrefectClient, deployed: FlowRun
) -> None:
    assert names_of(deployed) == {
        "Flow run": "of-tonight",
        "Deployment": str(deployed.deployment_id),
        "Work pool": deployed.work_pool_name,
    }
    for known in (deployed, None):
        assert look_up_names(client, deployed.id, known) == {
            "Flow run": "of-tonight",
            "Deployment": "nightly/load",
            "Work pool": deployed.work_pool_name,
        }


def test_a_flow_that_is_called_by_others_has_the_deployment_of_the_outermost(
    client: SyncPrefectClient, deployed: FlowRun
) -> None:
    run = deployed
    for level in range(2):
        task_run = client.create_task_run(task(lambda: None, name="call"), run.id, dynamic_key=str(level))
        run = client.create_flow_run(nightly, name=f"called-{level}", parent_task_run_id=task_run.id, state=Running())

    assert names_of(run) == {"Flow run": "called-1"}
    assert look_up_names(client, run.id, run) == {
        "Flow run": "called-1",
        "Deployment": "nightly/load",
        "Work pool": deployed.work_pool_name,
    }


def record_of(pipeline: Pipeline) -> RunRecord:
    return RunRecord.of(pipeline, {})


def test_a_run_that_was_started_by_hand_is_known_without_a_call(pipeline: Callable[..., Pipeline]) -> None:
    record, found = record_of(pipeline()), list[Any]()

    @flow
    def by_hand() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        found.extend((context.flow_run.name, note_names(record, context.flow_run.id)))

    by_hand()

    name, rest = found
    assert record.environment == {"Flow run": name}
    assert rest is None


def test_what_the_api_tells_later_leaves_what_a_report_is_being_made_of_alone(
    pipeline: Callable[..., Pipeline], client: SyncPrefectClient, deployed: FlowRun
) -> None:
    record = record_of(pipeline())
    # As in a task in another process, which has no more than the flow run's id.
    rest = note_names(record, deployed.id)
    before = record.environment = {**record.environment, "Host": "here"}

    assert rest is not None
    rest(client)

    assert before == {"Host": "here"}
    assert record.environment == {
        "Host": "here",
        "Flow run": "of-tonight",
        "Deployment": "nightly/load",
        "Work pool": deployed.work_pool_name,
    }
