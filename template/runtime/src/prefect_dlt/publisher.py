"""Send artifacts to Prefect's API from a thread of its own, so that no load waits for it or fails with it."""

from __future__ import annotations

import atexit
import contextvars
import logging
import os
import threading
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

logger = logging.getLogger("prefect_dlt")

FLUSH_PERIOD = 1.0
"""Seconds between two rounds of API calls; of what is put meanwhile, the latest version of each artifact is sent."""

REQUEST_TIMEOUT = 2.0
"""Seconds that one API call may take; Prefect's own 60, with five retries, would hold a run up for minutes."""


@dataclass(frozen=True)
class Place:
    """Which artifact: its key, and the run that it belongs to. The same key in another run is its next version."""

    key: str
    flow_run_id: UUID | None
    task_run_id: UUID | None


@dataclass(frozen=True)
class Draft:
    """What an artifact shows: its type, one line of description, and its data."""

    type: Literal["markdown", "progress"]
    description: str
    data: str | float


class Publisher:
    """Keeps the latest draft of each artifact and sends it from a daemon thread."""

    def __init__(self, context: contextvars.Context) -> None:
        self._drafts: dict[Place, Draft] = {}
        self._artifact_ids: dict[Place, UUID] = {}
        self._changed = threading.Condition()
        self._is_sending = False
        self._is_closing = False
        self._waiting = 0
        self._failed_rounds = 0
        self._is_failing = False
        # A new thread has no Prefect settings of its own; it takes those of the run that starts it.
        self._thread = threading.Thread(
            target=context.run, args=(self._work,), name="prefect-dlt-publisher", daemon=True
        )
        self._thread.start()

    def put(self, place: Place, draft: Draft) -> None:
        """Take a draft, in place of the one that waits for the same artifact; returns at once."""
        with self._changed:
            self._drafts[place] = draft
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until everything put so far is sent, at most `timeout` seconds; tell whether it was.

        Ends early when the API does not take it: what is left is tried again as long as the process lives.
        """
        with self._changed:
            # A round that is under way does not have the latest drafts; its failure says nothing about them.
            failed_rounds = self._failed_rounds + self._is_sending
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_idle() or self._failed_rounds > failed_rounds, timeout)
            self._waiting -= 1
            return self._is_idle()

    def _is_idle(self) -> bool:
        return not self._drafts and not self._is_sending

    def forget(self, flow_run_id: UUID | None, task_run_id: UUID | None) -> None:
        """Drop what is remembered of the artifacts of a run that has ended."""
        with self._changed:
            for place in list(self._artifact_ids):
                if (place.flow_run_id, place.task_run_id) == (flow_run_id, task_run_id):
                    del self._artifact_ids[place]

    def close(self) -> None:
        """End the thread; what has not been sent by then is dropped. For the end of the process."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(REQUEST_TIMEOUT)

    def _work(self) -> None:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: REQUEST_TIMEOUT}):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._drafts or self._is_closing)
                    if self._is_closing:
                        return
                    drafts, self._drafts = self._drafts, {}
                    self._is_sending = True
                unsent = self._send(drafts)
                with self._changed:
                    # What was put meanwhile is newer than what could not be sent.
                    self._drafts = {**unsent, **self._drafts}
                    self._is_sending = False
                    self._failed_rounds += bool(unsent)
                    self._is_failing = bool(unsent)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._waiting or self._is_closing, FLUSH_PERIOD)

    def _send(self, drafts: dict[Place, Draft]) -> dict[Place, Draft]:
        """Send drafts; return those that the API did not take."""
        unsent = dict(drafts)
        try:
            with get_client(sync_client=True, httpx_settings={"timeout": REQUEST_TIMEOUT}) as client:
                for place, draft in drafts.items():
                    self._send_one(client, place, draft)
                    del unsent[place]
        except Exception as error:  # noqa: BLE001 - no report is worth the thread that sends the next ones
            if not self._is_failing:
                logger.warning(
                    "Prefect's API did not take %d artifacts (%s); the load goes on, and they are sent when it answers",
                    len(unsent),
                    type(error).__name__,
                )
        return unsent

    def _send_one(self, client: SyncPrefectClient, place: Place, draft: Draft) -> None:
        known = self._artifact_ids.get(place)
        if known is not None:
            client.update_artifact(known, ArtifactUpdate(data=draft.data, description=draft.description))
            return
        created = client.create_artifact(
            ArtifactCreate(
                key=place.key,
                type=draft.type,
                data=draft.data,
                description=draft.description,
                flow_run_id=place.flow_run_id,
                task_run_id=place.task_run_id,
            )
        )
        self._artifact_ids[place] = created.id


_publishers: dict[tuple[int, Any], Publisher] = {}
_publishers_lock = threading.Lock()


def publisher() -> Publisher:
    """Return the publisher of this process for the API that the current run reports to."""
    # By process too: a fork copies this dictionary, but not the thread behind a publisher.
    key = (os.getpid(), PREFECT_API_URL.value())
    with _publishers_lock:
        if key not in _publishers:
            _publishers[key] = Publisher(contextvars.copy_context())
        return _publishers[key]


@atexit.register
def _close_publishers() -> None:
    # A daemon thread that is still there when the interpreter goes keeps it from tidying up, which DuckDB complains of.
    for (process, _), each in _publishers.items():
        if process == os.getpid():
            each.close()
