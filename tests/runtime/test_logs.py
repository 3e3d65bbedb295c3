"""What dlt logs in a run, in the log that a real Prefect server keeps of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import dlt
import pytest
from dlt.common import logger as dlt_logger
from dlt.common.configuration.container import Container
from dlt.common.configuration.specs import PluggableRunContext
from dlt.common.runtime.collector import NULL_COLLECTOR
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterTaskRunId,
)
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL

from prefect_dlt import CallbackCollector, PrefectCollector, forward_dlt_logs
from prefect_dlt.logs import current_run_ids, keep_console, start_forwarding, stop_forwarding

PLACES = ("main", "extract thread", "async extract thread", "load thread")
"""Where a run of `talkative` logs from, each at WARNING and once."""

DLT = logging.getLogger("dlt")


def say(place: str, level: int = logging.WARNING) -> None:
    """Log a line as dlt does, from the thread that this is called on; its name is checked besides."""
    thread, kind = threading.current_thread().name, place.partition(" of ")[0]
    expected = {"extract thread": "-extract-threads", "async extract thread": "-extract-futures", "load thread": "_"}
    assert expected.get(kind, "") in thread, thread
    assert thread.startswith("dlt-pool-") == (kind in expected), thread
    dlt_logger.log(level, "%s", place)


def talkative(name: str = "", level: int = logging.WARNING, progress: Any = NULL_COLLECTOR) -> Callable[[], None]:
    """Return the run of a pipeline that logs a line from each kind of thread, with ` of <name>` if there is one."""
    suffix = f" of {name}" if name else ""

    @dlt.resource
    def plain() -> Iterator[Any]:
        say("main" + suffix, level)
        yield {"id": 1}

    @dlt.resource(parallelized=True)
    def parallel() -> Iterator[Any]:
        say("extract thread" + suffix, level)
        yield {"id": 1}

    @dlt.resource
    async def asynchronous() -> AsyncIterator[Any]:
        say("async extract thread" + suffix, level)
        yield {"id": 1}

    @dlt.destination(name="sink", batch_size=0)
    def sink(items: Any, table: Any) -> None:
        if table["name"] == "plain":
            say("load thread" + suffix, level)

    def run() -> None:
        pipeline = dlt.pipeline(name or "talkative", destination=sink(), progress=progress)
        pipeline.run([plain(), parallel(), asynchronous()])

    return run


def lines_of(
    flow_run_id: UUID | None, task_run_id: UUID | None = None, name: str = "dlt"
) -> Counter[tuple[UUID | None, str]]:
    """Return what a logger has in the log of a flow run, or of a task run: task run and message, and how often."""
    drained = APILogWorker.drain_all(timeout=30)
    assert not asyncio.iscoroutine(drained)
    which = (
        LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
        if flow_run_id is not None
        else LogFilter(task_run_id=LogFilterTaskRunId(any_=[task_run_id] if task_run_id else []))
    )
    with get_client(sync_client=True) as client:
        return Counter((line.task_run_id, line.message) for line in client.read_logs(which) if line.name == name)


def own_ids() -> tuple[UUID, UUID | None]:
    """Return flow run and task run of the run that this is called in."""
    run_ids = current_run_ids()
    assert run_ids is not None
    assert run_ids[0] is not None
    return run_ids[0], run_ids[1]


def settings_of_dlts_logger() -> tuple[list[logging.Handler], list[Any], int]:
    """Return handlers, but for those of pytest, filters and level."""
    handlers = [handler for handler in DLT.handlers if type(handler).__module__ != "_pytest.logging"]
    return handlers, [*DLT.filters], DLT.level


def once(task_run_id: UUID | None, *messages: str) -> Counter[tuple[UUID | None, str]]:
    return Counter((task_run_id, message) for message in messages)


@pytest.fixture(autouse=True)
def _dlts_logger_is_left_as_it_was() -> Iterator[None]:
    """A run of no kind leaves handlers, filters or a level on dlt's logger."""
    Container()[PluggableRunContext].initialize_runtime()
    before = settings_of_dlts_logger()
    yield
    assert settings_of_dlts_logger() == before


@pytest.mark.usefixtures("prefect_api")
class TestForwarding:
    def test_records_from_each_thread_reach_the_task_of_the_collector_once(self) -> None:
        runs: list[tuple[UUID, UUID | None]] = []

        @task
        def load() -> None:
            runs.append(own_ids())
            talkative(progress=PrefectCollector())()

        @flow
        def main() -> None:
            load.submit().result()

        main()

        ((flow_run_id, task_run_id),) = runs
        assert task_run_id is not None
        assert lines_of(flow_run_id) == once(task_run_id, *PLACES)

    @pytest.mark.parametrize("is_async", [False, True])
    def test_and_the_run_of_the_function_without_a_collector(self, is_async: bool) -> None:
        runs: list[tuple[UUID, UUID | None]] = []

        def load() -> None:
            runs.append(own_ids())
            with forward_dlt_logs():
                talkative()()

        if is_async:

            @flow
            async def asynchronous() -> None:
                await asyncio.sleep(0)
                load()

            asyncio.run(asynchronous())
        else:
            flow(load)()

        ((flow_run_id, _),) = runs
        assert lines_of(flow_run_id) == once(None, *PLACES)

    def test_what_this_package_warns_of_reaches_the_run_too(self) -> None:
        runs: list[tuple[UUID, UUID | None]] = []
        own = logging.getLogger("prefect_dlt")

        @flow
        def load() -> None:
            runs.append(own_ids())
            with forward_dlt_logs():
                own.warning("no worker is there")
            own.warning("nobody's")

        load()

        ((flow_run_id, _),) = runs
        assert lines_of(flow_run_id, name="prefect_dlt") == once(None, "no worker is there")
        assert not [handler for handler in own.handlers if type(handler).__module__ != "_pytest.logging"]

    def test_a_task_without_a_flow_keeps_its_lines(self) -> None:
        runs: list[tuple[UUID | None, UUID | None] | None] = []

        @task
        def load() -> None:
            runs.append(current_run_ids())
            with forward_dlt_logs():
                talkative()()

        load()

        (run_ids,) = runs
        assert run_ids is not None
        assert lines_of(*run_ids) == once(run_ids[1], *PLACES)

    @pytest.mark.slow
    def test_a_flow_called_in_a_task_keeps_its_own_lines_and_artifacts(self) -> None:
        runs: list[tuple[UUID, UUID | None]] = []

        @flow
        def inner() -> None:
            runs.append(own_ids())
            talkative(progress=PrefectCollector())()

        @task
        def outer() -> None:
            inner()

        flow(outer)()

        ((flow_run_id, task_run_id),) = runs
        assert task_run_id is None
        assert lines_of(flow_run_id) == once(None, *PLACES)
        with get_client(sync_client=True) as client:
            own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
            assert {artifact.task_run_id for artifact in client.read_artifacts(artifact_filter=own)} == {None}

    @pytest.mark.parametrize("with_collector", [pytest.param(True, marks=pytest.mark.slow), False])
    def test_two_pipelines_at_once_do_not_mix(self, with_collector: bool) -> None:
        runs: dict[str, tuple[UUID, UUID | None]] = {}
        both = threading.Barrier(2, timeout=60)

        class Together(CallbackCollector):
            def before_load(self, *_: Any) -> None:
                both.wait()

        class TogetherOnPrefect(PrefectCollector):
            def before_load(self, *_: Any) -> None:
                both.wait()

        @task
        def load(name: str) -> None:
            runs[name] = own_ids()
            if with_collector:
                talkative(name, progress=TogetherOnPrefect())()
                return
            with forward_dlt_logs():
                talkative(name, progress=Together())()
                both.wait()

        @flow
        def main() -> None:
            for future in [load.submit(name) for name in ("ada", "grace")]:
                future.result()

        main()

        (flow_run_id, _) = runs["ada"]
        expected = (once(runs[name][1], *(f"{place} of {name}" for place in PLACES)) for name in ("ada", "grace"))
        assert lines_of(flow_run_id) == next(expected) + next(expected)

    def test_what_a_flow_forwards_for_its_tasks_are_the_lines_that_are_theirs_for_sure(self) -> None:
        runs: list[tuple[UUID, UUID | None]] = []

        @task
        def load() -> None:
            runs.append(own_ids())
            talkative()()

        @flow
        def main() -> None:
            with forward_dlt_logs():
                load.submit().result()

        main()

        # The load threads of a task that did not ask cannot be told from those of another run.
        ((flow_run_id, task_run_id),) = runs
        assert lines_of(flow_run_id) == once(task_run_id, *PLACES[:3])

    @pytest.mark.parametrize("name", ["of nobody's", "dlt-pool-123456-load_0"])
    def test_a_thread_that_is_not_the_runs_is_not_logged_into_it(self, name: str) -> None:
        runs: list[tuple[UUID, UUID | None]] = []

        @dlt.resource
        def orders() -> Iterator[Any]:
            foreign = threading.Thread(target=lambda: dlt_logger.warning("of somebody else"), name=name)
            foreign.start()
            foreign.join()
            dlt_logger.warning("of the run")
            yield {"id": 1}

        @flow
        def main() -> None:
            runs.append(own_ids())
            dlt.pipeline("alone", destination="duckdb", progress=PrefectCollector()).extract(orders)

        main()

        assert lines_of(runs[0][0]) == once(None, "of the run")

    @pytest.mark.slow
    def test_a_run_inside_another_gives_the_thread_back(self) -> None:
        runs: dict[str, tuple[UUID, UUID | None]] = {}

        @task
        def inner() -> None:
            runs["inner"] = own_ids()
            talkative("inner", progress=PrefectCollector())()

        @task
        def outer() -> None:
            runs["outer"] = own_ids()
            with forward_dlt_logs():
                inner()
                talkative("outer")()

        flow(outer)()

        (flow_run_id, _) = runs["outer"]
        expected = (once(runs[name][1], *(f"{place} of {name}" for place in PLACES)) for name in ("inner", "outer"))
        assert lines_of(flow_run_id) == next(expected) + next(expected)

    def test_dlt_may_set_its_logger_up_again(self) -> None:
        runs: list[tuple[UUID, UUID | None]] = []
        dlts: list[logging.Handler] = [*DLT.handlers]

        @flow
        def main() -> None:
            runs.append(own_ids())
            with forward_dlt_logs("INFO"):
                talkative("before", logging.INFO)()
                Container()[PluggableRunContext].reload()
                assert DLT.level == logging.INFO
                talkative("after", logging.INFO)()
                assert DLT.handlers[1:] == dlts

        main()

        ((flow_run_id, _),) = runs
        said = {message: count for (_, message), count in lines_of(flow_run_id).items() if " of " in message}
        assert said == {f"{place} of {name}": 1 for place in PLACES for name in ("before", "after")}

    def test_a_record_with_an_error_ends_in_its_traceback(self) -> None:
        runs: list[tuple[UUID, UUID | None]] = []

        @flow
        def main() -> None:
            runs.append(own_ids())
            with forward_dlt_logs():
                try:
                    raise ConnectionError("the line is dead")
                except ConnectionError:
                    dlt_logger.exception("it was said")

        main()

        ((_, line),) = lines_of(runs[0][0])
        assert line.startswith("it was said\nTraceback (most recent call last):\n")
        assert line.endswith("\nConnectionError: the line is dead")


@pytest.mark.usefixtures("prefect_api")
class TestLevels:
    def test_without_asking_it_is_dlts(self) -> None:
        runs: list[tuple[UUID, UUID | None]] = []

        @flow
        def main() -> None:
            runs.append(own_ids())
            talkative(level=logging.INFO, progress=PrefectCollector())()

        main()

        assert not lines_of(runs[0][0])

    @pytest.mark.slow
    def test_what_is_asked_for_one_run_is_not_for_another(self) -> None:
        runs: dict[str, tuple[UUID, UUID | None]] = {}
        written: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: written.append(record.getMessage())  # type: ignore[method-assign]
        both = threading.Barrier(2, timeout=60)

        @task
        def load(name: str, level: str | None) -> None:
            runs[name] = own_ids()
            with forward_dlt_logs(level):
                both.wait()
                talkative(name, logging.INFO, PrefectCollector())()
                both.wait()

        @flow
        def main() -> None:
            for future in [load.submit("ada", "info"), load.submit("grace", None)]:
                future.result()

        DLT.addHandler(handler)
        main()
        DLT.removeHandler(handler)

        said = {line: count for line, count in lines_of(runs["ada"][0]).items() if " of " in line[1]}
        assert said == once(runs["ada"][1], *(f"{place} of ada" for place in PLACES))
        assert sorted(line for line in written if " of " in line) == sorted(f"{place} of ada" for place in PLACES)

    def test_an_unknown_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match="LOUD"):
            forward_dlt_logs("loud")


PASSWORD = "hunter2-of-the-warehouse"
TOKEN = "dlt-knows-this-token"


@pytest.mark.usefixtures("prefect_api")
def test_no_secret_reaches_the_log_of_the_run_or_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[UUID, UUID | None]] = []
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(handler.format(record))  # type: ignore[method-assign]
    monkeypatch.setenv("SOURCES__TEST_LOGS__SECRETIVE__TOKEN", TOKEN)

    @dlt.resource
    def secretive(token: str = dlt.secrets.value) -> Iterator[Any]:
        dlt_logger.warning("asking with %s at postgres://ada:%s@db/shop", token, PASSWORD)
        yield {"id": 1}

    @dlt.destination(name="sink", batch_size=0)
    def sink(items: Any, table: Any) -> None:
        try:
            raise ConnectionError(f"{TOKEN} was refused by postgres://ada:{PASSWORD}@db/shop")
        except ConnectionError:
            dlt_logger.warning("could not load", exc_info=True, stack_info=True)  # password=in-the-stack

    @flow
    def main() -> None:
        runs.append(own_ids())
        with forward_dlt_logs():
            dlt.pipeline("secretive", destination=sink(), progress=PrefectCollector()).run(secretive())
            # dlt has forgotten by now what it has read.
            dlt_logger.warning("done with %s", TOKEN)
            dlt_logger.warning("%d rows", 2)

    DLT.addHandler(handler)
    main()
    DLT.removeHandler(handler)

    lines = [message for _, message in lines_of(runs[0][0])]
    assert lines[0] == "asking with *** at postgres://ada:***@db/shop"
    assert lines[1].startswith("could not load\nTraceback")
    assert "ConnectionError: *** was refused by postgres://ada:***@db/shop" in lines[1]
    assert "in-the-stack" not in lines[1]
    assert lines[2:] == ["done with ***", "2 rows"]
    assert written == lines


@pytest.mark.usefixtures("prefect_api")
def test_a_very_long_record_is_cut_and_takes_little_time() -> None:
    runs: list[tuple[UUID, UUID | None]] = []
    took: list[float] = []

    @flow
    def main() -> None:
        runs.append(own_ids())
        with forward_dlt_logs():
            started = time.process_time()
            dlt_logger.warning("begins with %s and ends", "x1 y2," * 1_000_000)
            took.append(time.process_time() - started)

    main()

    ((_, line),) = lines_of(runs[0][0])
    assert line.startswith("begins with x1 y2,")
    assert line.endswith("y2, and ends")
    assert "characters left out" in line
    # Some hundredths of a second; looked through as a whole it would take seconds.
    assert took[0] < 2.0


@pytest.mark.usefixtures("prefect_api")
def test_a_handler_of_the_users_keeps_its_place_its_format_and_its_records() -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    formatter = logging.Formatter("mine: %(message)s")
    handler.setFormatter(formatter)
    dlts = [*DLT.handlers]
    DLT.handlers = [handler]

    @flow
    def main() -> None:
        with forward_dlt_logs():
            Container()[PluggableRunContext].reload()
            dlt_logger.warning("%d rows", 2)

    main()

    assert DLT.handlers == [handler]
    DLT.handlers = dlts
    assert handler.formatter is formatter
    ((message, args),) = [(record.msg, record.args) for record in records]
    assert (message, args) == ("%d rows", (2,))


def test_dlt_gives_back_what_it_took_from_prefect() -> None:
    prefects = logging.getLogger("prefect.extra").handlers[0]
    before, format_before = DLT.handlers, prefects.formatter
    try:
        # As Prefect leaves it with the setting, before dlt sets its logger up and after.
        DLT.handlers = [prefects]
        Container()[PluggableRunContext].initialize_runtime()
        dlts_format = prefects.formatter
        assert dlts_format is not format_before
        for _ in range(2):
            keep_console()
            console, *others = DLT.handlers
            assert (type(console), console.formatter) == (logging.StreamHandler, dlts_format)
            assert others == [prefects]
            assert prefects.format(logging.makeLogRecord({"msg": "%d rows", "args": (2,)})) == "2 rows"
        Container()[PluggableRunContext].initialize_runtime()
        assert console.formatter is not dlts_format
        assert prefects.format(logging.makeLogRecord({"msg": "%d rows", "args": (2,)})) == "2 rows"
    finally:
        DLT.handlers, prefects.formatter = before, format_before


def test_outside_of_a_run_nothing_happens() -> None:
    before = settings_of_dlts_logger()
    with forward_dlt_logs("DEBUG"):
        assert settings_of_dlts_logger() == before
        assert start_forwarding() is None
    stop_forwarding(None)


PROGRAM = """
import dlt
from dlt.common import logger
from prefect import flow, task
from prefect.logging import get_run_logger

from prefect_dlt import PrefectCollector, forward_dlt_logs
from tests.runtime.test_logs import own_ids, talkative

@task
def with_the_collector():
    print("task", own_ids()[1])
    talkative(progress=PrefectCollector(log_period=1000))()

@task
def with_the_function():
    print("task", own_ids()[1])
    with forward_dlt_logs():
        talkative("function")()

@flow
def main():
    print("flow", own_ids()[0])
    with_the_collector()
    with_the_function()
    get_run_logger().info("Prefect's own")

main()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("extra_loggers", "log_format"), [("", "JSON"), ("dlt", '{{"logger": "{name}", "msg": "{message}"}}')]
)
def test_settings_change_nothing_and_the_terminal_keeps_its_lines(extra_loggers: str, log_format: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "PREFECT_LOGGING_EXTRA_LOGGERS": extra_loggers,
            "RUNTIME__LOG_FORMAT": log_format,
        },
    )

    assert done.returncode == 0, done.stderr
    run_ids = [UUID(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(("flow", "task"))]
    flow_run_id, *task_run_ids = run_ids
    of_the_function = [f"{place} of function" for place in PLACES]
    assert lines_of(flow_run_id) == once(task_run_ids[0], *PLACES) + once(task_run_ids[1], *of_the_function)
    terminal = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert sorted(line["msg"] for line in terminal if line["logger"] == "dlt") == sorted([*PLACES, *of_the_function])
    with get_client(sync_client=True) as client:
        others = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])))
    assert "Prefect's own" in [line.message for line in others if line.name == "prefect.flow_runs"]
    assert not [line.message for line in others if '"msg"' in line.message]
