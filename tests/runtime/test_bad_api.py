"""Runs whose API is slow, hangs, breaks or goes away: a real Prefect server, behind a proxy that does so as told."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.context import FlowRunContext
from prefect.events.schemas.events import Event, Resource
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from prefect_dlt import PrefectCollector, prefect_api
from prefect_dlt import publisher as module
from prefect_dlt.publisher import Draft, Place, Run, publisher
from tests.runtime.conftest import count
from tests.runtime.proxy import Mode, Proxy

GENEROUS = 60.0
NO_RUN = Run(None, None)
KEYS = {"shop-extract", "shop-normalize", "shop-load", "shop-summary"}

pytestmark = pytest.mark.slow  # they wait for an API that takes its time


@pytest.fixture
def proxy(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    request.getfixturevalue("prefect_api")
    proxy = Proxy(str(PREFECT_API_URL.value()), delay=0.2)
    yield proxy
    proxy.close()


@pytest.fixture(autouse=True)
def _short_times(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let all but the slow tests go through what takes seconds in tenths of them."""
    if request.node.get_closest_marker("slow") is None:
        for name, seconds in {"FLUSH_PERIOD": 0.1, "LONGEST_PAUSE": 0.2, "SILENCE": 0.3}.items():
            monkeypatch.setattr(module, name, seconds)
    yield
    for each in list(module._publishers.values()):
        each.close(0.5)
    module._publishers.clear()


def behind(proxy: Proxy) -> Any:
    """Let the collector, and nothing else of the run, talk to the API through the proxy."""
    return temporary_settings({PREFECT_API_URL: proxy.url, PREFECT_LOGGING_TO_API_ENABLED: False})


def keys_of(flow_run_id: UUID) -> list[str]:
    found = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        return sorted(str(artifact.key) for artifact in client.read_artifacts(artifact_filter=found))


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + GENEROUS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "prefect_dlt" and record.levelno >= logging.WARNING
    ]


def load(pipeline: Pipeline, proxy: Proxy, meanwhile: Callable[[], None]) -> UUID:
    """Run a pipeline in a flow, with something that happens while it extracts; return the flow run's id."""
    runs: list[UUID] = []

    @dlt.resource
    def orders() -> Iterator[Any]:
        yield [{"id": number} for number in range(100)]
        meanwhile()
        for page in range(1, 20):
            yield [{"id": 100 * page + number} for number in range(100)]

    @flow
    def main() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        runs.append(context.flow_run.id)
        with behind(proxy):
            pipeline.run(orders)

    main()
    return runs[0]


@pytest.mark.parametrize("mode", ["slow", "hanging", "429", "500", "reset", "down"])
def test_a_load_succeeds_while_the_api_goes_bad_and_all_is_shown_when_it_is_back(
    pipeline: Callable[..., Pipeline], proxy: Proxy, caplog: pytest.LogCaptureFixture, mode: Mode
) -> None:
    def break_the_api() -> None:
        # The first state of the progress has arrived.
        assert eventually(lambda: proxy.answers["POST /api/artifacts/"] > 0)
        proxy.mode = mode

    # One that is slow answers in time, however busy the machine is.
    shop = pipeline(progress=PrefectCollector(0.01, close_timeout=GENEROUS if mode == "slow" else 1.0))
    run = load(shop, proxy, break_the_api)

    # The run has ended, and the API is still as bad.
    assert proxy.mode == mode
    assert count(shop, "orders") == 2_000
    warnings = warnings_of(caplog)
    if mode == "slow":
        assert warnings == []
    else:
        (warning,) = warnings
        assert "shop-summary" in warning

    proxy.mode = "up"

    assert eventually(lambda: set(keys_of(run)) >= KEYS)
    keys = keys_of(run)
    assert len(keys) == len(set(keys))
    assert len(warnings_of(caplog)) == len(warnings)


@pytest.mark.parametrize("mode", ["hanging", "down"])
def test_an_api_that_is_back_before_the_run_ends_costs_neither_a_report_nor_a_warning(
    pipeline: Callable[..., Pipeline], proxy: Proxy, caplog: pytest.LogCaptureFixture, mode: Mode
) -> None:
    def break_the_api_for_a_while() -> None:
        assert eventually(lambda: proxy.answers["POST /api/artifacts/"] > 0)
        proxy.mode = mode
        (sender,) = module._publishers.values()
        sender.put(Place("shop-probe", NO_RUN), Draft("progress", "probe", 1.0))
        assert proxy.wait_for_calls(1) if mode == "hanging" else eventually(lambda: bool(sender.trouble))
        proxy.mode = "up"

    shop = pipeline(progress=PrefectCollector(0.01, close_timeout=GENEROUS))
    run = load(shop, proxy, break_the_api_for_a_while)

    keys = keys_of(run)
    assert set(keys) >= KEYS
    assert len(keys) == len(set(keys))
    assert warnings_of(caplog) == []


def test_an_api_that_never_answers_holds_up_a_run_by_the_wait_at_its_end_and_nothing_else(
    pipeline: Callable[..., Pipeline], proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Whatever waits for an answer waits for longer than any test may take, and so does the end of the run: but that
    # wait, the only one, is over at once, as if its time had passed.
    monkeypatch.setattr(prefect_api, "REQUEST_TIMEOUT", 3600.0)
    monkeypatch.setattr(module, "SILENCE", 3600.0)
    waits: list[float] = []
    with behind(proxy):
        sender = publisher()
    really_wait_for = sender._changed.wait_for

    def wait_for(predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        if timeout is None:
            return really_wait_for(predicate)
        waits.append(timeout)
        return predicate()

    monkeypatch.setattr(sender._changed, "wait_for", wait_for)
    proxy.mode = "hanging"
    shop = pipeline(progress=PrefectCollector(0.0, close_timeout=3000.0))

    def wait_for_a_call() -> None:
        assert eventually(lambda: bool(proxy.calls))

    load(shop, proxy, wait_for_a_call)

    assert count(shop, "orders") == 2_000
    assert proxy.mode == "hanging"
    assert proxy.answers == {}
    assert waits == [3000.0]
    (warning,) = warnings_of(caplog)
    assert "shop-summary" in warning


def test_of_a_short_run_the_summary_is_shown_when_it_ends_though_each_answer_takes_two_seconds(
    pipeline: Callable[..., Pipeline], proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.delay = 2.0
    proxy.mode = "slow"

    run = load(pipeline(progress=PrefectCollector()), proxy, lambda: None)

    assert "shop-summary" in keys_of(run)
    assert "shop-summary" not in "".join(warnings_of(caplog))


def test_an_artifact_that_the_api_made_too_late_to_be_heard_is_not_made_twice(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefect_api, "REQUEST_TIMEOUT", 0.3)
    proxy.delay = 1.0
    key = "too-late"
    with behind(proxy):
        sender = publisher()
        sender.put(Place("first", NO_RUN), Draft("markdown", "The connection stands", "# First"))
        assert sender.flush(GENEROUS, NO_RUN) == []
        proxy.mode = "slow"
        before = proxy.answers["POST /api/artifacts/"]
        sender.put(Place(key, NO_RUN), Draft("markdown", "Too late", "# Old"))
        assert eventually(lambda: proxy.answers["POST /api/artifacts/"] > before)
        sender.put(Place(key, NO_RUN), Draft("markdown", "Too late", "# New"))
        proxy.mode = "up"
        assert sender.flush(GENEROUS, NO_RUN) == []

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate({"key": {"any_": [key]}}))
    assert [artifact.data for artifact in found] == ["# New"]


def test_an_event_that_is_sent_twice_is_there_once_and_so_is_that_of_a_new_artifact(proxy: Proxy) -> None:
    event = Event(event="dlt.test.twice", resource=Resource({"prefect.resource.id": "dlt.test"}), payload={"n": 1})

    def names() -> list[str]:
        wanted = {"event": {"name": ["dlt.test.twice", "dlt.test.last", "prefect.artifact.created"]}}
        with get_client(sync_client=True) as client:
            found = client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"]
        return [
            each["event"]
            for each in found
            if each["event"].startswith("dlt.test.") or each["resource"].get("prefect.resource.name") == "an-event"
        ]

    with behind(proxy):
        sender = publisher()
        sender.put(Place("an-event", NO_RUN), Draft("table", "A table", '[{"a": 1}]'))
        for _ in range(2):
            sender.emit(event)
            assert sender.flush(GENEROUS, NO_RUN) == []
        sender.emit(event.model_copy(update={"event": "dlt.test.last", "id": UUID(int=1)}))
        assert sender.flush(GENEROUS, NO_RUN) == []

    assert eventually(lambda: "dlt.test.last" in names())
    assert sorted(names()) == ["dlt.test.last", "dlt.test.twice", "prefect.artifact.created"]


def test_a_process_ends_while_the_api_hangs_and_says_what_was_not_shown() -> None:
    program = """
        from prefect.settings import PREFECT_API_URL, temporary_settings
        from prefect_dlt.publisher import Draft, Place, Run, publisher
        import sys

        with temporary_settings({PREFECT_API_URL: sys.argv[1]}):
            publisher().put(Place("shop-summary", Run(None, None)), Draft("markdown", "Loaded", "# Loaded"))
        """
    proxy = Proxy("http://127.0.0.1:9/api")
    proxy.mode = "hanging"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), proxy.url],
            check=False,
            capture_output=True,
            text=True,
            timeout=GENEROUS * 2,
        )
    finally:
        proxy.close()

    assert ended.returncode == 0, ended.stderr
    assert "Not shown in Prefect: shop-summary" in ended.stderr
    assert "Fatal" not in ended.stderr
