"""One run at a time in a working directory, whoever else wants to: real processes, real kills."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dlt
import psutil
import pytest
from dlt._workspace.cli.utils import list_local_pipelines
from dlt.common.exceptions import SignalReceivedException
from dlt.common.runtime import signals
from dlt.pipeline.pipeline import Pipeline
from fasteners import InterProcessLock

from prefect_dlt import CallbackCollector, runner
from prefect_dlt.errors import PipelineLockedError
from prefect_dlt.lock import _take, one_run_at_a_time
from prefect_dlt.pending import _lines
from prefect_dlt.record import RunRecord
from prefect_dlt.report import summary
from tests.runtime.conftest import count

HOLDER = """
    import os, sys, time
    from prefect_dlt.lock import one_run_at_a_time
    with one_run_at_a_time(sys.argv[1], run="load-shop"):
        if sys.argv[2] == "fork" and os.fork() == 0:
            time.sleep(600)
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pipelines" / "shop"
    path.mkdir(parents=True)
    return path


@contextmanager
def holder(folder: Path, how: str = "") -> Iterator[psutil.Process]:
    """Start a process that holds the lock, until it is ended."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        children = psutil.Process(process.pid).children()
        try:
            yield psutil.Process(process.pid)
        finally:
            for each in [process, *children]:
                if isinstance(each, subprocess.Popen) or each.is_running():
                    each.kill()


def test_another_process_is_named_and_one_that_was_killed_does_not_block(folder: Path) -> None:
    with holder(folder) as other:
        with pytest.raises(PipelineLockedError) as raised, one_run_at_a_time(str(folder)):
            pass
        # A lock of the operating system ends when anything in the process closes the file: a try leaves none open.
        tried = InterProcessLock(str(folder.parent / ".shop.lock"))
        assert not _take(folder, tried, "")
        assert tried.lockfile is not None
        assert tried.lockfile.closed
        # A later process with the id of a dead one is not the one that is written down.
        description = folder.parent / ".shop.lock.json"
        told = json.loads(description.read_text())
        description.write_text(json.dumps({**told, "pid": os.getpid(), "program": "long_dead.py"}))
        with pytest.raises(PipelineLockedError, match="another process"), one_run_at_a_time(str(folder)):
            pass
        other.kill()
        other.wait()
        with one_run_at_a_time(str(folder)) as waited:
            pass

    message = str(raised.value)
    for part in ("'shop'", f"process {other.pid}", socket.gethostname(), "'load-shop'", "since 20", "lock_timeout"):
        assert part in message
    assert waited < 60


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_that_outlives_its_killed_parent_does_not_hold_its_lock(folder: Path) -> None:
    with holder(folder, "fork") as other:
        (child,) = other.children()
        other.kill()
        other.wait()

        with one_run_at_a_time(str(folder)):
            assert child.is_running()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_is_kept_out_and_takes_nothing_from_its_parent(folder: Path) -> None:
    with ExitStack() as held:
        held.enter_context(one_run_at_a_time(str(folder), run="parent"))
        with pytest.raises(PipelineLockedError):
            in_thread(lambda: enter(folder))
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            try:
                with one_run_at_a_time(str(folder)):
                    os._exit(2)
            except PipelineLockedError as error:
                held.close()
                os._exit(0 if "'parent'" in str(error) and not error.is_part else 3)
            except BaseException:  # noqa: BLE001 - it must not come back to pytest
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(PipelineLockedError):
            in_thread(lambda: enter(folder))
        assert json.loads((folder.parent / ".shop.lock.json").read_text())["pid"] == os.getpid()


def enter(folder: Path, **options: Any) -> None:
    with one_run_at_a_time(str(folder), **options):
        pass


def in_thread(act: Callable[[], None]) -> None:
    """Do something in another thread, and raise here what it raises there."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_threads_of_one_process_are_kept_apart(folder: Path) -> None:
    with one_run_at_a_time(str(folder)), pytest.raises(PipelineLockedError) as raised:
        in_thread(lambda: enter(folder))

    assert f"process {os.getpid()}" in str(raised.value)
    in_thread(lambda: enter(folder))
    # Who has opened the file would go on to lock one that others no longer find.
    assert (folder.parent / ".shop.lock").exists()


def test_a_run_within_a_run_is_refused_however_long_it_would_wait(folder: Path) -> None:
    with (
        one_run_at_a_time(str(folder)),
        pytest.raises(PipelineLockedError, match="wait for itself"),
        one_run_at_a_time(str(folder), timeout=1e9),
    ):
        pass


def test_a_run_that_waits_says_so_and_begins_when_the_other_has_ended(folder: Path) -> None:
    said: list[str] = []
    waited: list[float] = []
    with ExitStack() as first:
        first.enter_context(one_run_at_a_time(str(folder)))
        has_said = threading.Event()

        def say(line: str) -> None:
            said.append(line)
            has_said.set()

        def second() -> None:
            with one_run_at_a_time(str(folder), timeout=1e9, say=say) as seconds:
                waited.append(seconds)

        thread = threading.Thread(target=second)
        thread.start()
        assert has_said.wait(60)
        assert not waited
        first.close()
        thread.join()

    assert waited[0] > 0
    assert said == [said[0]]
    assert f"for process {os.getpid()}" in said[0]


def test_a_run_that_waits_ends_when_it_is_asked_to(folder: Path) -> None:
    def cancel(_line: str) -> None:
        signals.set_received_signal(signal.SIGTERM)

    try:
        with one_run_at_a_time(str(folder)), pytest.raises(SignalReceivedException):
            in_thread(lambda: enter(folder, timeout=1e9, say=cancel))
    finally:
        signals.set_received_signal(0)


def test_one_directory_is_one_by_any_name(folder: Path) -> None:
    alias = folder.parent.parent / "same"
    alias.symlink_to(folder.parent)

    with one_run_at_a_time(str(folder)), pytest.raises(PipelineLockedError):
        in_thread(lambda: enter(alias / "shop"))


def test_the_lock_is_held_while_the_directory_is_dropped_and_dlt_takes_it_for_no_pipeline(
    pipeline: Callable[..., Pipeline],
) -> None:
    shop = pipeline()
    with one_run_at_a_time(shop.working_dir):
        shop.drop()
        with pytest.raises(PipelineLockedError):
            in_thread(lambda: enter(Path(shop.working_dir)))

    assert list_local_pipelines(shop.pipelines_dir)[2] == ["shop"]


def test_where_files_cannot_be_locked_a_run_goes_on_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A folder where the lock file would be: no file system lets it be opened as one.
    (folder.parent / ".shop.lock").mkdir()

    enter(folder)
    enter(folder)

    assert "cannot be kept apart" in caplog.text


# -- the runner -------------------------------------------------------------------------------------------------------


class Named(CallbackCollector):
    """A collector that knows a flow run by name, as Prefect's does."""

    def run_started(self, pipeline: Any, record: RunRecord) -> None:
        record.environment["Flow run"] = "load-shop"


def test_a_runner_keeps_others_out_until_it_has_ended(pipeline: Callable[..., Pipeline]) -> None:
    shop = pipeline(progress=Named(1))
    refused: list[BaseException] = []

    @dlt.resource(name="orders")
    def orders() -> Iterator[Any]:
        try:
            in_thread(lambda: enter(Path(shop.working_dir)))
        except PipelineLockedError as error:
            refused.append(error)
        yield {"id": 1}

    run = runner(shop)
    run.run(orders)

    assert "for flow run 'load-shop'" in str(refused[0])
    assert run.record is not None
    assert run.record.waited == 0
    enter(Path(shop.working_dir))


def test_a_runner_that_is_kept_out_changes_nothing_and_one_that_waits_says_how_long(
    pipeline: Callable[..., Pipeline], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefect_dlt")
    shop = pipeline()
    shop.extract([{"id": 1}], table_name="orders")
    waits, refused = runner(shop, lock_timeout=60), runner(shop, discard_pending=True)
    with ExitStack() as other:
        other.enter_context(one_run_at_a_time(shop.working_dir))
        with pytest.raises(PipelineLockedError):
            in_thread(lambda: refused.run([{"id": 2}], table_name="orders"))
        assert refused.record is not None
        assert isinstance(refused.record.error, PipelineLockedError)
        assert shop.has_pending_data
        thread = threading.Thread(target=waits.run, args=([{"id": 2}],), kwargs={"table_name": "orders"})
        thread.start()
        while "waits at most" not in caplog.text:
            thread.join(0.1)
        other.close()
        thread.join()

    assert count(shop, "orders") == 2
    assert waits.record is not None
    assert waits.record.waited > 0
    assert "Waited for another run" in summary(waits.record).page


RACER = """
    import os, sys, dlt
    from prefect_dlt import CallbackCollector, runner

    marker = sys.argv[3]

    class Leaves(CallbackCollector):
        def after_load(self, pipeline, trace):
            os.unlink(marker)

    @dlt.resource(name="orders")
    def orders(number):
        # Only one at a time can make it.
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        yield {"id": number}

    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(10):
        pipeline = dlt.pipeline(
            "shop", pipelines_dir=sys.argv[1], destination=dlt.destinations.filesystem(sys.argv[2]), progress=Leaves(1)
        )
        runner(pipeline, lock_timeout=240).run(orders(int(sys.argv[4]) + number))
"""


@pytest.mark.slow
def test_two_processes_that_race_load_every_row_once(tmp_path: Path) -> None:
    places = [str(tmp_path / "pipelines"), (tmp_path / "lake").as_uri(), str(tmp_path / "marker")]
    # dlt empties a working directory without a state when a pipeline is made in it.
    dlt.pipeline("shop", pipelines_dir=places[0], destination=dlt.destinations.filesystem(places[1]))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RACER), *places, first],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in ("100", "200")
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate()

    assert [racer.returncode for racer in racers] == [0, 0]
    rows = [json.loads(line)["id"] for file in (tmp_path / "lake").rglob("orders/*") for line in _lines(file)]
    assert sorted(rows) == [*range(100, 110), *range(200, 210)]
