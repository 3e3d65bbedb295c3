"""What flow runs of components tell by way of Prefect's API: that they live, what they have begun, what came of it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Crashed
from tenacity import Retrying, stop_after_attempt, wait_exponential

from prefect_dlt.stop import pause
from prefect_dlt.told import Told

TYPE = "result"
"""Type of the artifact; Prefect's UI shows such a one with its run, and not among all artifacts."""

BEAT_SECONDS = 5.0
"""Pause between two signs of life."""

JOIN_WITHIN = 10.0
"""Seconds that the last sign of life is given to arrive when the part has ended."""

LOST_AFTER = 90.0
"""Seconds without a sign of life after which a flow run is taken for lost with its worker."""

ATTEMPTS = 5
"""How often it is tried to tell something that the next steps rely on."""

MOST_RUNS = 50
"""Flow runs of a component that are looked back at."""


def tag_of(pipeline_name: str) -> str:
    """Return the tag that the flow runs of a component are submitted with, by the name of its pipeline."""
    return f"component:{pipeline_name}"


def tag_at(pipeline_name: str, place: str) -> str:
    """Return the tag of those that load it to one place, which only they themselves know."""
    return f"{tag_of(pipeline_name)}:{place}"


class SignsOfLife:
    """Tells about this flow run, until it ends."""

    def __init__(self, flow_run_id: UUID, home: str) -> None:
        self.flow_run_id = flow_run_id
        self._told = Told(home)
        self._artifact_id: UUID | None = None
        self._telling = threading.Lock()
        self._ended = threading.Event()

    @property
    def home(self) -> str:
        """The working directory, as told from all others."""
        return self._told.home

    @property
    def artifact_id(self) -> UUID | None:
        """What this flow run tells is there; None before it has told anything."""
        return self._artifact_id

    def tell(self, **changes: Any) -> None:
        """Tell something new, and wait until it has arrived; fails when it does not."""
        again = Retrying(stop=stop_after_attempt(ATTEMPTS), wait=wait_exponential(), sleep=pause, reraise=True)
        again(self._send, **changes)

    def _send(self, **changes: Any) -> None:
        with self._telling, get_client(sync_client=True) as client:
            self._told = replace(self._told, **changes)
            data = self._told.as_json()
            if self._artifact_id is None:
                artifact = ArtifactCreate(type=TYPE, data=data, flow_run_id=self.flow_run_id)
                self._artifact_id = client.create_artifact(artifact).id
            else:
                client.update_artifact(self._artifact_id, ArtifactUpdate(data=data))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # The next one may arrive.
            with contextlib.suppress(Exception):
                self._send(beats=self._told.beats + 1)

    @contextlib.contextmanager
    def given(self) -> Generator[None]:
        """Give signs of life inside, from a thread of its own."""
        self.tell()
        # With the settings of this thread: where the API is.
        thread = threading.Thread(target=copy_context().run, args=(self._beat,), name="signs-of-life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            # A call that does not come back keeps nobody: the thread ends with the process.
            thread.join(JOIN_WITHIN)


@dataclass(frozen=True)
class RunOfComponent:
    """A flow run of a component, and what it has told."""

    flow_run: FlowRun
    artifact: Artifact
    told: Told

    @property
    def is_completed(self) -> bool:
        """Whether it has loaded its component."""
        return self.flow_run.state is not None and self.flow_run.state.is_completed()

    @property
    def is_over(self) -> bool:
        """Whether it is in a state that it stays in."""
        return self.flow_run.state is not None and self.flow_run.state.is_final()


@dataclass
class Watched:
    """A flow run that is waited for: when it was last seen to change, by the clock of this process, and how it was."""

    flow_run: FlowRun
    told: RunOfComponent | None = None
    seen: Any = None
    seen_at: float = 0.0
    has_changed: bool = False
    is_lost: bool = False

    def note(self, client: SyncPrefectClient, flow_run: FlowRun, told: RunOfComponent | None) -> None:
        """Note how it is now; say in Prefect that it crashed when it has given no sign of life for too long."""
        self.flow_run, self.told = flow_run, told
        state = flow_run.state
        seen = (state.id if state else None, told.artifact.updated if told else None)
        if seen != self.seen:
            self.has_changed = self.seen is not None
            self.seen = seen
            self.seen_now()
        elif state is None or not (state.is_running() or state.is_cancelling()):
            self.seen_now()
        elif time.monotonic() - self.seen_at > LOST_AFTER:
            self.is_lost = True
            message = f"No sign of life for {LOST_AFTER:g} s: the worker was ended, or cannot reach Prefect's API"
            client.set_flow_run_state(flow_run.id, Crashed(message=message), force=True)
            self.flow_run = client.read_flow_run(flow_run.id)

    def seen_now(self) -> None:
        """Count the time without a sign of life from now on."""
        self.seen_at = time.monotonic()


def add_tag(client: SyncPrefectClient, flow_run_id: UUID, tag: str) -> None:
    """Give a flow run another tag."""
    tags = client.read_flow_run(flow_run_id).tags
    if tag not in tags:
        client.update_flow_run(flow_run_id, tags=[*tags, tag])


def runs_of(client: SyncPrefectClient, tag: str) -> list[RunOfComponent]:
    """Return what flow runs with a tag have told, the latest first; one that was retried may be there twice."""
    tags = FlowRunFilterTags(all_=[tag])
    flow_runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(tags=tags), sort=FlowRunSort.START_TIME_DESC, limit=MOST_RUNS
    )
    return with_what_they_told(client, flow_runs)


def with_what_they_told(client: SyncPrefectClient, flow_runs: Sequence[FlowRun]) -> list[RunOfComponent]:
    """Return what flow runs have told, the latest first; one that was retried may be there twice."""
    by_id = {run.id: run for run in flow_runs}
    # By the clock of the server: those of two machines may differ.
    artifacts = sorted(_artifacts(client, list(by_id)), key=lambda each: str(each.created), reverse=True)
    return [RunOfComponent(by_id[each.flow_run_id], each, Told.of(each.data)) for each in artifacts if each.flow_run_id]


def _artifacts(client: SyncPrefectClient, flow_run_ids: Sequence[UUID]) -> Iterable[Artifact]:
    for start in range(0, len(flow_run_ids), MOST_RUNS):
        chosen = ArtifactFilter(
            type=ArtifactFilterType(any_=[TYPE]),
            flow_run_id=ArtifactFilterFlowRunId(any_=list(flow_run_ids[start : start + MOST_RUNS])),
        )
        for artifact in client.read_artifacts(artifact_filter=chosen):
            # Prefect has artifacts of this type as well.
            data: Any = artifact.data  # pyright: ignore[reportUnknownMemberType]
            if isinstance(data, dict) and "beats" in data:
                yield artifact


def tell_of(client: SyncPrefectClient, run: RunOfComponent, change: Callable[[Told], Told]) -> None:
    """Note something in what another flow run has told, which has ended."""
    client.update_artifact(run.artifact.id, ArtifactUpdate(data=change(run.told).as_json()))
