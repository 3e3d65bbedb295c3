"""Send artifacts to Prefect's API from a thread of its own, so that no load waits for it or fails with it."""

from __future__ import annotations

import atexit
import contextvars
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from httpx import HTTPStatusError, Limits
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.events.schemas.events import Event
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

logger = logging.getLogger("prefect_dlt")

FLUSH_PERIOD = 1.0
"""Seconds between two rounds of API calls; of what is put meanwhile, the latest version of each artifact is sent."""

REQUEST_TIMEOUT = 2.0
"""Seconds that one API call may take; Prefect's own 60, with five retries, would hold a run up for minutes."""

KEEPALIVE = 4.0
"""Seconds that an idle connection is used again; Prefect's server closes it after 5."""

REFUSALS = frozenset({400, 409, 413, 422})
"""Answers that mean this artifact, and will be the same next time; every other failure may pass."""

NOT_FOUND = 404
"""Answer to an update when the artifact has been deleted: it is created anew."""


Run = tuple[UUID | None, UUID | None]
"""Which run: the ids of its flow run and its task run."""


@dataclass(frozen=True)
class Place:
    """Which artifact: its key, and the run that it belongs to. The same key in another run is its next version."""

    key: str
    flow_run_id: UUID | None
    task_run_id: UUID | None


@dataclass(frozen=True)
class Draft:
    """What an artifact shows: its type, one line of description, and its data.

    The data of a table is a JSON text: a list of objects, one for each row, with the columns as keys.
    """

    type: Literal["markdown", "progress", "table"]
    description: str
    data: str | float


class Publisher:
    """Keeps the latest draft of each artifact and sends it from a daemon thread."""

    def __init__(self, context: contextvars.Context) -> None:
        self._drafts: dict[Place, Draft] = {}
        self._events: list[Event] = []
        self._questions: list[Callable[[SyncPrefectClient], None]] = []
        self._artifact_ids: dict[Place, UUID] = {}
        self._changed = threading.Condition()
        self._is_sending = False
        self._is_closing = False
        self._rounds = 0
        self._wanted = 0
        self._is_failing = False
        # Only the thread's: one client serves all rounds, since making one takes longer than a round.
        self._client: SyncPrefectClient | None = None
        # A new thread has no Prefect settings of its own; it takes those of the run that starts it.
        self._thread = threading.Thread(
            target=context.run, args=(self._work,), name="prefect-dlt-publisher", daemon=True
        )
        self._thread.start()

    def put(self, place: Place, draft: Draft, live: bool = False) -> None:
        """Take a draft, in place of the one that waits for the same artifact; returns at once.

        Args:
            place: Which artifact.
            draft: What it shows from now on.
            live: Whether another draft will follow soon: progress, for example. Of those, one a second is sent.
        """
        del live
        with self._changed:
            self._drafts[place] = draft
            self._changed.notify_all()

    def emit(self, event: Event, run: Run | None = None) -> None:
        """Take an event to be sent with the next round, in order, at least once; returns at once."""
        del run
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def ask(self, question: Callable[[SyncPrefectClient], None], run: Run | None = None) -> None:
        """Call a read-only look-up once, on the publisher's thread, before the drafts of the next round.

        When it fails, nothing but a line of debug tells.
        """
        del run
        with self._changed:
            self._questions.append(question)
            self._changed.notify_all()

    def flush(self, timeout: float, run: Run) -> list[str]:
        """Wait until all that this run has put so far is sent, at most `timeout` seconds; return what is not.

        That is keys of artifacts, and "3 events". It is tried again as long as the process lives. Ends early when the
        API does not take it.
        """
        with self._changed:
            if self._has_work() or self._is_sending:
                # The round under way sends what it began with, and the next one all that was put meanwhile.
                last = self._rounds + self._is_sending + self._has_work()
                self._wanted = max(self._wanted, last)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._rounds >= last or self._is_closing, timeout)
            unsent = [place.key for place in self._drafts if (place.flow_run_id, place.task_run_id) == run]
            return unsent + ([f"{len(self._events)} events"] if self._events else [])

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

    def _has_work(self) -> bool:
        return bool(self._drafts or self._events or self._questions)

    def _work(self) -> None:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._has_work() or self._is_closing)
                    if self._is_closing:
                        break
                    drafts, self._drafts = self._drafts, {}
                    events, self._events = self._events, []
                    questions, self._questions = self._questions, []
                    self._is_sending = True
                for question in questions:
                    self._answer(question)
                unsent, problem = self._send(drafts)
                if events:
                    try:
                        self._send_events(self._connect(), events)
                        events = []
                    except Exception as error:  # noqa: BLE001 - as with drafts
                        problem = error
                if problem is not None and not self._is_failing:
                    logger.warning(
                        "Prefect's API does not take artifacts (%s); the load goes on, and they are sent when it does",
                        type(problem).__name__,
                    )
                with self._changed:
                    # What was put meanwhile is newer than what could not be sent.
                    self._drafts = {**unsent, **self._drafts}
                    self._events = events + self._events
                    self._is_sending = False
                    self._is_failing = problem is not None
                    self._rounds += 1
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._wanted > self._rounds or self._is_closing, FLUSH_PERIOD)
            if self._client is not None:
                self._client.__exit__()

    def _send(self, drafts: dict[Place, Draft]) -> tuple[dict[Place, Draft], Exception | None]:
        """Send drafts; return those to be sent again, and what went wrong, if something did."""
        unsent = dict(drafts)
        problem: Exception | None = None
        try:
            client = self._connect()
            for place, draft in drafts.items():
                refusal = self._offer(client, place, draft)
                problem = refusal or problem
                if refusal is None or refusal.response.status_code in REFUSALS:
                    del unsent[place]
        except Exception as error:  # noqa: BLE001 - no report is worth the thread that sends the next ones
            problem = error
        return unsent, problem

    def _offer(self, client: SyncPrefectClient, place: Place, draft: Draft) -> HTTPStatusError | None:
        """Send a draft; return the answer of an API that is there but does not take it."""
        try:
            self._send_one(client, place, draft)
        except HTTPStatusError as error:
            if error.response.status_code == NOT_FOUND:
                self._artifact_ids.pop(place, None)
            return error
        return None

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

    def _answer(self, question: Callable[[SyncPrefectClient], None]) -> None:
        try:
            question(self._connect())
        except Exception:
            logger.debug("A question to Prefect's API was not answered", exc_info=True)

    def _send_events(self, client: SyncPrefectClient, events: list[Event]) -> None:
        client.request("POST", "/events", json=[event.model_dump(mode="json") for event in events])

    def _connect(self) -> SyncPrefectClient:
        if self._client is None:
            # With settings of its own, it is not the client of the run, which is another thread's.
            settings = {"timeout": REQUEST_TIMEOUT, "limits": Limits(keepalive_expiry=KEEPALIVE)}
            self._client = get_client(sync_client=True, httpx_settings=settings).__enter__()
        return self._client


_publishers: dict[str | None, Publisher] = {}
_publishers_lock = threading.Lock()


def publisher() -> Publisher:
    """Return the publisher of this process for the API that the current run reports to."""
    api = PREFECT_API_URL.value()
    with _publishers_lock:
        if api not in _publishers:
            _publishers[api] = Publisher(contextvars.copy_context())
        return _publishers[api]


@atexit.register
def _close_publishers() -> None:
    # A daemon thread that is still there when the interpreter goes keeps it from tidying up, which DuckDB complains of.
    for each in _publishers.values():
        each.close()


def _start_anew() -> None:
    # A fork copies the publishers, but not the threads behind them, and the lock as it was at that moment.
    global _publishers_lock  # noqa: PLW0603 - that is the point
    _publishers_lock = threading.Lock()
    _publishers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
