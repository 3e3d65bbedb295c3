"""Artifacts reach Prefect's API when it is there, and cost a run nothing when it is not.

The API is a real server on a loopback socket that answers, refuses, hangs or breaks as told.
"""

import contextlib
import functools
import json
import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
from prefect import tags
from prefect.context import TagsContext
from prefect.events.schemas.events import Event, Resource
from prefect.settings import (
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    temporary_settings,
)

from prefect_dlt import look_ups, prefect_api
from prefect_dlt import publisher as module
from prefect_dlt.publisher import Draft, Place, Publisher, Rank, Run, publisher

NO_RUN = Run(None, None)

GENEROUS = 30.0
"""Seconds to wait for what comes within one or two on a machine that has nothing else to do."""


class Handler(BaseHTTPRequestHandler):
    """Answers as Prefect's API does for artifacts."""

    protocol_version = "HTTP/1.1"
    server: "Api"

    def do_POST(self) -> None:
        if self._has_token():
            self._answer(create=True)

    def do_GET(self) -> None:
        self.server.tokens_asked_for += 1
        token = {"client": "publisher", "token": "a-token", "expiration": "2100-01-01T00:00:00Z"}
        self._send(200, json.dumps(token).encode())

    def do_PATCH(self) -> None:
        if self._has_token():
            self._answer(create=False)

    def log_message(self, *_: Any) -> None:
        pass

    def _has_token(self) -> bool:
        if not self.server.wants_tokens or self.headers.get("Prefect-Csrf-Token") == "a-token":
            return True
        self._send(403, b'{"detail": "Missing CSRF token"}')
        self.close_connection = True
        return False

    def _answer(self, *, create: bool) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        api = self.server
        with api.lock:
            api.requests.append((self.command, self.path, self.headers.get("Authorization")))
        if api.hanging.is_set():
            api.caught.set()
            api.released.wait(GENEROUS)
            self.close_connection = True
            return
        if self.path == "/api/events":
            status = api.event_status_of([each["payload"] for each in body])
            if status < 400:
                api.events += [each for each in body if each["event"] != "prefect.artifact.created"]
            self._send(status, b"")
            return
        if self.path == "/api/artifacts/filter":
            self._send(200, json.dumps(list(api.artifacts.values())).encode())
            return
        status = api.status_of(body, create)
        if status >= 400:
            self._send(status, b"{}")
            return
        with api.lock:
            if create:
                body |= {"id": str(uuid4()), "created": None, "updated": None}
                api.artifacts[body["id"]] = body
            else:
                identity = self.path.rpartition("/")[2]
                if identity not in api.artifacts:
                    status = 404
                else:
                    api.artifacts[identity] |= body
            if status < 400:
                api.calls.append(("create" if create else "update", body.get("data")))
        if api.is_silent:
            self.close_connection = True
            return
        self._send(status, json.dumps(body).encode() if create else b"")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Api(ThreadingHTTPServer):
    """Prefect's API, as far as artifacts go."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.requests: list[tuple[str, str, str | None]] = []
        self.events: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.is_silent = False
        self.wants_tokens = False
        self.tokens_asked_for = 0
        self.connections: list[socket.socket] = []
        self.lock = threading.Lock()
        self.hanging = threading.Event()
        self.caught = threading.Event()
        self.released = threading.Event()
        self.status_of: Callable[[Any, bool], int] = lambda _body, create: 201 if create else 204
        self.event_status_of: Callable[[list[dict[str, Any]]], int] = lambda _payloads: 204
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, *_: Any) -> None:
        pass  # a client that gave up is what some tests are about

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/api"

    def data(self, key: str) -> list[Any]:
        with self.lock:
            return [each["data"] for each in self.artifacts.values() if each["key"] == key]

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _publishers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "FLUSH_PERIOD", 0.1)
    yield
    for each in list(module._publishers.values()):
        each.close(1.0)
    module._publishers.clear()


@pytest.fixture
def using(api: Api) -> Iterator[Callable[[str], Publisher]]:
    """Return what makes a publisher for the API at an address."""
    made: list[Publisher] = []

    def use(url: str) -> Publisher:
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
            made.append(Publisher())
        return made[-1]

    yield use
    api.hanging.clear()
    api.released.set()
    for each in made:
        each.close(1.0)


@pytest.fixture
def fast_timeout(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(prefect_api, "REQUEST_TIMEOUT", 0.3)
    return 0.3


def place(key: str = "shop-load", run: Run = NO_RUN) -> Place:
    return Place(key, run)


def runs_of_one_flow_run(number: int) -> list[Run]:
    flow_run_id = uuid4()
    return [Run(flow_run_id, None) for _ in range(number)]


def progress(percent: float) -> Draft:
    return Draft("progress", f"{percent} %", percent)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + GENEROUS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# -- an API that is there ----------------------------------------------------------------------------------------------


def test_what_is_put_arrives_with_its_run(api: Api, using: Any) -> None:
    run = Run(uuid4(), uuid4())

    sender = using(api.url)
    sender.put(Place("shop-summary", run), Draft("markdown", "Loaded", "# Loaded"))

    assert sender.flush(GENEROUS, run) == []
    (artifact,) = api.artifacts.values()
    assert artifact["key"] == "shop-summary"
    assert artifact["type"] == "markdown"
    assert artifact["description"] == "Loaded"
    assert artifact["data"] == "# Loaded"
    assert artifact["flow_run_id"] == str(run.flow_run_id)
    assert artifact["task_run_id"] == str(run.task_run_id)


def test_the_first_draft_makes_an_artifact_and_the_next_ones_keep_it_up_to_date(api: Api, using: Any) -> None:
    sender = using(api.url)
    for percent in (10.0, 20.0, 30.0):
        sender.put(place(), progress(percent))
        assert sender.flush(GENEROUS, NO_RUN) == []

    assert api.calls == [("create", 10.0), ("update", 20.0), ("update", 30.0)]
    assert api.data("shop-load") == [30.0]


def test_each_key_of_each_run_is_an_artifact(api: Api, using: Any) -> None:
    sender = using(api.url)
    first, second = runs_of_one_flow_run(2)
    for key, run in (("a", first), ("b", first), ("a", second), ("a", NO_RUN)):
        sender.put(place(key, run), progress(1.0))

    assert eventually(lambda: len(api.artifacts) == 4)


def test_a_run_that_is_forgotten_begins_anew(api: Api, using: Any) -> None:
    sender, runs = using(api.url), runs_of_one_flow_run(2)
    for run in runs:
        sender.put(place(run=run), progress(1.0))
        assert sender.flush(GENEROUS, run) == []

    sender.forget(runs[0])
    for run in runs:
        sender.put(place(run=run), progress(2.0))
        assert sender.flush(GENEROUS, run) == []

    assert [call for call, _ in api.calls] == ["create", "create", "create", "update"]


def test_of_many_drafts_only_the_latest_are_sent(api: Api, using: Any) -> None:
    sender = using(api.url)
    for number in range(20_000):
        sender.put(place(), progress(number / 200))

    assert sender.flush(GENEROUS, NO_RUN) == []
    assert api.data("shop-load") == [19_999 / 200]
    assert len(api.calls) < 100


def test_of_the_progress_of_many_runs_one_state_is_sent_a_period_whoever_else_ends(
    api: Api, using: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_PERIOD", 3600.0)
    sender, runs = using(api.url), runs_of_one_flow_run(8)
    for run in runs:
        sender.put(place(run=run), progress(0.0))
        assert sender.flush(GENEROUS, run) == []
    for percent in range(20):
        for run in runs:
            sender.put(place(run=run), progress(float(percent)), live=True)
        other = Run(uuid4(), None)
        sender.put(place("summary", other), progress(100.0))
        assert sender.flush(GENEROUS, other) == []

    assert [call for call, _ in api.calls].count("update") <= 1
    for run in runs:
        assert sender.flush(GENEROUS, run) == []
    assert api.data("shop-load") == [19.0] * len(runs)


def test_what_is_put_by_many_threads_at_once_all_arrives(api: Api, using: Any) -> None:
    sender = using(api.url)
    unsent: list[list[str]] = []

    def work(number: int) -> None:
        for percent in range(101):
            sender.put(place(f"part-{number}"), progress(float(percent)))
        unsent.append(sender.flush(GENEROUS, NO_RUN))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert unsent == [[]] * 16
    assert [api.data(f"part-{number}") for number in range(16)] == [[100.0]] * 16


def test_a_flush_waits_for_what_was_put_before_it_and_not_for_what_comes_after(api: Api, using: Any) -> None:
    sender, stop = using(api.url), threading.Event()

    def keep_putting() -> None:
        while not stop.wait(0.0005):
            sender.put(place("busy"), progress(1.0))

    thread = threading.Thread(target=keep_putting)
    thread.start()
    try:
        for percent in range(10):
            sender.put(place("mine"), progress(float(percent)))
            assert sender.flush(GENEROUS, NO_RUN) == []
            assert api.data("mine") == [float(percent)]
    finally:
        stop.set()
        thread.join()


def test_a_flush_waits_for_what_was_put_while_a_call_was_under_way(api: Api, using: Any) -> None:
    fine, calls = api.status_of, threading.Semaphore(0)

    def answer_when_told(body: Any, create: bool) -> int:
        calls.acquire(timeout=GENEROUS)
        return fine(body, create)

    api.status_of = answer_when_told
    sender, flushed = using(api.url), threading.Event()
    sender.put(place("first"), progress(1.0))
    assert eventually(lambda: sender._is_sending)
    sender.put(place("second"), progress(2.0))
    thread = threading.Thread(target=lambda: sender.flush(GENEROUS, NO_RUN) or flushed.set())
    thread.start()
    assert eventually(lambda: bool(sender._flushing))

    calls.release()
    assert eventually(lambda: api.data("first") == [1.0])
    assert not flushed.wait(0.2)
    calls.release()

    assert flushed.wait(GENEROUS)
    assert api.data("second") == [2.0]
    thread.join()


def test_with_nothing_to_send_a_flush_returns_at_once_and_calls_nobody(api: Api, using: Any) -> None:
    assert using(api.url).flush(GENEROUS, NO_RUN) == []
    assert api.calls == []


def test_without_a_flush_drafts_are_sent_too(api: Api, using: Any) -> None:
    using(api.url).put(place(), progress(1.0))

    assert eventually(lambda: api.data("shop-load") == [1.0])


def test_an_artifact_that_was_deleted_is_made_anew(api: Api, using: Any) -> None:
    sender = using(api.url)
    sender.put(place(), progress(1.0))
    assert sender.flush(GENEROUS, NO_RUN) == []
    api.artifacts.clear()

    sender.put(place(), progress(2.0))

    assert eventually(lambda: not sender.flush(GENEROUS, NO_RUN) and api.data("shop-load") == [2.0])


def test_connections_that_the_server_has_closed_meanwhile_do_no_harm(api: Api, using: Any, caplog: Any) -> None:
    sender = using(api.url)
    with caplog.at_level(logging.WARNING, logger="prefect_dlt"):
        sender.put(place(), progress(1.0))
        assert sender.flush(GENEROUS, NO_RUN) == []
        port = api.server_port
        api.stop()
        again = Api(port)
        try:
            sender.put(place(), progress(2.0))
            assert eventually(lambda: not sender.flush(GENEROUS, NO_RUN) and again.data("shop-load") == [2.0])
        finally:
            again.stop()


# -- an API that is not ------------------------------------------------------------------------------------------------


def test_a_put_never_waits(api: Api, using: Any) -> None:
    api.hanging.set()
    sender = using(api.url)
    sender.put(place("first"), progress(1.0))
    started = time.monotonic()

    for number in range(1_000):
        sender.put(place(f"key-{number % 10}"), progress(1.0))

    # A call that hangs takes 2 s; a thousand puts take some milliseconds.
    assert time.monotonic() - started < 1.0


def test_a_flush_ends_early_when_the_api_refuses_connections(using: Any) -> None:
    sender = using(f"http://127.0.0.1:{closed_port()}/api")
    sender.put(place(), progress(1.0))

    # It returns at all: nobody waits for an hour.
    assert sender.flush(3600.0, NO_RUN) == ["shop-load"]


def test_a_flush_says_what_a_hanging_api_has_not_taken(api: Api, using: Any) -> None:
    api.hanging.set()
    sender = using(api.url)
    for number in range(50):
        sender.put(place(f"key-{number:02}"), progress(1.0))

    assert sender.flush(0.2, NO_RUN) == [f"key-{number:02}" for number in range(50)]
    assert api.hanging.is_set()


def test_after_one_run_has_waited_for_a_hanging_api_the_next_does_not(
    api: Api, using: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.2)
    api.hanging.set()
    sender, (first, second) = using(api.url), runs_of_one_flow_run(2)
    for run in (first, second):
        sender.put(place(run=run), progress(1.0))

    assert sender.flush(0.3, first) == ["shop-load"]
    assert sender.flush(3600.0, second) == ["shop-load"]
    api.hanging.clear()
    api.released.set()

    assert eventually(lambda: api.data("shop-load") == [1.0, 1.0])
    sender.put(place(run=second), progress(2.0))
    assert sender.flush(GENEROUS, second) == []


def test_a_flush_gives_up_a_call_that_hangs_for_one_that_the_api_answers(
    api: Api, using: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefect_api, "REQUEST_TIMEOUT", 10 * GENEROUS)
    api.hanging.set()
    sender = using(api.url)
    sender.put(place(), progress(1.0))
    assert api.caught.wait(GENEROUS)
    api.hanging.clear()
    monkeypatch.setattr(module, "SILENCE", 0.0)

    # The first call goes on hanging.
    assert sender.flush(GENEROUS / 2, NO_RUN) == []
    assert api.data("shop-load") == [1.0]


def test_a_flush_waits_for_an_api_that_comes_back_meanwhile(api: Api, using: Any) -> None:
    fine, attempts = api.status_of, threading.Semaphore(0)

    def fail(_body: Any, _create: bool) -> int:
        attempts.release()
        return 500

    api.status_of = fail
    sender, unsent = using(api.url), []
    sender.put(place(), progress(1.0))
    thread = threading.Thread(target=lambda: unsent.append(sender.flush(GENEROUS, NO_RUN)))
    thread.start()
    for _ in range(3):
        assert attempts.acquire(timeout=GENEROUS)
    api.status_of = fine
    thread.join()

    assert unsent == [[]]
    assert api.data("shop-load") == [1.0]


def test_an_api_that_asks_to_be_left_alone_is_left_alone(api: Api, using: Any) -> None:
    api.status_of = lambda _body, _create: 429
    api.headers = {"Retry-After": "50"}
    sender = using(api.url)
    sender.put(place(), progress(1.0))

    # Which is longer than this run would wait: it does not wait at all.
    assert sender.flush(GENEROUS, NO_RUN) == ["shop-load"]
    sender.put(place(), progress(2.0))
    assert sender.flush(GENEROUS, NO_RUN) == ["shop-load"]
    assert [method for method, _, _ in api.requests] == ["POST"]
    assert sender.trouble == "HTTP 429"


def test_one_run_does_not_wait_for_what_another_one_has_put(api: Api, using: Any) -> None:
    fine, asked, answered = api.status_of, threading.Event(), threading.Event()

    def answer_when_told(body: Any, create: bool) -> int:
        if body.get("key") == "slow":
            asked.set()
            answered.wait(GENEROUS)
        return fine(body, create)

    api.status_of = answer_when_told
    sender, (run, other) = using(api.url), runs_of_one_flow_run(2)
    sender.put(place("slow", other), progress(1.0))
    sender.put(place("quick", run), progress(1.0))

    assert sender.flush(GENEROUS, run) == []
    assert not answered.is_set()
    answered.set()
    assert sender.flush(GENEROUS, other) == []


def test_an_artifact_that_was_made_without_an_answer_is_not_made_twice(api: Api, using: Any) -> None:
    api.is_silent = True
    sender = using(api.url)
    sender.put(place(), progress(1.0))
    assert eventually(lambda: len(api.calls) == 1)
    sender.put(place(), progress(2.0))

    api.is_silent = False

    assert sender.flush(GENEROUS, NO_RUN) == []
    assert api.calls[0] == ("create", 1.0)
    assert {call for call, _ in api.calls[1:]} == {"update"}
    assert api.data("shop-load") == [2.0]


@pytest.mark.parametrize("status", [500, 401, 404])
def test_what_an_api_in_trouble_does_not_take_is_sent_when_it_does(api: Api, using: Any, status: int) -> None:
    fine = api.status_of
    api.status_of = lambda _body, _create: status
    sender = using(api.url)
    sender.put(place("summary"), Draft("markdown", "Loaded", "# old"))
    assert sender.flush(0.2, NO_RUN) == ["summary"]
    sender.put(place("summary"), Draft("markdown", "Loaded", "# new"))

    api.status_of = fine

    assert eventually(lambda: api.data("summary") == ["# new"])
    assert [call for call, _ in api.calls].count("create") == 1


def test_what_could_not_be_sent_while_the_api_was_down_is_sent_when_it_is_back(using: Any) -> None:
    port = closed_port()
    sender = using(f"http://127.0.0.1:{port}/api")
    for percent in (1.0, 2.0):
        sender.put(place("load"), progress(percent))
        assert sender.flush(GENEROUS, NO_RUN) == ["load"]
    sender.put(place("summary"), Draft("markdown", "Loaded", "# Loaded"))

    api = Api(port)
    try:
        assert eventually(lambda: api.data("load") == [2.0] and api.data("summary") == ["# Loaded"])
        assert eventually(lambda: not sender.flush(GENEROUS, NO_RUN))
        assert len(api.calls) == 2
    finally:
        api.stop()


def test_a_draft_put_during_a_failing_call_wins_over_the_one_that_failed(
    api: Api, using: Any, fast_timeout: float
) -> None:
    del fast_timeout
    api.hanging.set()
    sender = using(api.url)
    sender.put(place(), progress(1.0))
    assert api.caught.wait(GENEROUS)
    sender.put(place(), progress(2.0))

    api.hanging.clear()

    assert eventually(lambda: api.data("shop-load") == [2.0])


@pytest.mark.parametrize("status", [422, 500])
def test_one_artifact_that_the_api_refuses_does_not_hold_up_the_others(api: Api, using: Any, status: int) -> None:
    fine = api.status_of
    api.status_of = lambda body, create: status if body.get("key") == "bad" else fine(body, create)
    sender = using(api.url)
    for key in ("a", "bad", "b"):
        sender.put(place(key), progress(1.0))

    assert eventually(lambda: api.data("a") == api.data("b") == [1.0])
    assert sender.flush(0.2, NO_RUN) == ["bad"]


def test_what_the_api_will_never_take_is_not_sent_again(api: Api, using: Any) -> None:
    refused: list[Any] = []

    def refuse(body: Any, _create: bool) -> int:
        refused.append(body)
        return 422

    api.status_of = refuse
    sender = using(api.url)
    sender.put(place(), progress(1.0))

    assert sender.flush(GENEROUS, NO_RUN) == ["shop-load"]
    assert sender.flush(GENEROUS, NO_RUN) == []
    assert len(refused) == 1


def test_what_cannot_be_written_as_json_is_not_sent_and_does_no_harm(api: Api, using: Any) -> None:
    sender = using(api.url)
    sender.put(place("bad"), progress(float("inf")))
    sender.put(place("good"), progress(1.0))

    assert sender.flush(GENEROUS, NO_RUN) in ([], ["bad"])
    assert api.data("good") == [1.0]


def test_an_address_that_is_none_costs_nothing(using: Any) -> None:
    sender = using("no address at all")
    sender.put(place(), progress(1.0))

    assert sender.flush(GENEROUS, NO_RUN) == ["shop-load"]
    assert sender._thread.is_alive()


# -- events and look-ups -----------------------------------------------------------------------------------------------


def event(number: int = 0) -> Event:
    return Event(event="dlt.test", resource=Resource({"prefect.resource.id": "test"}), payload={"number": number})


def numbers(api: Api) -> list[int]:
    return [each["payload"]["number"] for each in api.events]


def test_events_arrive_in_order_and_few_calls(api: Api, using: Any) -> None:
    sender = using(api.url)
    for number in range(1_000):
        sender.emit(event(number))

    assert sender.flush(GENEROUS, NO_RUN) == []
    assert numbers(api) == list(range(1_000))
    assert len(api.requests) < 10


@pytest.mark.parametrize("status", [413, 422, 500])
def test_an_event_that_the_api_does_not_take_holds_up_no_other(api: Api, using: Any, status: int) -> None:
    api.event_status_of = lambda payloads: status if {"number": 7} in payloads else 204
    sender = using(api.url)
    for number in range(20):
        sender.emit(event(number))

    assert eventually(lambda: sorted(numbers(api)) == [number for number in range(20) if number != 7])
    assert sender.flush(0.2, NO_RUN) == ["1 event"]


def test_events_that_were_not_taken_are_sent_again_and_belong_to_their_run(api: Api, using: Any) -> None:
    api.event_status_of = lambda _payloads: 503
    sender, (run, other) = using(api.url), runs_of_one_flow_run(2)
    for number in range(3):
        sender.emit(event(number), run)
    assert sender.flush(0.2, run) == ["3 events"]
    assert sender.flush(0.2, other) == []

    api.event_status_of = lambda _payloads: 204

    assert sender.flush(GENEROUS, run) == []
    assert sorted(numbers(api)) == [0, 1, 2]


def test_neither_drafts_nor_a_flush_wait_for_a_look_up(api: Api, using: Any) -> None:
    asked, answered, seen = threading.Event(), threading.Event(), list[Any]()

    def look_up(client: Any) -> None:
        asked.set()
        assert answered.wait(GENEROUS)
        client.request("POST", "/artifacts/filter", json={})
        seen.append((str(client.api_url), TagsContext.get().current_tags))

    with tags("of the run that asks"):
        sender = using(api.url)
        sender.ask(look_up)
    assert asked.wait(GENEROUS)
    sender.put(place(), progress(1.0))

    assert sender.flush(GENEROUS, NO_RUN) == []
    assert seen == []
    answered.set()
    assert eventually(lambda: seen == [(api.url + "/", set())])


def test_a_look_up_that_fails_costs_neither_the_next_one_nor_a_draft(api: Api, using: Any) -> None:
    def fail(_client: Any) -> None:
        raise KeyError("deployment")

    sender, answered = using(api.url), threading.Event()
    sender.ask(fail)
    sender.ask(lambda _client: answered.set())
    sender.put(place(), progress(1.0))

    assert sender.flush(GENEROUS, NO_RUN) == []
    assert answered.wait(GENEROUS)
    assert api.data("shop-load") == [1.0]


@pytest.mark.slow
def test_of_look_ups_that_are_not_answered_only_so_many_wait(api: Api, using: Any) -> None:
    api.hanging.set()
    sender, asked = using(api.url), list[int]()

    def look_up(number: int, client: Any) -> None:
        asked.append(number)
        client.request("POST", "/artifacts/filter", json={})

    sender.ask(functools.partial(look_up, -1))
    assert api.caught.wait(GENEROUS)
    for number in range(look_ups.MOST_WAITING + 10):
        sender.ask(functools.partial(look_up, number))
    api.hanging.clear()
    api.released.set()

    assert eventually(lambda: len(asked) == 1 + look_ups.MOST_WAITING)
    assert asked == list(range(-1, look_ups.MOST_WAITING))


def test_closing_ends_a_look_up_that_hangs(api: Api, using: Any) -> None:
    api.hanging.set()
    sender = using(api.url)
    interrupted, went_on, ended = threading.Event(), threading.Event(), threading.Event()

    def look_up(client: Any) -> None:
        try:
            client.request("POST", "/artifacts/filter", json={})
        finally:
            interrupted.set()
            went_on.wait(GENEROUS)

    sender.ask(look_up)
    assert api.caught.wait(GENEROUS)
    closing = threading.Thread(target=lambda: (sender.close(GENEROUS), ended.set()))
    closing.start()

    assert interrupted.wait(GENEROUS)
    assert not ended.wait(0.1)
    went_on.set()
    assert ended.wait(GENEROUS)
    closing.join()
    assert api.hanging.is_set()


def test_when_a_run_begins_to_wait_what_is_under_way_ends_and_then_its_summary_goes_first(
    api: Api, using: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 1)
    fine, asked, answered, order = api.status_of, threading.Event(), threading.Event(), list[str]()

    def answer_when_told(body: Any, create: bool) -> int:
        order.append(body["key"])
        asked.set()
        answered.wait(GENEROUS)
        return fine(body, create)

    api.status_of = answer_when_told
    sender, unsent = using(api.url), list[list[str]]()
    with sender._changed:
        for key in ("first", "second", "third"):
            sender.put(place(key), Draft("markdown", key, key))
    assert asked.wait(GENEROUS)
    sender.put(place("shop-load"), Draft("progress", "Done", 100.0, Rank.PROGRESS))
    sender.put(place("summary"), Draft("markdown", "Loaded", "# Loaded", Rank.SUMMARY))
    sender.emit(event())
    thread = threading.Thread(target=lambda: unsent.append(sender.flush(GENEROUS, NO_RUN)))
    thread.start()
    assert eventually(lambda: bool(sender._flushing))
    answered.set()
    thread.join()

    assert unsent == [[]]
    assert order[:2] == ["first", "summary"]
    assert set(order[2:4]) == {"second", "third"}
    assert order[4] == "shop-load"
    assert api.requests[-1][1] == "/api/events"


@pytest.mark.parametrize("wants_tokens", [True, False])
def test_a_token_against_forged_requests_is_asked_for_only_where_the_server_wants_one(
    api: Api, wants_tokens: bool
) -> None:
    api.wants_tokens = wants_tokens
    with temporary_settings({PREFECT_API_URL: api.url, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: True}):
        sender = publisher()
    for percent in (10.0, 20.0):
        sender.put(place(), progress(percent))
        sender.emit(event())

        assert sender.flush(GENEROUS, NO_RUN) == []

    assert api.data("shop-load") == [20.0]
    assert api.tokens_asked_for == wants_tokens
    assert sender.trouble == ""


# -- the end, and other processes --------------------------------------------------------------------------------------


def test_closing_ends_the_thread(api: Api, using: Any) -> None:
    idle, busy = using(api.url), using(f"http://127.0.0.1:{closed_port()}/api")
    busy.put(place(), progress(1.0))
    for sender in (idle, busy):
        sender.close()

        assert not sender._thread.is_alive()
        assert bool(sender.flush(0.0, NO_RUN)) is (sender is busy)


def test_a_flush_ends_when_the_publisher_is_closed(api: Api, using: Any) -> None:
    api.hanging.set()
    sender, ended = using(api.url), threading.Event()
    sender.put(place(), progress(1.0))
    thread = threading.Thread(target=lambda: (sender.flush(10 * GENEROUS, NO_RUN), ended.set()))
    thread.start()
    assert eventually(lambda: bool(sender._flushing))
    assert api.caught.wait(GENEROUS)

    sender.close(0.1)

    assert ended.wait(GENEROUS)
    thread.join()
    assert eventually(lambda: not sender._thread.is_alive())
    assert api.hanging.is_set()


def test_what_no_run_has_waited_for_is_sent_at_the_end_of_the_process(
    api: Api, using: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(module, "FLUSH_PERIOD", 3600.0)
    sender = using(api.url)
    sender.put(place("first"), progress(1.0))
    assert eventually(lambda: sender._rounds == 1)
    sender.put(place("last"), progress(2.0))

    with caplog.at_level(logging.WARNING, logger="prefect_dlt"):
        sender.close(GENEROUS)

    assert api.data("last") == [2.0]
    assert caplog.records == []


def test_the_end_of_the_process_tells_of_what_no_run_was_told_of(api: Api, using: Any, caplog: Any) -> None:
    api.hanging.set()
    sender, run = using(api.url), Run(uuid4(), None)
    sender.put(place("told", run), progress(1.0))
    assert sender.flush(0.0, run) == ["told"]
    sender.put(place("killed"), progress(1.0))
    sender.emit(event(), Run(uuid4(), None))

    with caplog.at_level(logging.WARNING, logger="prefect_dlt"):
        sender.close(0.1)

    (record,) = caplog.records
    assert record.getMessage().startswith("Not shown in Prefect: killed, 1 event (")


def test_there_is_one_publisher_for_each_api_and_key(api: Api) -> None:
    def current(url: str, key: str | None = None) -> Publisher:
        settings = {PREFECT_API_URL: url, PREFECT_API_KEY: key, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}
        with temporary_settings(settings):
            return publisher()

    assert current(api.url) is current(api.url)
    assert current(api.url) is not current("http://127.0.0.1:9/api")
    assert current(api.url, "pnu_1") is current(api.url, "pnu_1")
    assert current(api.url, "pnu_1") is not current(api.url, "pnu_2")
    assert "pnu_1" not in repr(vars(current(api.url, "pnu_1"))) + repr(module._publishers)
    for key in ("pnu_1", "pnu_2"):
        current(api.url, key).put(place("load"), progress(1.0))
        assert current(api.url, key).flush(GENEROUS, NO_RUN) == []
    assert {authorization for _, _, authorization in api.requests} == {"Bearer pnu_1", "Bearer pnu_2"}


def _publish_from_child(url: str, results: Any) -> None:
    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
        sender = publisher()
        sender.put(place("child"), progress(2.0))
        results.put((os.getpid(), not sender.flush(GENEROUS, NO_RUN), sender._thread.is_alive()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_gets_a_publisher_of_its_own(api: Api) -> None:
    with temporary_settings({PREFECT_API_URL: api.url, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
        parent = publisher()
        parent.put(place("parent"), progress(1.0))
        assert parent.flush(GENEROUS, NO_RUN) == []
        fork = multiprocessing.get_context("fork")
        results = fork.Queue()
        # Another thread of the parent is about to ask for a publisher at the very moment of the fork.
        with module._publishers_lock:
            child = fork.Process(target=_publish_from_child, args=(api.url, results))
            child.start()
        process, flushed, alive = results.get(timeout=2 * GENEROUS)
        child.join(GENEROUS)

        assert process != os.getpid()
        assert flushed
        assert alive
        assert api.data("child") == [2.0]
        parent.put(place("parent"), progress(3.0))
        assert parent.flush(GENEROUS, NO_RUN) == []
        assert publisher() is parent
    assert api.data("parent") == [3.0]
