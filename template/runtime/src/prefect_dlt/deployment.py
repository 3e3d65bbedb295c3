"""Which deployment a flow run belongs to, and where it runs: what it knows itself, and what Prefect's API knows."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from prefect_dlt.look_ups import LookUp
from prefect_dlt.record import RunRecord

MOST_LEVELS = 5
"""How far up the flow that called this one, and the one that called that, are looked at."""


def note_names(record: RunRecord, flow_run_id: UUID) -> LookUp | None:
    """Add to a run's environment what is known of flow run, deployment and work pool without a call of the API.

    Args:
        record: Of a run in the flow run that this is called in.
        flow_run_id: That flow run.

    Returns:
        What adds the rest, in a dict of its own, since reports may be reading the present one; None if there is none.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    # A flow that is called in a task, and a task in another process, may have the context of another flow run.
    known = run if run is not None and run.id == flow_run_id else None
    # The next of several steps may know by name already what the run itself has an id of.
    if known is not None and record.environment.get("Flow run") != known.name:
        record.environment = {**record.environment, **names_of(known)}
    if known is not None and known.deployment_id is None and known.parent_task_run_id is None:
        return None

    def note_the_rest(client: SyncPrefectClient) -> None:
        names = look_up_names(client, flow_run_id, known)
        record.environment = {**record.environment, **names}

    return note_the_rest


def names_of(run: FlowRun) -> dict[str, str]:
    """Return names and values, as text, of what a flow run says of itself; of a deployment that is its id."""
    names = {"Flow run": run.name}
    if run.deployment_id is not None:
        names["Deployment"] = str(run.deployment_id)
    if run.work_pool_name:
        names["Work pool"] = run.work_pool_name
    return names


def look_up_names(client: SyncPrefectClient, flow_run_id: UUID, known: FlowRun | None) -> dict[str, str]:
    """Return names and values, as text, of a flow run, and of deployment and work pool where it has them.

    Args:
        client: Of the API.
        flow_run_id: The flow run.
        known: The same, when it need not be asked for.
    """
    run = known or client.read_flow_run(flow_run_id)
    name = run.name
    # A flow that is called by another one has no deployment of its own.
    for _ in range(MOST_LEVELS):
        if run.deployment_id is not None or run.parent_task_run_id is None:
            break
        run = _caller(client, run.parent_task_run_id) or run
    names = {**names_of(run), "Flow run": name}
    if run.deployment_id is not None:
        deployment = client.read_deployment(run.deployment_id)
        names["Deployment"] = f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"
    return names


def _caller(client: SyncPrefectClient, task_run_id: UUID) -> FlowRun | None:
    flow_run_id = client.read_task_run(task_run_id).flow_run_id
    return client.read_flow_run(flow_run_id) if flow_run_id is not None else None
