"""Prefect tasks and flows that run a pipeline with a source, whole or taken apart."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from dlt.common.pipeline import LoadInfo
from dlt.common.runtime.collector import NullCollector
from dlt.extract import DltResource, DltSource
from dlt.pipeline.pipeline import Pipeline
from prefect import Flow, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.task_runners import TaskRunner
from tenacity import Retrying

from prefect_dlt.cancellation import drain_on_cancellation
from prefect_dlt.collector import PrefectCollector
from prefect_dlt.configuration import RunnerSettings, Verify, runner_settings
from prefect_dlt.dataset import check_dataset_name, derive, shared_dataset
from prefect_dlt.decompose import Component, Decompose, components, decompose_mode, derived_name, select
from prefect_dlt.errors import ComponentsFailedError
from prefect_dlt.known_secrets import known_secrets, learn_secrets
from prefect_dlt.logs import forward_dlt_logs
from prefect_dlt.reasons import text_of
from prefect_dlt.record import TableRow, most_rows_first
from prefect_dlt.redact import redact
from prefect_dlt.report import text_table
from prefect_dlt.runner import PipelineRunner

WHOLE = "the whole source"


@dataclass(frozen=True)
class ComponentResult:
    """What became of one part of a source, or of the whole of it.

    Attributes:
        name: The part: its first resource, or "the whole source".
        pipeline_name: The pipeline that loaded it; None when it failed.
        seconds: How long it took, retries and pauses included; 0 when it failed.
        load_info: dlt's info about the load; None when there was nothing to load, or it failed.
        tables: The tables that were loaded, most rows first.
        error: What it failed with, in one line without secrets; None when it was loaded.
    """

    name: str
    pipeline_name: str | None = None
    seconds: float = 0.0
    load_info: LoadInfo | None = None
    tables: tuple[TableRow, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class FlowResult:
    """What a flow made by `create_run_pipeline_flow` returns; as text, a short table of what was loaded.

    Attributes:
        components: One result per part of the source, in order of the parts' names.
    """

    components: tuple[ComponentResult, ...]

    @property
    def tables(self) -> tuple[TableRow, ...]:
        """All tables that were loaded, most rows first."""
        tables = (table for component in self.components for table in component.tables)
        return tuple(most_rows_first(tables))

    def __str__(self) -> str:
        return text_table(self.tables)


@dataclass(frozen=True)
class _Job:
    """How to load: what a task needs besides the names of the resources and the options of the run.

    Pipeline and source are objects or callables that build one; callables are called in the task. The runner's options
    are those of `prefect_dlt.runner`; what is None is configured where the task runs.
    """

    pipeline: Pipeline | Callable[[], Pipeline]
    source: Any
    runner_options: dict[str, Any]
    component: str = WHOLE
    derived: bool = False

    def build_base(self) -> Pipeline:
        return self.pipeline if isinstance(self.pipeline, Pipeline) else self.pipeline()

    def settings(self, base: Pipeline) -> RunnerSettings:
        # What is configured for a pipeline counts for those that derive from it.
        return runner_settings(base.pipeline_name, **self.runner_options)

    def build_pipeline(self, base: Pipeline) -> Pipeline:
        pipeline = base
        check_dataset_name(pipeline)
        if self.derived:
            pipeline = derive(base, derived_name(pipeline.pipeline_name, self.component))
            pipeline.collector = _own_collector(base)
        elif isinstance(pipeline.collector, NullCollector):
            pipeline.collector = PrefectCollector()
        return pipeline

    def build_source(self, resources: Sequence[str] | None) -> Any:
        return select(_built(self.source), resources)

    def run(self, resources: Sequence[str] | None, run_options: dict[str, Any]) -> ComponentResult:
        # Earlier and later than the collector does, and whatever collector the pipeline has.
        with forward_dlt_logs():
            return self._run(resources, run_options)

    def _run(self, resources: Sequence[str] | None, run_options: dict[str, Any]) -> ComponentResult:
        started = time.monotonic()
        base = self.build_base()
        settings = self.settings(base)
        pipeline = self.build_pipeline(base)
        run = PipelineRunner(pipeline, settings)
        info = run.run(lambda: self.build_source(resources), **run_options)
        tables = tuple(run.record.tables()) if run.record else ()
        return ComponentResult(self.component, pipeline.pipeline_name, time.monotonic() - started, info, tables)


def create_run_pipeline_task(
    pipeline: Pipeline | Callable[[], Pipeline],
    source: Any,
    *,
    task_name: str | None = None,
    retry_policy: Retrying | str | None = None,
    retry_pipeline_steps: Sequence[str] | None = None,
    store_trace_info: bool | Pipeline | None = None,
    run_from_clean_folder: bool | None = None,
    discard_pending: bool | None = None,
    verify: bool | Verify | None = None,
    lock_timeout: float | None = None,
) -> Task[..., LoadInfo | None]:
    """Return a Prefect task that runs one pipeline with one source.

    The task takes `resources`, the names of those to load (all that the source selects by default), and what
    `pipeline.run` takes. It returns what `pipeline.run` returns. A pipeline without a collector gets a
    `PrefectCollector`.

    Args:
        pipeline: The pipeline, or a callable that builds one.
        source: What `pipeline.run` takes as data, or a callable that builds it.
        task_name: Name of the task; "load <pipeline>" where the pipeline is an object, else "load".
        retry_policy: See `prefect_dlt.runner`, for this and the following arguments: what is left out is configured.
        retry_pipeline_steps: Steps that may be made again.
        store_trace_info: Whether to store traces, or the pipeline to store them with.
        run_from_clean_folder: Whether to begin with an empty working directory.
        discard_pending: Whether to move aside what an earlier run left.
        verify: Whether to compare what was normalised with what the destination holds.
        lock_timeout: Longest wait for another run of the pipeline to end, in seconds.
    """
    options: dict[str, Any] = {
        "retry_policy": retry_policy,
        "retry_pipeline_steps": retry_pipeline_steps,
        "store_trace_info": store_trace_info,
        "run_from_clean_folder": run_from_clean_folder,
        "discard_pending": discard_pending,
        "verify": verify,
        "lock_timeout": lock_timeout,
    }
    job = _Job(pipeline, source, options)
    name = f"load {pipeline.pipeline_name}" if isinstance(pipeline, Pipeline) else "load"

    @task(name=task_name or name, cache_policy=NO_CACHE, log_prints=True)
    def run_pipeline(resources: Sequence[str] | None = None, **run_options: Any) -> LoadInfo | None:
        return job.run(resources, run_options).load_info

    return cast("Task[..., LoadInfo | None]", run_pipeline)


def create_run_pipeline_flow(
    pipeline: Pipeline | Callable[[], Pipeline],
    source: Any,
    *,
    decompose: bool | Decompose = False,
    flow_name: str | None = None,
    task_runner: TaskRunner[Any] | None = None,
    description: str | None = None,
    retry_policy: Retrying | str | None = None,
    retry_pipeline_steps: Sequence[str] | None = None,
    store_trace_info: bool | Pipeline | None = None,
    run_from_clean_folder: bool | None = None,
    discard_pending: bool | None = None,
    verify: bool | Verify | None = None,
    lock_timeout: float | None = None,
) -> Flow[..., FlowResult]:
    """Return a Prefect flow that runs a pipeline with a source, whole or taken apart.

    The flow's parameters are `resources` (names of those to load, all that the source selects by default),
    `full_refresh` (drop what these resources loaded before, and their state, and load anew) and what `pipeline.run`
    takes, but for what belongs to the pipeline: destination, staging and credentials. It returns a `FlowResult`.

    Args:
        pipeline: The pipeline, or a callable that builds one.
        source: The dlt source, or a callable that builds one. Without taking apart, anything `pipeline.run` takes.
        decompose: "none" or False: one task loads the whole source. "sequential": one task per component, one after
            another, with the state of the one pipeline; one that leaves data it could not load stops the following.
            "parallel" or True: one task per component, all at once, each with a pipeline and a state of its own, into
            one dataset.
        flow_name: Name of the flow; "load <pipeline>" where the pipeline is an object, else "load".
        task_runner: What runs the tasks; by default that of the flow that calls this one, or else threads.
        description: What the UI says about the flow.
        retry_policy: See `prefect_dlt.runner`, for this and the following arguments: what is left out is configured.
            Each component retries by itself.
        retry_pipeline_steps: Steps that may be made again.
        store_trace_info: Whether to store traces, or the pipeline to store them with.
        run_from_clean_folder: Whether to begin with an empty working directory.
        discard_pending: Whether to move aside what an earlier run left.
        verify: Whether to compare what was normalised with what the destination holds.
        lock_timeout: Longest wait for another run of the pipeline to end, in seconds.

    Raises:
        ConfigurationError: If `decompose` is none of the modes.

    A run raises `ComponentsFailedError` when components failed, after all have ended; a source that is loaded whole
    raises its own error.
    """
    mode = decompose_mode(decompose)
    learn_secrets(pipeline, source)
    options: dict[str, Any] = {
        "retry_policy": retry_policy,
        "retry_pipeline_steps": retry_pipeline_steps,
        "store_trace_info": store_trace_info,
        "run_from_clean_folder": run_from_clean_folder,
        "discard_pending": discard_pending,
        "verify": verify,
        "lock_timeout": lock_timeout,
    }
    job = _Job(pipeline, source, options)
    name = flow_name or (f"load {pipeline.pipeline_name}" if isinstance(pipeline, Pipeline) else "load")

    def run_pipeline(  # noqa: PLR0917 - Prefect passes parameters by name
        resources: list[str] | None = None,
        full_refresh: bool = False,
        write_disposition: Any = None,
        refresh: str | None = None,
        loader_file_format: str | None = None,
        schema_contract: Any = None,
        table_name: str | None = None,
        columns: Any = None,
        primary_key: Any = None,
        table_format: str | None = None,
        dataset_name: str | None = None,
    ) -> FlowResult:
        options: dict[str, Any] = {
            "write_disposition": write_disposition,
            "refresh": "drop_resources" if full_refresh else refresh,
            "loader_file_format": loader_file_format,
            "schema_contract": schema_contract,
            "table_name": table_name,
            "columns": columns,
            "primary_key": primary_key,
            "table_format": table_format,
            "dataset_name": dataset_name,
        }
        given = {name: value for name, value in options.items() if value is not None}
        with forward_dlt_logs(), drain_on_cancellation():
            results = _MODES[mode](job, resources, given)
        return FlowResult(_all_loaded(name, results))

    made = _PipelineFlow(run_pipeline, name=name, task_runner=task_runner, description=description, log_prints=True)
    made.has_task_runner = task_runner is not None
    return cast("Flow[..., FlowResult]", made)


class _PipelineFlow(Flow[..., FlowResult]):
    """A flow that runs its tasks as the flow that calls it does; Prefect does not hand a task runner down."""

    has_task_runner = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        caller = FlowRunContext.get()
        if caller is None or self.has_task_runner:
            return super().__call__(*args, **kwargs)  # pyright: ignore[reportUnknownMemberType]
        runs_alike = self.with_options(task_runner=caller.task_runner.duplicate())
        return runs_alike(*args, **kwargs)


def _run_whole(job: _Job, resources: Sequence[str] | None, options: dict[str, Any]) -> list[ComponentResult]:
    return [_load(job, resources, options)]


def _run_in_sequence(job: _Job, resources: Sequence[str] | None, options: dict[str, Any]) -> list[ComponentResult]:
    results: list[ComponentResult] = []
    blocked_by: str | None = None
    for part in components(job.build_source(resources)):
        if blocked_by is not None:
            # They share one pipeline: what is pending has to be loaded before it extracts anything else.
            error = f"not started, because what {blocked_by!r} has extracted could not be loaded"
            results.append(ComponentResult(part.name, error=error))
            continue
        load = partial(_load_part(part), replace(job, component=part.name), part.resources, options)
        results.append(_result_of(part, load))
        if results[-1].error is not None and job.build_pipeline(job.build_base()).has_pending_data:
            blocked_by = part.name
    return results


def _run_in_parallel(job: _Job, resources: Sequence[str] | None, options: dict[str, Any]) -> list[ComponentResult]:
    parts = components(job.build_source(resources))
    base = job.build_base()
    retry_policy = job.settings(base).retry_policy
    with shared_dataset(job.build_pipeline(base), options.get("dataset_name"), retry_policy):
        futures = [
            _load_part(part).submit(replace(job, component=part.name, derived=True), part.resources, options)  # pyright: ignore[reportUnknownMemberType]
            for part in parts
        ]
        return [_result_of(part, future.result) for part, future in zip(parts, futures, strict=True)]


_MODES: dict[Decompose, Callable[[_Job, Sequence[str] | None, dict[str, Any]], list[ComponentResult]]] = {
    "none": _run_whole,
    "sequential": _run_in_sequence,
    "parallel": _run_in_parallel,
}


@task(name="load", cache_policy=NO_CACHE, log_prints=True)
def _load(job: _Job, resources: Sequence[str] | None, options: dict[str, Any]) -> ComponentResult:
    return job.run(resources, options)


def _load_part(part: Component) -> Task[..., ComponentResult]:
    return cast("Task[..., ComponentResult]", _load.with_options(name=f"load {part.name}"))


def _result_of(part: Component, wait: Callable[[], ComponentResult]) -> ComponentResult:
    """Return the result of a component; a failure is a result too, so that the others go on."""
    try:
        return wait()
    except Exception as error:  # noqa: BLE001 - whatever failed, it is told with the others
        # Masked first: what is secret may not survive being put on one line.
        message = redact(text_of(error), known_secrets())
        return ComponentResult(part.name, error=" ".join(message.split()))


def _all_loaded(flow_name: str, results: Sequence[ComponentResult]) -> tuple[ComponentResult, ...]:
    failures = {result.name: result.error for result in results if result.error is not None}
    if failures:
        loaded = tuple(result.name for result in results if result.error is None)
        raise ComponentsFailedError(flow_name, failures, loaded)
    return tuple(results)


def _built(source: Any) -> Any:
    # A DltResource can be called as well, to bind its arguments, but it is data as it stands.
    if isinstance(source, DltSource | DltResource) or not callable(source):
        return cast("Any", source)
    return source()


def _own_collector(pipeline: Pipeline) -> Any:
    """Return the collector for a pipeline derived from this one: a copy, since one collector serves one pipeline."""
    return PrefectCollector() if isinstance(pipeline.collector, NullCollector) else copy.deepcopy(pipeline.collector)
