"""Two flow runs of a part do not load it at the same time, on whatever machines they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Running

from prefect_dlt import component_flow, runs_elsewhere, signs_of_life
from prefect_dlt.abandoned import home_of, place_of
from prefect_dlt.component_flow import load_here
from prefect_dlt.component_load import WHOLE, ComponentLoad
from prefect_dlt.errors import ComponentFailedError
from prefect_dlt.signs_of_life import SignsOfLife, runs_of, tag_at, tag_of
from prefect_dlt.told import Begun
from tests.runtime.conftest import count

pytestmark = pytest.mark.usefixtures("prefect_api")

ROWS = [{"id": 1}, {"id": 2}]


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def shop(tmp_path: Path, pipeline: Callable[..., Pipeline]) -> Callable[[], Pipeline]:
    """Makes a pipeline with a name of the test's own: flow runs of other tests are not its."""
    return lambda: pipeline(f"shop_{abs(hash(tmp_path))}")


@pytest.fixture
def other(client: SyncPrefectClient, shop: Callable[[], Pipeline]) -> FlowRun:
    """A flow run of the same part on another machine."""
    name, place = shop().pipeline_name, place_of(shop())

    @flow
    def part() -> None:
        """Stand for what a worker runs."""

    return client.create_flow_run(part, state=Running(), tags=[tag_of(name), tag_at(name, place)])


def load(make: Callable[[], Pipeline], **runner_options: Any) -> None:
    """Load the rows in a flow run, as a worker does."""
    work = ComponentLoad(make, lambda: dlt.resource(ROWS, name="orders"), runner_options)

    @flow
    def part() -> None:
        load_here(work, WHOLE, None, {})

    part()


def tell_at_each_look(monkeypatch: pytest.MonkeyPatch, tell: Callable[[int], None]) -> None:
    """Have the other flow run do something at each look at it, of which this tells the number."""
    looks = iter(range(1, 100))

    def wait(seconds: float) -> None:
        tell(next(looks))

    monkeypatch.setattr(runs_elsewhere, "pause", wait)


def test_a_part_that_is_loaded_elsewhere_is_refused(
    other: FlowRun, shop: Callable[[], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = SignsOfLife(other.id, "there")
    signs.tell()
    tell_at_each_look(monkeypatch, lambda look: signs.tell(beats=look))

    with pytest.raises(ComponentFailedError, match=f"elsewhere in flow run '{other.name}', which has not ended"):
        load(shop)

    assert not shop().list_normalized_load_packages()
    assert shop().first_run


def test_a_part_waits_for_one_that_loads_it_elsewhere(
    client: SyncPrefectClient, other: FlowRun, shop: Callable[[], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = SignsOfLife(other.id, "there")
    signs.tell()
    has_begun: list[bool] = []

    def tell(look: int) -> None:
        has_begun.append(not shop().first_run)
        signs.tell(beats=look)
        if look == 3:
            client.set_flow_run_state(other.id, Completed(), force=True)

    tell_at_each_look(monkeypatch, tell)
    load(shop, lock_timeout=600.0)

    assert has_begun == [False, False, False]
    assert count(shop(), "orders") == len(ROWS)


def test_one_that_is_lost_is_not_waited_for_and_what_it_left_is_taken_back(
    client: SyncPrefectClient, other: FlowRun, shop: Callable[[], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    SignsOfLife(other.id, "there").tell(begun=(Begun("17.1", (("orders",),)),))
    monkeypatch.setattr(signs_of_life, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def pass_time(look: int) -> None:
        now[0] = look * 0.4 * signs_of_life.LOST_AFTER

    tell_at_each_look(monkeypatch, pass_time)
    load(shop)

    # Found to be lost at the fourth look, and gone at the fifth.
    assert now[0] == pytest.approx(1.6 * signs_of_life.LOST_AFTER)
    (lost,) = [run for run in runs_of(client, tag_of(shop().pipeline_name)) if run.flow_run.id == other.id]
    assert lost.flow_run.state is not None
    assert lost.flow_run.state.is_crashed()
    assert lost.told.is_settled
    assert count(shop(), "orders") == len(ROWS)


def test_of_two_that_begin_at_the_same_time_the_first_one_loads(
    client: SyncPrefectClient, other: FlowRun, shop: Callable[[], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_runs_elsewhere, tags = runs_elsewhere.wait_for_runs_elsewhere, list[str]()

    def with_a_later_one(client: SyncPrefectClient, signs: SignsOfLife, *args: Any) -> None:
        SignsOfLife(other.id, "there").tell()
        wait_for_runs_elsewhere(client, signs, *args)

    send = SignsOfLife._send

    def look_at_tags(self: SignsOfLife, **changes: Any) -> None:
        if self.flow_run_id != other.id and self.artifact_id is None:
            tags.extend(client.read_flow_run(self.flow_run_id).tags)
        send(self, **changes)

    monkeypatch.setattr(SignsOfLife, "_send", look_at_tags)
    monkeypatch.setattr(component_flow, "wait_for_runs_elsewhere", with_a_later_one)
    load(shop)

    assert count(shop(), "orders") == len(ROWS)
    # Had it told of itself before it can be found, the later one could have missed it.
    assert tags == [tag_at(shop().pipeline_name, place_of(shop()))]


def test_one_that_works_here_is_left_to_the_lock_of_the_working_directory(
    client: SyncPrefectClient, other: FlowRun, shop: Callable[[], Pipeline]
) -> None:
    SignsOfLife(other.id, home_of(shop())).tell()

    load(shop)

    assert count(shop(), "orders") == len(ROWS)
