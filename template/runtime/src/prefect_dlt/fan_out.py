"""How the parts of a source become tasks: one for all, one after another, or all at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import Any, cast
from uuid import uuid4

from dlt.pipeline.pipeline import Pipeline
from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_dlt.component_load import WHOLE, ComponentLoad, error_line
from prefect_dlt.dataset import shared_dataset
from prefect_dlt.decompose import Component, Decompose, components
from prefect_dlt.durations import keep_durations
from prefect_dlt.elsewhere import elsewhere, stopped_as_cancelled, wait_for_all, waiting_for_stopped
from prefect_dlt.errors import ComponentFailedError
from prefect_dlt.flow_record import FlowRecord, interrupted
from prefect_dlt.on_failure import NOT_STARTED, results_of
from prefect_dlt.page import counted
from prefect_dlt.preparation import Prepared, Request, placed, prepare
from prefect_dlt.references import check_sendable
from prefect_dlt.refresh import refresh_once, to_refresh
from prefect_dlt.results import ComponentResult, written_twice
from prefect_dlt.row_ids import buffered_row_ids
from prefect_dlt.scoped_config import scoped_config
from prefect_dlt.staging import staging_areas
from prefect_dlt.submit_to import check_target, refreshed_by_earlier_attempts, submit_components
from prefect_dlt.turns import taking_turns

logger = logging.getLogger("prefect_dlt")


_first_failure: dict[str, str] = {}
"""Which part failed first, of those that end with one another, in this process."""


def load_components(  # noqa: PLR0917 - what one run of a flow is about
    work: ComponentLoad,
    decompose: Decompose,
    request: Request,
    record: FlowRecord,
    say: Callable[[str], None],
    submit_to: str | None = None,
) -> list[ComponentResult]:
    """Load a source within a flow run; return what became of each part, failed ones included.

    A source that is loaded whole raises its own error, where it is loaded in this process. How it is loaded, and what
    becomes of the parts, is noted in the record as it happens.
    """
    request = replace(request, submit_to=submit_to)
    if submit_to is not None:
        # Tasks of this flow are none of them.
        record.most_at_once = None
    elif decompose != "sequential" and (where := elsewhere()):
        check_sendable("pipeline", work.pipeline, where)
        check_sendable("source", work.source, where)
    try:
        prepared = prepare(work, decompose, request)
    except Exception:
        # Also what is refused is told where the reports of this pipeline are looked for.
        with suppress(Exception):
            record.pipeline_name = work.build_base().pipeline_name
        raise
    if submit_to is not None:
        check_target(work, submit_to, request.options)
    record.mode, record.reason = prepared.mode, prepared.told
    parts = counted(len(prepared.parts), "part") if prepared.parts else "the whole source"
    say(f"Mode {prepared.mode!r}, {parts}, because: {prepared.reason}")
    if prepared.warning:
        logger.warning("%s", prepared.warning)
    if prepared.mode == "none":
        return _run_whole(work, request, record, submit_to)
    record.pipeline_name = cast("Any", prepared.base).pipeline_name
    record.expect(part.name for part in prepared.parts)
    work, request = placed(work, request)
    if prepared.mode == "sequential":
        results = _run_in_sequence(prepared, work, request, record)
    else:
        results = _run_in_parallel(prepared, work, request, record, submit_to)
    for table, names in written_twice(results).items():
        logger.warning(
            "Table %r was written by several parts, %s: give each a table of its own, or load with decompose='none'",
            table,
            ", ".join(names),
        )
    return sorted(results, key=lambda result: result.name)


def _run_whole(
    work: ComponentLoad, request: Request, record: FlowRecord, submit_to: str | None
) -> list[ComponentResult]:
    record.expect([WHOLE])
    if isinstance(work.pipeline, Pipeline):
        record.pipeline_name = work.pipeline.pipeline_name
    if submit_to is not None:
        whole, name = Component(WHOLE, tuple(request.resources or ())), work.build_base().pipeline_name
        submitted = submit_components(work, submit_to, [whole], [name], request.options)
        return [record.add(result) for result in submitted]
    load = partial(_load_there if elsewhere() else _load, work, request.resources, request.options)
    try:
        return [record.add(_started(record, WHOLE, cast("Callable[[], ComponentResult]", load)))]
    except ComponentFailedError as error:
        record.add(_failed(error))
        # Whole, it is what it would be without a flow around it; in this process nothing of it is lost.
        cause = error.__cause__ or error
        raise cause from cause.__cause__


def _run_in_sequence(
    prepared: Prepared, work: ComponentLoad, request: Request, record: FlowRecord
) -> list[ComponentResult]:
    results: list[ComponentResult] = []
    base, options = cast("Any", prepared.base), request.options
    if mode := options.get("refresh") or base.refresh:
        _refresh_together(prepared, work, request, mode)
        options = {name: value for name, value in options.items() if name != "refresh"}
    why_not: str | None = None
    for part in prepared.parts:
        if why_not is not None:
            error = f"not started, because {why_not}"
            results.append(record.add(ComponentResult(part.name, error=error, failed_as="not started")))
            continue
        load = partial(_load_part(part), prepared.work_of(part, work), part.resources, options)
        results.append(record.add(_result_of(part.name, partial(_started, record, part.name, load))))
        if results[-1].error is None:
            continue
        if request.on_failure == "cancel":
            why_not = f"{part.name!r} failed"
        elif work.build_pipeline(work.build_base()).has_pending_data:
            # They share one pipeline: what is pending has to be loaded before it extracts anything else.
            why_not = f"what {part.name!r} has extracted could not be loaded"
    return results


def _run_in_parallel(
    prepared: Prepared, work: ComponentLoad, request: Request, record: FlowRecord, submit_to: str | None
) -> list[ComponentResult]:
    base, options = cast("Any", prepared.base), request.options
    retry_policy = work.settings(base).retry_policy
    leaves = submit_to is not None or elsewhere() is not None
    on_threads = submit_to is None and isinstance(
        getattr(FlowRunContext.get(), "task_runner", None), ThreadPoolTaskRunner
    )
    if on_threads:
        # Threads can have the one that is there; it takes dlt some 20 ms to make another for each of them.
        work = replace(work.building_once(), pipeline=base, place={}, staging_areas=staging_areas(base))
    began = time.monotonic()
    with shared_dataset(work.build_pipeline(base), retry_policy, elsewhere=leaves):
        refreshed: dict[str, float | None] = {}
        if mode := options.get("refresh") or base.refresh:
            # Of those that an earlier attempt of this flow run has submitted, some may have loaded since.
            refreshed = refreshed_by_earlier_attempts(prepared.parts) if submit_to is not None else {}
            with taking_turns(base) if leaves else nullcontext():
                _refresh_each(prepared, work, request, mode, without=refreshed)
            work = replace(work, refreshed_at=time.time())
            options = {name: value for name, value in options.items() if name != "refresh"}
        record.seed_seconds = time.monotonic() - began
        work = replace(work, ends_with=str(uuid4()) if request.on_failure == "cancel" else None)
        loads = {
            part.name: replace(prepared.work_of(part, work), refreshed_at=refreshed.get(part.name, work.refreshed_at))
            for part in prepared.parts
        }
        if submit_to is not None:
            found = submit_components(
                work,
                submit_to,
                prepared.parts,
                [load.pipeline_name(base) for load in loads.values()],
                {**options, **work.place},
                details={name: load.details() for name, load in loads.items()},
                cancels_on_failure=request.on_failure == "cancel",
            )
            results = [record.add(result) for result in found]
        else:
            with buffered_row_ids() if on_threads else nullcontext():
                results = _run_in_tasks(
                    prepared, loads, options, record, [load.working_dir(base) for load in loads.values()]
                )
            _first_failure.pop(work.ends_with or "", None)
    # What had nothing to load says nothing of how long it takes to load something.
    keep_durations(base, {each.name: each.seconds for each in results if each.error is None and each.tables})
    return results


def _run_in_tasks(
    prepared: Prepared,
    loads: dict[str, ComponentLoad],
    options: dict[str, Any],
    record: FlowRecord,
    working_dirs: Sequence[str],
) -> list[ComponentResult]:
    futures = {
        part.name: _load_part(part).submit(loads[part.name], part.resources, options)  # pyright: ignore[reportUnknownMemberType]
        for part in prepared.parts
    }
    for name, future in futures.items():
        record.watch(name, partial(_result_if_ended, name, future))
    with waiting_for_stopped(list(futures.values())):
        if any(load.ends_with for load in loads.values()):
            found = results_of(futures, _result_of, working_dirs).values()
        else:
            wait_for_all(futures.values())
            found = (_result_of(name, future.result) for name, future in futures.items())
        return [record.add(result) for result in found]


def _refresh_together(prepared: Prepared, work: ComponentLoad, request: Request, mode: Any) -> None:
    """Drop what one pipeline has loaded of all parts, before the first of them is loaded."""
    base = work.build_pipeline(cast("Any", prepared.base))
    source = to_refresh(prepared.source, request.resources, mode)
    refresh_once(base, work.settings(base), source, mode)


def _refresh_each(
    prepared: Prepared, work: ComponentLoad, request: Request, mode: Any, without: Collection[str]
) -> None:
    """Drop what the pipelines of the parts have loaded, one after another, before the first part is loaded.

    With dlt's tables they share the schema's name, and dlt deletes what is stored under it.
    """
    base = cast("Any", prepared.base)
    source = to_refresh(prepared.source, request.resources, mode)
    for part in components(source):
        if part.name in without:
            continue
        load = prepared.work_of(part, work)
        chosen = source.with_resources(*part.resources)
        # Where it loads to, and how, may be configured for the given pipeline.
        with scoped_config(load.pipeline_name(base), load.scope(base)):
            pipeline = load.derive_quietly(base)
            is_refreshed = refresh_once(pipeline, load.settings(base), chosen, mode)
        if is_refreshed:
            logger.info("Refreshed %s of pipeline %r: %s", ", ".join(part.resources), pipeline.pipeline_name, mode)


@task(name="load", cache_policy=NO_CACHE, log_prints=True)
def _load(
    work: ComponentLoad, resources: Sequence[str] | None, options: dict[str, Any]
) -> ComponentResult | State[Any]:
    if (failed := _first_failure.get(work.ends_with or "")) is not None:
        return Cancelled(message=f"{NOT_STARTED}, because {failed!r} failed.")
    try:
        return stopped_as_cancelled(partial(work.run_as_part, resources, options), is_elsewhere=work.is_elsewhere)
    except BaseException:
        if work.ends_with is not None:
            # Here, since the thread of this task begins with the next one before the flow hears of the failure.
            _first_failure.setdefault(work.ends_with, work.component)
        raise


def _load_there(work: ComponentLoad, resources: Sequence[str] | None, options: dict[str, Any]) -> Any:
    """Load the whole source where this flow's tasks run."""
    future: Any = _load.submit(work, resources, options)  # pyright: ignore[reportUnknownMemberType]
    with waiting_for_stopped([future]):
        wait_for_all([future])
        return future.result()


def _load_part(part: Component) -> Task[..., ComponentResult]:
    return cast("Task[..., ComponentResult]", _load.with_options(name=f"load {part.name}"))


def _result_of(name: str, wait: Callable[[], ComponentResult]) -> ComponentResult:
    """Return the result of a component; a failure is a result too, so that the others go on."""
    try:
        return wait()
    except ComponentFailedError as error:
        return _failed(error)
    except CancelledRun:
        return interrupted(name)
    except Exception as error:  # noqa: BLE001 - whatever failed, it is told with the others
        return ComponentResult(name, error=error_line(error))


def _failed(error: ComponentFailedError) -> ComponentResult:
    return ComponentResult(error.component, error=error.message, **error.told)


def _started(record: FlowRecord, name: str, load: Callable[[], ComponentResult]) -> ComponentResult:
    """Load in this thread; a load that is stopped is told of with the flow."""
    began = datetime.now(timezone.utc)
    try:
        return load()
    except Exception:
        raise
    except BaseException:
        record.add(interrupted(name, began))
        raise


def _result_if_ended(name: str, future: Any) -> ComponentResult | None:
    """Return the result of a component whose flow ends early; None when its task never began or is not over."""
    inner: Any = getattr(future, "wrapped_future", None)
    if hasattr(inner, "done"):
        if not inner.done() or inner.cancelled():
            return None
    else:
        # Ray's can only be waited for.
        future.wait(timeout=0)
        if getattr(future, "_final_state", None) is None:
            return None
    try:
        return _result_of(name, future.result)
    except BaseException:  # noqa: BLE001 - it was stopped, and so was the flow, which says so
        return interrupted(name)
