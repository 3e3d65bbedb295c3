"""Send what a run tells as Prefect's events, with the run that they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events.schemas.events import Event, RelatedResource, Resource

from prefect_dlt.events import EventDraft
from prefect_dlt.publisher import Run, publisher

MOST_TAGS = 20
"""Tags of a run that are told of; an event has room for 100 related resources."""


def emit(drafts: Iterable[EventDraft], resources: list[RelatedResource], run: Run) -> None:
    """Hand events of a run to the publisher; returns at once.

    Args:
        drafts: The events; of too many, the publisher drops the first.
        resources: What `run_resources` gave while the run went on.
        run: The run that they belong to.
    """
    sender = publisher()
    for event in to_events(drafts, resources):
        sender.emit(event, run)


def run_resources() -> list[RelatedResource]:
    """Return the run that this is called in, as the related resources that Prefect gives to events of a run.

    Prefect asks its API for the names of flow, deployment and work pool; here, what the run knows by itself has to do:
    deployment, work queue and work pool come without a name.
    """
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    flow_run = flow.flow_run if flow is not None else None
    found: list[RelatedResource] = []
    if isinstance(flow_run, FlowRun):
        flow_name = flow.flow.name if flow is not None and flow.flow is not None else None
        found += [
            *_resource("flow-run", flow_run.id, flow_run.name),
            *_resource("flow", flow_run.flow_id, flow_name),
            *_resource("deployment", flow_run.deployment_id),
            *_resource("work-queue", flow_run.work_queue_id, flow_run.work_queue_name),
            *_resource("work-pool", flow_run.work_pool_id, flow_run.work_pool_name),
        ]
    elif task is not None:
        found += _resource("flow-run", task.task_run.flow_run_id)
    if task is not None:
        found += _resource("task-run", task.task_run.id, task.task_run.name)
    tags = {*(flow_run.tags if isinstance(flow_run, FlowRun) else ()), *(task.task_run.tags if task else ())}
    return found + [
        RelatedResource({"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"})
        for tag in sorted(tags)[:MOST_TAGS]
    ]


def to_events(drafts: Iterable[EventDraft], run: list[RelatedResource]) -> list[Event]:
    """Return drafts as events of a run, in their order."""
    return [
        Event(
            event=draft.name,
            resource=Resource(dict(draft.resource)),
            related=[*run, *(RelatedResource(dict(labels)) for labels in draft.related)],
            payload=dict(draft.payload),
        )
        for draft in drafts
    ]


def _resource(kind: str, identity: UUID | None, name: str | None = None) -> list[RelatedResource]:
    if identity is None:
        return []
    labels = {"prefect.resource.id": f"prefect.{kind}.{identity}", "prefect.resource.role": kind}
    return [RelatedResource(labels | ({"prefect.resource.name": name} if name else {}))]
