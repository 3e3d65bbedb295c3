"""A flow run that is cancelled, terminated or interrupted: its pipelines stop in time, and the next run goes on."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dlt
import psutil
import pytest
from dlt.common.runtime import signals
from dlt.pipeline.pipeline import Pipeline
from prefect import flow, get_client, task
from prefect.exceptions import TerminationSignal
from prefect.futures import wait
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling, State
from prefect.task_runners import ProcessPoolTaskRunner
from tenacity import Retrying, stop_after_attempt, wait_fixed
from typing_extensions import override

from prefect_dlt import CallbackCollector, create_run_pipeline_flow, drain_on_cancellation, runner
from tests.runtime import served
from tests.runtime.conftest import count

pytestmark = pytest.mark.usefixtures("prefect_api")

ROOT = Path(__file__).parents[2]

LONG = 120.0
"""Seconds that what is stopped would take, and that a condition is waited for at most."""

STOPS = {signal.SIGTERM: TerminationSignal, signal.SIGINT: KeyboardInterrupt}


@pytest.fixture(autouse=True)
def _survives_sigterm() -> Iterator[None]:
    """Where a flow does not take SIGTERM, Prefect hands it on to the process, which is that of the tests."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


class Stops(CallbackCollector):
    """Sends a signal to this process, once, when the run comes to a certain point, and waits there for its effect."""

    def __init__(self, where: str, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.where = where
        self.number = number
        self.sent = False

    def at(self, where: str, *, waits: bool = True) -> None:
        """Be told that the run is here."""
        if where != self.where or self.sent:
            return
        self.sent = True
        os.kill(os.getpid(), self.number)
        if waits:
            wait_until(signals.was_signal_received)

    @override
    def on_retry(self, *_: Any) -> None:
        self.at("pause", waits=False)

    @override
    def update(self, name: str, *args: Any, **kwargs: Any) -> None:
        # What dlt counts before it normalises the first file, and before it starts the first job.
        self.at({"Files": "normalize", "Jobs": "load"}.get(name, "elsewhere"))
        super().update(name, *args, **kwargs)


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell that runs the tests in its background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for a condition, but not for ever."""
    ends_at = time.monotonic() + LONG
    while not holds() and time.monotonic() < ends_at:
        time.sleep(0.02)


def rows(collector: Stops, *, fails: bool = False) -> Iterator[Any]:
    """Yield two rows; and then more for a long time, where the run is to stop while it extracts."""
    yield [{"id": 1}, {"id": 2}]
    if fails:
        raise ConnectionError("asleep")
    if collector.where == "extract":
        collector.at("extract", waits=False)
        ends_at = time.monotonic() + LONG
        while time.monotonic() < ends_at:
            time.sleep(0.02)
            yield [{"id": 3}]


def run_states(flow_run_name: str) -> tuple[State[Any], list[State[Any]]]:
    """Return the states of a flow run and of its task runs in the API, once its task runs have ended there."""
    ends_at = time.monotonic() + LONG
    with get_client(sync_client=True) as client:
        while True:
            (flow_run,) = [run for run in client.read_flow_runs() if run.name == flow_run_name]
            tasks = [run for run in client.read_task_runs() if run.flow_run_id == flow_run.id]
            if (tasks and all(run.state.is_final() for run in (flow_run, *tasks))) or time.monotonic() > ends_at:
                return flow_run.state, [run.state for run in tasks]
            time.sleep(0.1)


def is_cancelled_with_its_tasks_closed(flow_run_name: str) -> bool:
    flow_state, task_states = run_states(flow_run_name)
    return bool(flow_state.is_cancelled() and task_states and all(state.is_final() for state in task_states))


@pytest.mark.parametrize("runs", ["submitted", pytest.param("called", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("where", "number", "is_pending"),
    [
        ("extract", signal.SIGTERM, False),
        pytest.param("extract", signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param("normalize", signal.SIGTERM, True, marks=pytest.mark.slow),
        ("load", signal.SIGTERM, True),
        pytest.param("load", signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param("pause", signal.SIGTERM, False, marks=pytest.mark.slow),
    ],
)
def test_a_pipeline_in_a_task_stops_and_keeps_what_is_pending_and_the_next_run_finishes_it(
    pipeline: Callable[..., Pipeline], where: str, number: int, is_pending: bool, runs: str
) -> None:
    name = f"{where}-{number}-{runs}"
    collector = Stops(where, number)

    @task
    def load() -> Any:
        policy = Retrying(stop=stop_after_attempt(2), wait=wait_fixed(LONG), reraise=True)
        run = runner(pipeline(progress=collector), retry_policy=policy, retry_pipeline_steps=["extract"])
        return run.run(lambda: rows(collector, fails=collector.where == "pause"), table_name="rows")

    @flow(flow_run_name=name)
    def main() -> Any:
        return load.submit().result() if runs == "submitted" else load()

    with pytest.raises(STOPS[number]):
        main()

    assert is_cancelled_with_its_tasks_closed(name)
    assert pipeline().has_pending_data is is_pending

    @flow
    def again() -> Any:
        return load.submit().result()

    # In the same process: what asked the first run to stop is over.
    collector.where = "nowhere"
    again()
    assert count(pipeline(), "rows") == (4 if is_pending else 2)


@pytest.fixture
def start(own_folder: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start the program in `served.py`, in a process that does not outlive the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(how: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.runtime.served", str(own_folder), how]
        settings = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        started.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}))
        return started[-1]

    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        process.wait(LONG)


def has_begun(folder: Path) -> bool:
    """Tell whether the load step in a folder has begun."""
    return (folder / "reached").exists()


def wait_for_process(folder: Path) -> psutil.Process:
    """Return the process whose load step has begun."""
    wait_until((folder / "reached").exists)
    return psutil.Process(int((folder / "reached").read_text(encoding="utf-8")))


def is_finished_by_the_next_run(folder: Path) -> bool:
    shop = served.pipeline(folder)
    assert shop.has_pending_data
    runner(shop).finalize()
    return not shop.has_pending_data and count(shop, "rows") == len(served.ROWS)


@pytest.mark.slow
def test_a_served_run_that_is_cancelled_or_terminated_ends_as_cancelled(
    start: Callable[[str], subprocess.Popen[bytes]], own_folder: Path
) -> None:
    start("serve")
    with get_client(sync_client=True) as client:
        wait_until(lambda: any(each.name == "served" for each in client.read_deployments()))
        (deployment,) = [each for each in client.read_deployments() if each.name == "served"]
        for submits, is_cancelled in ((True, True), (False, True), (True, False)):
            folder = own_folder / f"{submits}-{is_cancelled}"
            folder.mkdir()
            parameters = {"folder": str(folder), "submits": submits}
            run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
            process = wait_for_process(folder)
            if is_cancelled:
                client.set_flow_run_state(run.id, Cancelling())  # as `prefect flow-run cancel` does
            else:
                process.terminate()
            process.wait(LONG)
            assert is_cancelled_with_its_tasks_closed(run.name)
            assert is_finished_by_the_next_run(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPS)
def test_a_program_that_is_terminated_or_interrupted_ends_with_its_run_cancelled(
    start: Callable[[str], subprocess.Popen[bytes]], own_folder: Path, number: int
) -> None:
    program = start("run")
    wait_for_process(own_folder).send_signal(number)

    assert program.wait(LONG) == 1
    with get_client(sync_client=True) as client:
        (run,) = [each for each in client.read_flow_runs() if each.parameters.get("folder") == str(own_folder)]
    assert is_cancelled_with_its_tasks_closed(run.name)
    assert is_finished_by_the_next_run(own_folder)


@pytest.mark.slow
# Prefect's future takes what the task raised for an ordinary error, and lets its own thread end with it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("counter", "is_pending"), [("Resources", False), ("Jobs", True)])
def test_a_pipeline_in_a_process_of_a_pool_stops_as_well(own_folder: Path, counter: str, is_pending: bool) -> None:
    others = multiprocessing.active_children()

    @flow(flow_run_name=f"pool-{counter}", task_runner=ProcessPoolTaskRunner(max_workers=2))
    def main() -> None:
        with drain_on_cancellation():
            future = served.load.submit(str(own_folder), counter)
            wait_for_process(own_folder)
            os.kill(os.getpid(), signal.SIGTERM)
            future.result()

    with pytest.raises(TerminationSignal):
        main()

    # This process would wait for them when it ends.
    assert not [each for each in multiprocessing.active_children() if each not in others]
    assert is_cancelled_with_its_tasks_closed(f"pool-{counter}")
    assert served.pipeline(own_folder).has_pending_data is is_pending
    assert not is_pending or is_finished_by_the_next_run(own_folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("parts", [1, 5])
def test_a_pool_with_idle_processes_or_more_tasks_than_processes_ends_and_begins_nothing(
    own_folder: Path, parts: int
) -> None:
    others = multiprocessing.active_children()
    folders = [own_folder / str(number) for number in range(parts)]
    for folder in folders:
        folder.mkdir()

    @flow(flow_run_name=f"pool-of-{parts}", task_runner=ProcessPoolTaskRunner(max_workers=2))
    def main() -> None:
        with drain_on_cancellation():
            if parts == 1:
                # Both processes are there, and one is idle by the time the other one is at work.
                wait([nothing.submit() for _ in range(4)])
            futures = [served.load.submit(str(folder)) for folder in folders]
            wait_until(lambda: sum(map(has_begun, folders)) == min(parts, 2))
            os.kill(os.getpid(), signal.SIGTERM)
            futures[0].result()

    with pytest.raises(TerminationSignal):
        main()

    assert not [each for each in multiprocessing.active_children() if each not in others]
    # Prefect hands tasks to the pool on threads: which of them are the first two, nobody knows.
    assert sum(map(has_begun, folders)) == min(parts, 2)


@task
def nothing() -> None:
    """Take a process for a moment."""


@pytest.mark.slow
def test_the_processes_that_dlt_normalises_in_are_not_waited_for(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORMALIZE__WORKERS", "2")
    monkeypatch.setenv("DATA_WRITER__FILE_MAX_ITEMS", "1")

    @task
    def load() -> Any:
        return runner(pipeline()).run([{"id": 1}, {"id": 2}], table_name="rows")

    others = psutil.Process().children()

    def workers() -> list[psutil.Process]:
        started = [each for each in psutil.Process().children() if each not in others]
        return [each for each in started if "spawn_main" in " ".join(each.cmdline())]

    @flow(flow_run_name="workers")
    def main() -> Any:
        future = load.submit()
        wait_until(lambda: len(workers()) > 0)
        for worker in workers():
            worker.suspend()
        os.kill(os.getpid(), signal.SIGTERM)
        return future.result()

    with pytest.raises(TerminationSignal):
        main()

    assert not workers()
    assert is_cancelled_with_its_tasks_closed("workers")
    assert pipeline().list_extracted_load_packages()
    monkeypatch.undo()
    runner(pipeline()).finalize()
    assert count(pipeline(), "rows") == 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "sequential", "parallel"])
def test_every_mode_of_a_flow_stops_and_so_does_the_flow_that_calls_it(
    pipeline: Callable[..., Pipeline], mode: Any
) -> None:
    stop = Stops("extract")

    @dlt.source
    def endless() -> Any:
        return [dlt.resource(rows(stop), name="one"), dlt.resource(rows(Stops("nowhere")), name="other")]

    part = create_run_pipeline_flow(pipeline, endless, decompose=mode, flow_name=f"part-{mode}")

    @flow(flow_run_name=f"whole-{mode}")
    def main() -> Any:
        return part()

    with pytest.raises(TerminationSignal):
        main()

    with get_client(sync_client=True) as client:
        flow_ids = {each.id: each.name for each in client.read_flows()}
        states = [each.state for each in client.read_flow_runs() if flow_ids[each.flow_id] == f"part-{mode}"]
    assert [state.is_cancelled() for state in states] == [True]
    assert is_cancelled_with_its_tasks_closed(f"whole-{mode}")


def test_an_async_flow_that_waits_for_its_task_stops_as_well(pipeline: Callable[..., Pipeline]) -> None:
    stop = Stops("extract")

    @task
    def load() -> Any:
        return runner(pipeline()).run(rows(stop), table_name="rows")

    @flow(flow_run_name="async")
    async def main() -> Any:
        return load.submit().result()

    with pytest.raises(TerminationSignal):
        asyncio.run(main())

    assert is_cancelled_with_its_tasks_closed("async")
