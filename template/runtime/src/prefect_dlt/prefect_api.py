"""The calls to Prefect's API: one attempt each, with a bound on its time, and an end to it from another thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Literal
from uuid import UUID

from httpx import (
    ConnectError,
    HTTPStatusError,
    Limits,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    Request,
    Response,
    Timeout,
    WriteError,
    WriteTimeout,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    ArtifactFilterTaskRunId,
)
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import SettingsContext, get_settings_context

from prefect_dlt.outbox import Artifact, Draft

CONNECT_TIMEOUT = 2.0
"""Seconds that a connection may take."""

REQUEST_TIMEOUT = 10.0
"""Seconds that the API may keep silent. Longer than a slow API takes, so that what it did is not sent again."""

KEEPALIVE = 4.0
"""Seconds that an idle connection is used again; Prefect's server closes it after 5."""

CONNECTIONS = 4
"""Calls at a time, so that an API that takes seconds for each gets a run's last reports in time.

One more is for what is looked up meanwhile."""

MARK = "prefect-dlt"
"""Name, in the metadata of an artifact, of what tells it from others with the same key and run."""

REFUSALS = frozenset({400, 409, 413, 422})
"""Answers that mean what was sent, and will be the same next time; every other failure may pass."""

FORBIDDEN, NOT_FOUND, TOO_MANY, SERVER_ERROR = 403, 404, 429, 500

# Prefect sends such requests again by itself, and sleeps before it gives up; here the next round sends them.
_AGAIN = frozenset({408, TOO_MANY, 502, 503})


class Failure(Enum):
    """What a failed call says of the API."""

    REFUSED = "it is there, and will never take this"
    ANSWERED = "it is there, and in trouble"
    BUSY = "it is there, and wants to be left alone for a while"
    UNREACHABLE = "it is not there, and this has not arrived"
    SILENT = "it does not answer, and this may have arrived"


def failure(error: Exception) -> Failure:
    """Tell what an exception of a call says of the API."""
    if isinstance(error, HTTPStatusError):
        status = error.response.status_code
        if status in REFUSALS:
            return Failure.REFUSED
        return Failure.BUSY if status == TOO_MANY or retry_after(error) is not None else Failure.ANSWERED
    if isinstance(error, ReadTimeout | ReadError | WriteTimeout | WriteError | RemoteProtocolError):
        return Failure.SILENT
    # What cannot be written as JSON never will be.
    return Failure.REFUSED if isinstance(error, ValueError | TypeError) else Failure.UNREACHABLE


def retry_after(error: Exception) -> float | None:
    """Return how many seconds the API wants to be left alone, when it says so in seconds."""
    if not isinstance(error, HTTPStatusError):
        return None
    value = error.response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def described(error: Exception) -> str:
    """Name an exception for a log: never by its text, which may hold the address with its password."""
    return f"HTTP {error.response.status_code}" if isinstance(error, HTTPStatusError) else type(error).__name__


class PrefectApi:
    """Prefect's API, by the settings of the thread that calls first. Several threads may use it at once.

    Args:
        heard: Called at each answer of the API, whatever it says.
    """

    def __init__(self, heard: Callable[[], None]) -> None:
        self._heard = heard
        self._client: SyncPrefectClient | None = None
        self._earlier_client: SyncPrefectClient | None = None
        self._sends_tokens = False
        self._connecting = threading.Lock()
        self._sockets: deque[socket.socket] = deque(maxlen=4 * CONNECTIONS)
        self._is_closing = False

    def connect(self) -> SyncPrefectClient:
        """Return the client: one for all calls, since making one takes longer than a call."""
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def show(self, artifact: Artifact, draft: Draft) -> bool:
        """Create an artifact, or bring it up to date; tell whether it was created.

        The client's own methods would send an event besides, with all data, through a queue without bounds.
        """
        if artifact.id is None and artifact.is_doubtful:
            artifact.id = self._find(self.connect(), artifact)
            artifact.is_doubtful = False
        if artifact.id is not None:
            update = ArtifactUpdate(data=draft.data, description=draft.description)
            try:
                body = update.model_dump(mode="json", exclude_unset=True)
                self._request("PATCH", "/artifacts/{id}", json=body, path_params={"id": artifact.id})
            except HTTPStatusError as error:
                if error.response.status_code != NOT_FOUND:
                    raise
                # It has been deleted: it is made anew.
                artifact.id = None
            else:
                return False
        artifact.id = self._create(artifact, draft)
        return True

    def send_events(self, events: Sequence[str]) -> None:
        """Send events, each a JSON text, in one call."""
        body = f"[{','.join(events)}]".encode()
        self._request("POST", "/events", content=body, headers={"Content-Type": "application/json"})

    def interrupt(self) -> None:
        """End the calls that are under way; they raise."""
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def shut(self) -> None:
        """End the calls that are under way, and let none begin."""
        self._is_closing = True
        self.interrupt()

    def close(self) -> None:
        """Close the connections. For the thread that made the calls."""
        for client in (self._client, self._earlier_client):
            if client is not None:
                client.__exit__()

    def _connect(self) -> SyncPrefectClient:
        # With settings of its own, it is not the client of the run, which is another thread's.
        settings: dict[str, Any] = {
            "timeout": Timeout(REQUEST_TIMEOUT, connect=CONNECT_TIMEOUT),
            "limits": Limits(max_connections=CONNECTIONS + 1, keepalive_expiry=KEEPALIVE),
            "event_hooks": {"request": [self._on_request], "response": [self._on_response]},
        }
        context = get_settings_context()
        wants_tokens = context.settings.client.csrf_support_enabled and self._sends_tokens
        client = context.settings.client.model_copy(update={"csrf_support_enabled": wants_tokens})
        own = context.settings.model_copy(update={"client": client})
        try:
            with SettingsContext(profile=context.profile, settings=own):
                return get_client(sync_client=True, httpx_settings=settings).__enter__()
        except Exception as error:
            raise ConnectError("There is no API at this address") from error

    def _request(self, method: Literal["POST", "PATCH"], path: str, **options: Any) -> Response:
        """Make a call that changes something; with a token against forged requests where the server wants one.

        Most servers do not, and a client that asks whether they do takes twice as long for its first call.
        """
        client = self.connect()
        try:
            return client.request(method, path, **options)  # pyright: ignore[reportArgumentType]
        except HTTPStatusError as error:
            if error.response.status_code != FORBIDDEN or not self._is_without_tokens(client):
                raise
        return self.connect().request(method, path, **options)  # pyright: ignore[reportArgumentType]

    def _is_without_tokens(self, client: SyncPrefectClient) -> bool:
        """Tell whether a client sends no tokens; the next call then has one that does."""
        with self._connecting:
            if not self._sends_tokens:
                self._sends_tokens = True
                # Another thread may be using it.
                self._earlier_client, self._client = self._client, None
            return client is self._earlier_client

    def _create(self, artifact: Artifact, draft: Draft) -> UUID:
        place = artifact.place
        create = ArtifactCreate(
            key=place.key,
            type=draft.type,
            data=draft.data,
            description=draft.description,
            metadata_={MARK: artifact.mark},
            flow_run_id=place.run.flow_run_id,
            task_run_id=place.run.task_run_id,
        )
        body = create.model_dump(mode="json", exclude_unset=True)
        try:
            return _id_of(self._request("POST", "/artifacts/", json=body))
        except Exception as error:
            is_answer = isinstance(error, HTTPStatusError) and error.response.status_code < SERVER_ERROR
            artifact.is_doubtful = not is_answer and failure(error) is not Failure.UNREACHABLE
            raise

    def _find(self, client: SyncPrefectClient, artifact: Artifact) -> UUID | None:
        """Return the id of an artifact that was sent without an answer, if it has arrived."""
        run = artifact.place.run
        wanted = ArtifactFilter(
            key=ArtifactFilterKey(any_=[artifact.place.key]),
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.flow_run_id]) if run.flow_run_id else None,
            task_run_id=ArtifactFilterTaskRunId(any_=[run.task_run_id]) if run.task_run_id else None,
        )
        found = client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, limit=5)
        return next((each.id for each in found if (each.metadata_ or {}).get(MARK) == artifact.mark), None)

    def _on_request(self, request: Request) -> None:
        request.extensions = {**request.extensions, "trace": self._on_trace}

    def _on_trace(self, event: str, info: dict[str, Any]) -> None:
        # Prefect has the connection tried four times, with pauses; here the next round tries it again.
        if event == "connection.retry.started" or (self._is_closing and event.startswith("connection.connect_tcp.")):
            raise ConnectError("There is no connection")
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.append(info["return_value"].get_extra_info("socket"))

    def _on_response(self, response: Response) -> None:
        self._heard()
        if response.status_code in _AGAIN:
            raise HTTPStatusError(f"HTTP {response.status_code}", request=response.request, response=response)


def _id_of(response: Response) -> UUID:
    try:
        return UUID(response.json()["id"])
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteProtocolError("The answer is not that of Prefect's API") from error
