"""Which deployment a flow run belongs to, and where it runs, as Prefect's API knows it."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

MOST_LEVELS = 5
"""How far up the flow that called this one, and the one that called that, are looked at."""


def look_up_deployment(flow_run_id: UUID, into: dict[str, str], client: SyncPrefectClient) -> None:
    """Add to a run's environment the names of its flow run, and of deployment and work pool where it has them.

    Args:
        flow_run_id: The flow run that loads.
        into: Names and values, as text; filled with what the API tells.
        client: Of the API.
    """
    run = client.read_flow_run(flow_run_id)
    into["Flow run"] = run.name
    # A flow that is called by another one has no deployment of its own.
    for _ in range(MOST_LEVELS):
        if run.deployment_id is not None or run.parent_task_run_id is None:
            break
        run = _caller(client, run.parent_task_run_id) or run
    if run.work_pool_name:
        into["Work pool"] = run.work_pool_name
    if run.deployment_id is not None:
        deployment = client.read_deployment(run.deployment_id)
        into["Deployment"] = f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"


def _caller(client: SyncPrefectClient, task_run_id: UUID) -> FlowRun | None:
    flow_run_id = client.read_task_run(task_run_id).flow_run_id
    return client.read_flow_run(flow_run_id) if flow_run_id is not None else None
