"""Cancel, terminate or interrupt a flow run: its pipelines stop where nothing is lost, in submitted tasks as well."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

from dlt.common.exceptions import SignalReceivedException
from prefect import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from prefect.utilities.engine import capture_sigterm, is_prefect_sigterm_handler_installed

from prefect_dlt.known_secrets import known_secrets
from prefect_dlt.redact import redacted_traceback
from prefect_dlt.stop import end, end_this_process, is_asked_to_stop, stopping

logger = logging.getLogger("prefect_dlt")

TIME_TO_TELL = 3.0
"""Seconds that a process of a pool has, once its pipeline has stopped, to tell what became of its task."""

_TOLD: tuple[Any, ...] = (ThreadPoolTaskRunner, ProcessPoolTaskRunner)
_changing = threading.Lock()
_originals: list[Callable[..., None]] = []
_flow_runs: list[UUID | None] = []
"""Who has asked for it: the outermost flow runs that have pipelines now, once for each pipeline."""


_CONTROL = "prefect._internal.control_listener"
"""Where whoever cancels a run tells its process that this is why it is sent SIGTERM."""

_told_prefect = threading.Event()
"""Whether this process has told itself so, and not forgotten it yet."""

_was_terminated = threading.Event()
"""Whether this process, one of a pool, was told to end while it ran a pipeline."""


class FlowInterruptedError(TerminationSignal, KeyboardInterrupt):
    """Ctrl-C in a flow run that ends as Cancelled: for Prefect a request to terminate, for all others what it is."""

    def __str__(self) -> str:
        return "the flow run was interrupted by Ctrl-C, and ends as Cancelled"


@contextlib.contextmanager
def drain_on_cancellation() -> Generator[None]:
    """Have pipelines in submitted tasks stop in time when the flow run is cancelled, terminated or interrupted.

    Every run of a runner does this by itself for tasks on threads, and so do the flows of `create_run_pipeline_flow`.
    Wrap the body of a flow of your own in it when its tasks run on a `ProcessPoolTaskRunner`: there, nothing of this
    package runs in the process that is told to end.
    """
    with _telling(), _heard_by_prefect():
        try:
            yield
        except (TerminationSignal, KeyboardInterrupt, asyncio.CancelledError) as stop:
            if (context := FlowRunContext.get()) is not None:
                task_runner: Any = context.task_runner
                if isinstance(task_runner, _TOLD):
                    # Prefect does so as well, but only after this block.
                    task_runner.cancel_all()
                else:
                    _end_as_cancelled(stop, _outermost_flow_run_id())
            raise


def _heard_by_prefect() -> AbstractContextManager[Any]:
    """Have SIGTERM raise Prefect's exception in a flow run, where Ray, which the flow has started, would end all."""
    is_taken = (
        FlowRunContext.get() is not None
        and threading.current_thread() is threading.main_thread()
        and not is_prefect_sigterm_handler_installed()
    )
    return capture_sigterm() if is_taken else contextlib.nullcontext()


@contextlib.contextmanager
def _telling() -> Generator[None]:
    """Have Prefect's task runners tell pipelines to stop, as long as there are any."""
    flow_run_id = _outermost_flow_run_id()
    with _changing:
        if not _flow_runs:
            _originals[:] = [task_runner.cancel_all for task_runner in _TOLD]
            for task_runner in _TOLD:
                task_runner.cancel_all = _told_first(task_runner.cancel_all)
        _flow_runs.append(flow_run_id)
    try:
        yield
    finally:
        with _changing:
            _flow_runs.remove(flow_run_id)
            if not _flow_runs:
                for task_runner, original in zip(_TOLD, _originals, strict=True):
                    task_runner.cancel_all = original


def _told_first(cancel_all: Callable[..., None]) -> Callable[..., None]:
    """Return what tells pipelines to stop, before it waits for the tasks that run them.

    A request to stop reaches the main thread of the flow's process as an exception, and nothing else of Prefect's comes
    before it waits for all tasks that run, for as long as they take.
    """

    @functools.wraps(cancel_all)
    def tell_and_cancel_all(task_runner: Any) -> None:
        stop = sys.exc_info()[1]
        if threading.current_thread() is not threading.main_thread() or not _is_stop(stop):
            cancel_all(task_runner)
            return
        flow_run_id = next(iter(_flow_runs), None)
        with stopping(_signal_of(stop)):
            if isinstance(task_runner, ProcessPoolTaskRunner):
                # Before Prefect stops listening to what these processes say of their tasks.
                end(getattr(task_runner, "_executor", None))
            cancel_all(task_runner)
        _end_as_cancelled(stop, flow_run_id)

    return tell_and_cancel_all


@contextlib.contextmanager
def stopping_with_its_run() -> Generator[None]:
    """Have the run of a pipeline stop when the Prefect run that it is in is asked to."""
    if _told_prefect.is_set() and not is_asked_to_stop():
        _told_prefect.clear()  # that run has ended, and this one is another
        importlib.import_module(_CONTROL).clear_intent()
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        yield
    elif threading.current_thread() is not threading.main_thread():
        with _telling():
            yield
    elif is_prefect_sigterm_handler_installed():
        try:
            yield
        except (KeyboardInterrupt, TerminationSignal) as stop:
            _end_as_cancelled(stop, _outermost_flow_run_id())
            raise
    else:
        with _terminated_by_exception():
            yield


@contextlib.contextmanager
def _terminated_by_exception() -> Generator[None]:
    """Have SIGTERM end a task in a process of a pool by an exception, so that Prefect closes its task run."""
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise_termination)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        # A program of somebody's own ends when it likes.
        if _was_terminated.is_set() and multiprocessing.parent_process() is not None:
            end_this_process(TIME_TO_TELL)


def _raise_termination(number: int, _frame: object) -> None:
    _was_terminated.set()
    # dlt hands the second one on, and a pool that loses one process terminates the others again.
    if not is_asked_to_stop():
        raise TerminationSignal(number)


def _is_stop(error: BaseException | None) -> bool:
    # In an async flow, what ends the event loop reaches the flow as a cancellation.
    return isinstance(error, TerminationSignal | KeyboardInterrupt | asyncio.CancelledError)


def _signal_of(stop: BaseException | None) -> int:
    if isinstance(stop, SignalReceivedException):
        return stop.signal_code
    return signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM


def _end_as_cancelled(stop: BaseException | None, flow_run_id: UUID | None) -> None:
    """Have Prefect's engine end the flow run, and those around it, as Cancelled rather than Crashed.

    Args:
        stop: What asks this process to end.
        flow_run_id: The outermost flow run in it.

    Raises:
        TerminationSignal: In place of what dlt or Ctrl-C has raised, which the engine takes for a crash.
    """
    if isinstance(stop, asyncio.CancelledError):
        return
    try:
        control: Any = importlib.import_module(_CONTROL)
        if control.get_intent() is None:
            control._set_intent("cancel")  # noqa: SLF001 - Prefect has no other way to say so from inside
            _told_prefect.set()
            _report_cancelled(flow_run_id)
    except (ImportError, AttributeError):
        logger.warning("This version of Prefect takes the end of the process for a crash of the flow run")
        return
    if isinstance(stop, KeyboardInterrupt) and not isinstance(stop, TerminationSignal):
        number = _signal_of(stop)
        raise (FlowInterruptedError if number == signal.SIGINT else TerminationSignal)(number) from stop


def _report_cancelled(flow_run_id: UUID | None) -> None:
    """Report the state, where the engine leaves that to whoever started this process, who knows of no cancellation."""
    hooks = os.environ.get("PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS", "true").lower()
    if hooks == "true" or flow_run_id is None:
        return
    try:
        state = Cancelled(message="The process of the flow run was told to end.")
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run_id, state, force=True)
    except Exception as error:  # noqa: BLE001 - the run ends in any case
        logger.warning("Cancelled could not be reported\n%s", redacted_traceback(error, known_secrets()))


def _outermost_flow_run_id() -> UUID | None:
    """Return the flow run that this process was started for, or that was begun first here."""
    context = FlowRunContext.get()
    # A context keeps the one that it will give way to again.
    while isinstance(outer := getattr(getattr(context, "_token", None), "old_value", None), FlowRunContext):
        if outer.detached:
            break
        context = outer
    return context.flow_run.id if context is not None and context.flow_run is not None else None
