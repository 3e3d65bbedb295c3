"""Keep a component to one flow run at a time, on whatever machine; the lock of a working directory is one machine's."""

from __future__ import annotations

import time

from dlt.pipeline.pipeline import Pipeline
from prefect.client.orchestration import SyncPrefectClient

from prefect_dlt.errors import ComponentRunsElsewhereError
from prefect_dlt.signs_of_life import RunOfComponent, SignsOfLife, Watched, runs_of
from prefect_dlt.stop import pause

POLL_SECONDS = 2.0
"""Pause between two looks at the other flow runs."""


def wait_for_runs_elsewhere(
    client: SyncPrefectClient, signs: SignsOfLife, tag: str, pipeline: Pipeline, timeout: float
) -> None:
    """Wait until no earlier flow run of the component is at work in another working directory.

    One that does not give a sign of life meanwhile is taken for lost after a while, and called crashed.

    Args:
        client: Asks Prefect's API.
        signs: What this flow run tells; it has begun to.
        tag: The tag that all flow runs of the component to this place have, and had before they told anything.
        pipeline: The pipeline of the component.
        timeout: Longest wait for one that is alive, in seconds.

    Raises:
        ComponentRunsElsewhereError: If one is alive, and has not ended in time.
    """
    watched: dict[object, Watched] = {}
    began = time.monotonic()
    while others := _at_work(runs_of(client, tag), signs):
        for run in others:
            each = watched.setdefault(run.flow_run.id, Watched(run.flow_run))
            each.note(client, run.flow_run, run)
            if each.has_changed and time.monotonic() - began >= timeout:
                raise ComponentRunsElsewhereError(pipeline.pipeline_name, run.flow_run.name, timeout)
        pause(POLL_SECONDS)


def _at_work(runs: list[RunOfComponent], signs: SignsOfLife) -> list[RunOfComponent]:
    """Return the flow runs before this one that are at work elsewhere; those after it wait for this one."""
    own = next((number for number, run in enumerate(runs) if run.artifact.id == signs.artifact_id), -1)
    return [
        run
        for run in runs[own + 1 :]
        if run.flow_run.id != signs.flow_run_id
        and run.told.home != signs.home
        and run.told.result is None
        and run.flow_run.state is not None
        and (run.flow_run.state.is_running() or run.flow_run.state.is_cancelling())
    ]
