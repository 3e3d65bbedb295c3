"""Wait for the parts of a source that load at the same time, and end those that are left when one fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal, cast, get_args

from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ProcessPoolTaskRunner

from prefect_dlt.elsewhere import wait_for_all
from prefect_dlt.errors import ConfigurationError
from prefect_dlt.results import ComponentResult
from prefect_dlt.retry import is_stop_request
from prefect_dlt.stop import end, stopping_for

logger = logging.getLogger("prefect_dlt")

OnFailure = Literal["continue", "cancel"]

NOT_STARTED = "Not started"
"""What the message of a task run begins with that was to begin when a part had failed already."""

Futures = Mapping[str, PrefectFuture[Any]]
"""What the parts are loaded by, by the parts' names."""


def check_on_failure(on_failure: str) -> OnFailure:
    """Return what to do with the other parts when one fails.

    Raises:
        ConfigurationError: If it is neither "continue" nor "cancel".
    """
    if on_failure not in get_args(OnFailure):
        raise ConfigurationError("on_failure", on_failure, "give 'continue' or 'cancel'")
    return on_failure  # type: ignore[return-value]


def results_of(
    futures: Futures, result_of: Callable[[str, Callable[[], Any]], ComponentResult], working_dirs: Collection[str]
) -> dict[str, ComponentResult]:
    """Wait until all parts have ended, and end those that are left when one has failed; return all results.

    Of those that are left, what has not been started is not started. What runs is asked to stop where nothing is lost,
    on threads and in a pool of processes of this machine; elsewhere it is waited for.

    Args:
        futures: The parts.
        result_of: Makes a result of a part and of what its future returns or raises.
        working_dirs: Where the pipelines of the parts work.
    """
    results: dict[str, ComponentResult] = {}
    left = {future: name for name, future in futures.items()}
    failed: str | None = None
    for future in as_completed(list(left)):
        name = left.pop(future)
        results[name] = result_of(name, future.result)
        if results[name].error is not None:
            failed = name
            break
    if failed is None or not left:
        return results
    because = f"because {failed!r} failed"
    for name in [name for future, name in left.items() if _is_cancelled_in_time(future)]:
        results[name] = _not_started(name, because)
    running = {name: future for future, name in left.items() if name not in results}
    with stopping_for(because, working_dirs) as are_asked:
        if running and not are_asked:
            logger.warning("%s cannot be stopped, since other pipelines run in this process too", ", ".join(running))
        elif running:
            logger.warning("%s: asked to stop, %s", ", ".join(running), because)
        terminated = are_asked and _terminate_processes()
        wait_for_all(running.values())
        for name, future in running.items():
            results[name] = _stopped(name, future, result_of, because, terminated=terminated)
    return results


def _stopped(
    name: str,
    future: PrefectFuture[Any],
    result_of: Callable[[str, Callable[[], Any]], ComponentResult],
    because: str,
    *,
    terminated: bool,
) -> ComponentResult:
    """Return the result of a part that was asked to stop; it may have ended well before that, or failed by itself."""
    interrupted = ComponentResult(
        name, error=f"stopped, {because}; what it may have extracted is loaded by the next run", failed_as="interrupted"
    )

    def wait() -> Any:
        try:
            return future.result()
        except CancelledRun as cancelled:
            return _not_started(name, because) if NOT_STARTED in str(cancelled) else interrupted
        except CancelledError:
            return interrupted
        except BrokenProcessPool:
            if terminated:
                return interrupted
            raise
        except BaseException as error:
            # In a process of a pool, where it is the end of the process that stops it.
            if terminated and is_stop_request(error):
                return interrupted
            raise

    return result_of(name, wait)


def _not_started(name: str, because: str) -> ComponentResult:
    return ComponentResult(name, error=f"not started, {because}", failed_as="not started")


def _is_cancelled_in_time(future: PrefectFuture[Any]) -> bool:
    """Cancel what has not been started; tell whether that was possible."""
    # Of Dask's and Ray's futures nobody can tell whether what was cancelled had been started.
    wrapped: Any = getattr(future, "wrapped_future", None)
    return isinstance(wrapped, Future) and cast("Future[Any]", wrapped).cancel()


def _terminate_processes() -> bool:
    """Ask the processes of the flow's pool to end; tell whether there are any."""
    context = FlowRunContext.get()
    task_runner: Any = context.task_runner if context is not None else None
    if not isinstance(task_runner, ProcessPoolTaskRunner):
        return False
    end(getattr(task_runner, "_executor", None))
    return True
