"""Reports of runs that end within one flow are waited for together, at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial

import pytest
from dlt.pipeline.pipeline import Pipeline
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_dlt import create_run_pipeline_flow, last_reports
from prefect_dlt.last_reports import MOST_WAITING, wait_for_last, waiting_together
from prefect_dlt.publisher import Publisher, Run
from tests.runtime.sources import shop


def test_outside_of_a_flow_a_run_waits_at_once() -> None:
    waited: list[float] = []

    wait_for_last(waited.append, 5.0)

    assert waited == [5.0]


def test_within_a_flow_all_wait_at_its_end_those_on_other_threads_too() -> None:
    waited: list[str] = []

    def end(name: str) -> None:
        wait_for_last(lambda _: waited.append(name), 5.0)

    with waiting_together():
        end("first")
        thread = threading.Thread(target=copy_context().run, args=(end, "second"))
        thread.start()
        thread.join()
        assert waited == []

    assert waited == ["first", "second"]


def test_together_they_wait_no_longer_than_one_of_them_may(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(last_reports.time, "monotonic", lambda: now[0])
    waited: list[float] = []

    def wait_in_vain(timeout: float) -> None:
        waited.append(timeout)
        now[0] += timeout

    with waiting_together():
        for timeout in (3.0, 5.0, 4.0):
            wait_for_last(wait_in_vain, timeout)

    assert waited == [3.0, 2.0, 0.0]


def test_an_api_that_is_slower_than_the_runs_holds_them_up_before_too_much_waits() -> None:
    waited: list[int] = []

    def wait(number: int, _timeout: float) -> None:
        waited.append(number)

    with waiting_together():
        for number in range(MOST_WAITING + 2):
            wait_for_last(partial(wait, number), 5.0)
        assert waited == [0, 1]

    assert waited == list(range(MOST_WAITING + 2))


def test_what_is_said_at_the_end_is_said_where_the_run_was() -> None:
    place = ContextVar("place", default="nowhere")
    said: list[str] = []

    def end(name: str) -> None:
        place.set(name)
        wait_for_last(lambda _: said.append(place.get()), 5.0)

    with waiting_together(), ThreadPoolExecutor(1) as pool:
        for name in ("first", "second"):
            pool.submit(copy_context().run, end, name).result()

    assert said == ["first", "second"]


def test_reports_are_waited_for_though_the_flow_fails() -> None:
    waited: list[float] = []

    def fail() -> None:
        with waiting_together():
            wait_for_last(waited.append, 5.0)
            raise ValueError("out of luck")

    with pytest.raises(ValueError, match="out of luck"):
        fail()

    assert waited == [pytest.approx(5.0, abs=4.0)]


@pytest.mark.parametrize("decompose", ["parallel", "sequential", "none"])
def test_of_a_flow_no_part_waits_for_the_api_before_all_have_ended(
    pipeline: Callable[..., Pipeline], prefect_api: str, monkeypatch: pytest.MonkeyPatch, decompose: str
) -> None:
    happened: list[str] = []
    really_flush, really_load = Publisher.flush, Pipeline.run

    def flush(self: Publisher, timeout: float, run: Run) -> list[str]:
        happened.append("flush")
        return really_flush(self, timeout, run)

    def load(self: Pipeline, *args: object, **options: object) -> object:
        found = really_load(self, *args, **options)  # type: ignore[arg-type]
        if not self.pipeline_name.startswith("_seed"):
            happened.append("loaded")
        return found

    monkeypatch.setattr(Publisher, "flush", flush)
    monkeypatch.setattr(Pipeline, "run", load)
    # A thread takes the next part only when the one before has ended.
    runner = ThreadPoolTaskRunner(max_workers=1)  # pyright: ignore[reportUnknownVariableType]

    result = create_run_pipeline_flow(pipeline(), shop, decompose=decompose, task_runner=runner)()  # type: ignore[arg-type]

    parts = len(result.components)
    assert happened[:parts] == ["loaded"] * parts
    assert len(happened) == 2 * parts + 1, happened
