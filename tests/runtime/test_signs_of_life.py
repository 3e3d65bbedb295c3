"""Flow runs of parts say that they are alive; one that does not is taken for lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Running

from prefect_dlt import signs_of_life, submit_to
from prefect_dlt.results import ComponentResult
from prefect_dlt.signs_of_life import SignsOfLife, runs_of, tag_of
from prefect_dlt.stop import pause
from prefect_dlt.told import Begun

pytestmark = pytest.mark.usefixtures("prefect_api")

NAME = "shop__people"
SOMEWHERE = submit_to.Target("somewhere", deployment=cast("Any", None), takes_references=True)


@flow
def part() -> None:
    """Stand for what a worker runs."""


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def flow_run(client: SyncPrefectClient, request: pytest.FixtureRequest) -> FlowRun:
    """A flow run of a part, which runs on some worker."""
    return client.create_flow_run(part, state=Running(), tags=[tag_of(NAME), tag_of(request.node.name)])


def test_signs_are_given_until_the_part_has_ended(
    client: SyncPrefectClient, flow_run: FlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs_of_life, "BEAT_SECONDS", 0.05)
    signs = SignsOfLife(flow_run.id, "here")

    with signs.given():
        signs.tell(begun=(Begun("17.1", (("people",),)),))
        while (told := runs_of(client, tag_of(NAME))[0].told).beats < 2:
            pause(0.05)
    assert "signs-of-life" not in {thread.name for thread in threading.enumerate()}
    beats = runs_of(client, tag_of(NAME))[0].told.beats
    signs.tell(result=ComponentResult("people"))

    assert (told.home, told.begun) == ("here", (Begun("17.1", (("people",),)),))
    (run,) = [run for run in runs_of(client, tag_of(NAME)) if run.flow_run.id == flow_run.id]
    assert (run.told.beats, run.told.result) == (beats, ComponentResult("people"))
    assert not run.is_over


def test_a_flow_run_that_gives_no_signs_any_more_is_taken_for_lost(
    client: SyncPrefectClient, flow_run: FlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs, now, beats = SignsOfLife(flow_run.id, "here"), [0.0], iter(range(1, 4))

    def wait(seconds: float) -> None:
        now[0] += 0.9 * signs_of_life.LOST_AFTER
        if beat := next(beats, None):
            signs.tell(beats=beat)

    monkeypatch.setattr(signs_of_life, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(submit_to, "pause", wait)

    ended = submit_to._wait(client, SOMEWHERE, {"people": flow_run}, cancels_on_failure=False)

    # Seen with the last of three signs, and not any more in two looks after that.
    assert now[0] == pytest.approx(5 * 0.9 * signs_of_life.LOST_AFTER)
    state: Any = ended["people"].flow_run.state
    assert state.is_crashed()
    assert "No sign of life for 90 s" in state.message


def test_an_api_that_is_away_makes_nobody_lost(
    client: SyncPrefectClient, flow_run: FlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = [0.0], iter(range(1, 9))
    read = client.read_flow_runs

    def refuse(**options: Any) -> Any:
        raise ConnectionError("the API is away")

    def wait(seconds: float) -> None:
        now[0] += 0.9 * signs_of_life.LOST_AFTER
        look = next(looks)
        monkeypatch.setattr(client, "read_flow_runs", refuse if look < 4 else read)
        if look == 5:
            client.set_flow_run_state(flow_run.id, Completed(), force=True)

    monkeypatch.setattr(signs_of_life, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(submit_to, "pause", wait)

    ended = submit_to._wait(client, SOMEWHERE, {"people": flow_run}, cancels_on_failure=False)

    state: Any = ended["people"].flow_run.state
    assert state.is_completed()
    assert not ended["people"].is_lost


def test_a_sign_that_does_not_arrive_keeps_no_part_from_ending(
    flow_run: FlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs_of_life, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(signs_of_life, "JOIN_WITHIN", 0.01)
    hangs, ended, send = threading.Event(), threading.Event(), SignsOfLife._send

    def hang(self: SignsOfLife, **changes: Any) -> None:
        if "beats" in changes:
            hangs.set()
            assert ended.wait(60)
        else:
            send(self, **changes)

    monkeypatch.setattr(SignsOfLife, "_send", hang)

    with SignsOfLife(flow_run.id, "here").given():
        assert hangs.wait(60)
    assert "signs-of-life" in {thread.name for thread in threading.enumerate()}
    ended.set()
