"""Prefect tasks and flows that run a pipeline with a source, whole or taken apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from dlt.common.pipeline import LoadInfo
from dlt.pipeline.pipeline import Pipeline
from prefect import Flow, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.task_runners import TaskRunner
from tenacity import Retrying

from prefect_dlt.cancellation import drain_on_cancellation
from prefect_dlt.component_load import ComponentLoad
from prefect_dlt.configuration import Verify
from prefect_dlt.decompose import Decompose, decompose_mode
from prefect_dlt.fan_out import load_components
from prefect_dlt.known_secrets import forgotten_afterwards, learn_secrets
from prefect_dlt.logs import forward_dlt_logs
from prefect_dlt.results import FlowResult, all_loaded


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
    work = ComponentLoad(pipeline, source, options)
    name = f"load {pipeline.pipeline_name}" if isinstance(pipeline, Pipeline) else "load"

    @task(name=task_name or name, cache_policy=NO_CACHE, log_prints=True)
    def run_pipeline(resources: Sequence[str] | None = None, **run_options: Any) -> LoadInfo | None:
        return work.run(resources, run_options).load_info

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
    work = ComponentLoad(pipeline, source, options)
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
        with forward_dlt_logs(), drain_on_cancellation(), forgotten_afterwards():
            results = load_components(work, mode, resources, given)
        return FlowResult(all_loaded(name, results))

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
