"""Tasks in other processes, of a Dask or Ray cluster for example: Prefect's API tells them that they are to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextvars import copy_context
from typing import Any, TypeVar
from uuid import UUID

from prefect import State
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import TerminationSignal
from prefect.futures import as_completed, wait
from prefect.states import Cancelled, Cancelling
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from prefect_dlt.retry import is_stop_request
from prefect_dlt.stop import stopped_for, stopping_all_for

logger = logging.getLogger("prefect_dlt")

T = TypeVar("T")

LOOK_SECONDS = 3.0
"""Pause between two looks at the state of the flow run."""

STOP_WITHIN = 20.0
"""Seconds that tasks are given to stop; Prefect gives the process of the flow 30."""


def elsewhere() -> str | None:
    """Return who runs the tasks of this flow in other processes; None where they run in this one."""
    context = FlowRunContext.get()
    if context is None or isinstance(context.task_runner, ThreadPoolTaskRunner):
        return None
    return f"Tasks of a {type(context.task_runner).__name__}"


@contextlib.contextmanager
def stopping_with_its_flow() -> Generator[None]:
    """Have the pipeline of this task stop, inside, when its flow run is cancelled or has ended.

    For a task in a process that nobody tells. dlt's flag is one of the whole process: what else it runs stops as well.
    """
    context = TaskRunContext.get()
    flow_run_id = context.task_run.flow_run_id if context is not None else None
    if flow_run_id is None:
        yield
        return
    ended = threading.Event()
    # With the settings of this thread: where the API is.
    watch = threading.Thread(
        target=copy_context().run, args=(_watch, flow_run_id, ended), name="flow-run-watch", daemon=True
    )
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _watch(flow_run_id: UUID, ended: threading.Event) -> None:
    while not ended.wait(LOOK_SECONDS):
        # An API that does not answer now may do so the next time.
        with contextlib.suppress(Exception), get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run_id).state
            if state is not None and (state.is_cancelling() or state.is_final()):
                break
    else:
        return
    with stopping_all_for("because its flow run was cancelled, or has ended"):
        ended.wait()


def stopped_as_cancelled(load: Callable[[], T], *, is_elsewhere: bool) -> T | State[Any]:
    """Load in a task; return a Cancelled state when it was stopped, and its process goes on.

    An exception that stops all, as dlt raises one, would end the process of a Dask worker, and Dask begins anew with
    the task in the next one.

    Args:
        load: What to do.
        is_elsewhere: Whether the task runs in another process than its flow.
    """
    with stopping_with_its_flow() if is_elsewhere else contextlib.nullcontext():
        try:
            return load()
        except BaseException as error:
            # Neither a failure nor a crash, where it does as it is asked to.
            if is_stop_request(error) and (reason := stopped_for()) is not None:
                return Cancelled(message=f"Stopped, {reason}.")
            raise


@contextlib.contextmanager
def waiting_for_stopped(futures: Sequence[Any]) -> Generator[None]:
    """When this flow run is asked to stop inside, say so in the API, where tasks look, and wait for them a while."""
    try:
        yield
    except (TerminationSignal, KeyboardInterrupt, asyncio.CancelledError):
        context = FlowRunContext.get()
        if context is not None and context.flow_run is not None and not isinstance(context.task_runner, _TOLD):
            _ask(context.flow_run.id)
            wait(list(futures), timeout=STOP_WITHIN)
        raise


def wait_for_all(futures: Iterable[Any]) -> None:
    """Wait until tasks have ended, however; what a signal raises in this thread meanwhile arrives.

    While it waits for a result itself, Ray takes that for nothing, and goes on waiting.
    """
    for _ in as_completed(list(futures)):
        pass


_TOLD = (ThreadPoolTaskRunner, ProcessPoolTaskRunner)
"""Those whose tasks `prefect_dlt.cancellation` tells."""


def _ask(flow_run_id: UUID) -> None:
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run_id, Cancelling(message="The process of the flow run was told to end."))
    except Exception as error:  # noqa: BLE001 - the run ends in any case
        logger.warning("Tasks in other processes could not be told to stop (%s)", type(error).__name__)
