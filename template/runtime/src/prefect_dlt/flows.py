"""Prefect tasks and flows that run a pipeline with a source, whole or taken apart."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from dlt.common.pipeline import LoadInfo
from dlt.pipeline.pipeline import Pipeline
from prefect import Flow, State, Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.task_runners import TaskRunner
from tenacity import Retrying

from prefect_dlt.cancellation import drain_on_cancellation
from prefect_dlt.component_flow import load_here
from prefect_dlt.component_load import ComponentLoad
from prefect_dlt.configuration import Verify
from prefect_dlt.decompose import Decompose, Mode, decompose_mode
from prefect_dlt.elsewhere import stopped_as_cancelled
from prefect_dlt.errors import ConfigurationError
from prefect_dlt.fan_out import load_components
from prefect_dlt.flow_record import FlowRecord
from prefect_dlt.flow_reporter import reported
from prefect_dlt.known_secrets import forgotten_afterwards, learn_secrets
from prefect_dlt.last_reports import waiting_together
from prefect_dlt.limits import limits_in
from prefect_dlt.logs import forward_dlt_logs
from prefect_dlt.on_failure import OnFailure, check_on_failure
from prefect_dlt.options import HELD_BACK, run_options_in, runner_options_in
from prefect_dlt.plan import Plan
from prefect_dlt.preparation import Request, plan
from prefect_dlt.results import ComponentResult, FlowResult, all_loaded
from prefect_dlt.submit_to import check_submit_to


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
    extract_workers: int | None = None,
    normalize_workers: int | None = None,
    load_workers: int | None = None,
    file_max_items: int | None = None,
    file_max_bytes: int | None = None,
    buffer_max_items: int | None = None,
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
        extract_workers: Threads that parallel resources are extracted in, for this and the following arguments: those
            of each pipeline by itself, and what is left out is configured; dlt takes 5 by default.
        normalize_workers: Processes that normalise; dlt normalises in the pipeline's own by default.
        load_workers: Threads that load files; dlt takes 20 by default.
        file_max_items: Rows after which a file is ended, both of what is extracted and of what is normalised.
        file_max_bytes: Bytes after which a file is ended; rows that are buffered together stay together.
        buffer_max_items: Rows of a table that are held in memory before they are written; dlt holds 5,000 by default.

    Raises:
        ConfigurationError: If a limit has a value that cannot work.
    """
    given = locals()
    work = ComponentLoad(pipeline, source, runner_options_in(given), limits_in(given))
    name = f"load {pipeline.pipeline_name}" if isinstance(pipeline, Pipeline) else "load"

    @task(name=task_name or name, cache_policy=NO_CACHE, log_prints=True)
    def run_pipeline(resources: Sequence[str] | None = None, **run_options: Any) -> LoadInfo | State[Any] | None:
        found = stopped_as_cancelled(partial(work.run, resources, run_options), is_elsewhere=work.is_elsewhere)
        return found.load_info if isinstance(found, ComponentResult) else found

    return cast("Task[..., LoadInfo | None]", run_pipeline)


def create_run_pipeline_flow(
    pipeline: Pipeline | Callable[[], Pipeline],
    source: Any,
    *,
    decompose: bool | Decompose = False,
    on_failure: OnFailure = "continue",
    flow_name: str | None = None,
    task_runner: TaskRunner[Any] | None = None,
    submit_to: str | None = None,
    description: str | None = None,
    retry_policy: Retrying | str | None = None,
    retry_pipeline_steps: Sequence[str] | None = None,
    store_trace_info: bool | Pipeline | None = None,
    run_from_clean_folder: bool | None = None,
    discard_pending: bool | None = None,
    verify: bool | Verify | None = None,
    lock_timeout: float | None = None,
    extract_workers: int | None = None,
    normalize_workers: int | None = None,
    load_workers: int | None = None,
    file_max_items: int | None = None,
    file_max_bytes: int | None = None,
    buffer_max_items: int | None = None,
) -> PipelineFlow:
    """Return a Prefect flow that runs a pipeline with a source, whole or taken apart.

    The flow's parameters are `resources` (names of those to load, all that the source selects by default),
    `full_refresh` (drop what these resources loaded before, and their state, and load anew) and what `pipeline.run`
    takes. Prefect keeps the parameters of a run, but not destination, staging, credentials and schema that are given in
    code. `component` and `details` are for flow runs that `submit_to` starts. It returns a `FlowResult`.

    Args:
        pipeline: The pipeline, or a callable that builds one.
        source: The dlt source, or a callable that builds one. Without taking apart, anything `pipeline.run` takes.
        decompose: "none" or False: one task loads the whole source. "sequential": one task per component, one after
            another, with the state of the one pipeline; one that leaves data it could not load stops the following.
            "parallel" or True: one task per component, all at once, each with a pipeline and a state of its own, into
            one dataset. "auto": the widest of them that source, destination and the state of earlier runs allow.
        on_failure: What becomes of the other parts when one fails: "continue" loads them all the same; "cancel" starts
            no further one, and asks those that run to stop where nothing is lost.
        flow_name: Name of the flow; "load <pipeline>" where the pipeline is an object, else "load".
        task_runner: What runs the tasks; by default that of the flow that calls this one, or else threads. Where it
            runs them in other processes, pipeline and source have to be callables.
        submit_to: A deployment of this flow, as "flow/deployment", or the name of a work pool: each component is loaded
            there, in a flow run of its own. With "none" that is one flow run for the whole source; "sequential" cannot.
        description: What the UI says about the flow.
        retry_policy: See `prefect_dlt.runner`, for this and the following arguments: what is left out is configured.
            Each component retries by itself.
        retry_pipeline_steps: Steps that may be made again.
        store_trace_info: Whether to store traces, or the pipeline to store them with.
        run_from_clean_folder: Whether to begin with an empty working directory.
        discard_pending: Whether to move aside what an earlier run left.
        verify: Whether to compare what was normalised with what the destination holds.
        lock_timeout: Longest wait for another run of the pipeline to end, in seconds.
        extract_workers: Threads that parallel resources are extracted in, for this and the following arguments: those
            of each pipeline by itself, and what is left out is configured; dlt takes 5 by default.
        normalize_workers: Processes that normalise; dlt normalises in the pipeline's own by default.
        load_workers: Threads that load files; dlt takes 20 by default.
        file_max_items: Rows after which a file is ended, both of what is extracted and of what is normalised.
        file_max_bytes: Bytes after which a file is ended; rows that are buffered together stay together.
        buffer_max_items: Rows of a table that are held in memory before they are written; dlt holds 5,000 by default.

    Raises:
        ConfigurationError: If `decompose` is none of the modes, or cannot be had with `submit_to`; if `on_failure` is
            neither of its words; or if a limit cannot work.
        CallableNeededError: If `submit_to` is given, and pipeline or source is no function that can be imported.

    A source that cannot be loaded in the mode that is asked for is refused before anything runs. A run raises
    `ComponentsFailedError`, with the results of all, when components failed and all have ended; a source that is loaded
    whole raises its own error.
    """
    given = locals()
    mode, to_do = decompose_mode(decompose), check_on_failure(on_failure)
    learn_secrets(pipeline, source)
    work = ComponentLoad(pipeline, source, runner_options_in(given), limits_in(given))
    if not _is_task_runner(task_runner):
        raise ConfigurationError("task_runner", task_runner, "give a task runner of Prefect's, or none")
    if submit_to is not None:
        if mode == "sequential":
            expected = 'components in turn share one working directory; give "parallel", "none" or no submit_to'
            raise ConfigurationError("decompose", decompose, expected)
        check_submit_to(work, submit_to)
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
        schema: Any = None,
        destination: Any = None,
        staging: Any = None,
        credentials: Any = None,
        component: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> FlowResult:
        options = _options(locals())
        if component is not None:
            # For a flow run with submit_to, which has taken the source apart, and tells of all parts.
            with forward_dlt_logs(), drain_on_cancellation(), forgotten_afterwards():
                part = load_here(work.with_details(details or {}), component, resources, options)
            return FlowResult(all_loaded(name, [part]))
        record = FlowRecord(name)
        with waiting_together(), reported(record):
            with forward_dlt_logs(), drain_on_cancellation(), forgotten_afterwards():
                request = Request(resources, options, to_do)
                results = load_components(work, mode, request, record, get_run_logger().info, submit_to)
            return FlowResult(all_loaded(name, results), cast("Mode", record.mode), record.reason)

    made = PipelineFlow(run_pipeline, name=name, task_runner=task_runner, description=description, log_prints=True)
    made.has_task_runner = task_runner is not None
    made.planned = partial(plan, name, work, mode)
    made.submits_to = submit_to
    return made


def _is_task_runner(given: Any) -> bool:
    # Of a class, Prefect makes one.
    return given is None or isinstance(given, TaskRunner) or (isinstance(given, type) and issubclass(given, TaskRunner))


def _options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `pipeline.run` takes of the parameters of a flow run."""
    options = run_options_in(parameters)
    return {**options, "refresh": "drop_resources"} if parameters.get("full_refresh") else options


class PipelineFlow(Flow[..., FlowResult]):
    """A flow that says beforehand what it would do; `create_run_pipeline_flow` makes it.

    It runs its tasks as the flow that calls it does; Prefect does not hand a task runner down.
    """

    has_task_runner = False
    planned: Callable[..., Plan]
    submits_to: str | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        with _a_parameter_called_schema():
            super().__init__(*args, **options)

    def plan(self, **parameters: Any) -> Plan:
        """Print what a run with these parameters would do, and return it; nothing is loaded, and nothing is changed.

        The pipeline and the source are built, and with `decompose="auto"` the destination may be asked how the source
        was loaded before.

        Args:
            **parameters: What the flow would be called with.

        Raises:
            TypeError: If the flow has no such parameter.

        What a run would raise before anything is loaded, this raises too.
        """
        given = inspect.signature(self.fn).bind(**parameters).arguments
        found = self.planned(Request(given.get("resources"), _options(given), submit_to=self.submits_to))
        print(found)  # noqa: T201 - that is what it is for
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> FlowResult:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run the flow with its parameters; in an async flow, what it returns is awaited."""
        caller = FlowRunContext.get()
        if caller is None or self.has_task_runner:
            return super().__call__(*args, **kwargs)  # pyright: ignore[reportUnknownMemberType]
        runs_alike = self.with_options(task_runner=caller.task_runner.duplicate())
        return runs_alike(*args, **kwargs)

    def with_options(self, **options: Any) -> Any:
        """Return this flow with other options; Prefect would return an ordinary flow."""
        with _a_parameter_called_schema():
            made: Any = super().with_options(**options)
        made.__class__ = type(self)
        made.has_task_runner = self.has_task_runner or options.get("task_runner") is not None
        return made

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as their types want them."""
        with _a_parameter_called_schema():
            return super().validate_parameters(parameters)

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return what Prefect stores and shows of the parameters: of what may hold a secret, only that it was given."""
        told = {name: value for name, value in parameters.items() if name not in HELD_BACK or value is None}
        held_back = {name: f"<{type(parameters[name]).__name__}>" for name in parameters.keys() - told.keys()}
        return super().serialize_parameters(told) | held_back


@contextmanager
def _a_parameter_called_schema() -> Generator[None]:
    """Keep Pydantic from warning of a parameter that is called as a method of its models is, which nobody calls."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", 'Field name "schema" ', UserWarning)
        yield
