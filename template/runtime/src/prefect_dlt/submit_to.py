"""Load components in flow runs of their own: on a work pool, or by a deployment."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast
from uuid import UUID

from dlt.pipeline.pipeline import Pipeline
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, WorkPoolStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment as running_deployment
from prefect.states import Cancelled, Cancelling

from prefect_dlt.component_flow import load_component
from prefect_dlt.component_load import ComponentLoad
from prefect_dlt.decompose import Component
from prefect_dlt.errors import ConfigurationError
from prefect_dlt.known_secrets import known_secrets
from prefect_dlt.redact import redact
from prefect_dlt.references import Json, as_json, check_callable, flow_runs_of, policy_as_json, reference_of
from prefect_dlt.results import ComponentResult
from prefect_dlt.signs_of_life import Watched, tag_of, with_what_they_told
from prefect_dlt.stop import pause

logger = logging.getLogger("prefect_dlt")

POLL_SECONDS = 2.0
"""Pause between two looks at the flow runs of components."""

TELLS_AFTER = 60.0
"""Seconds that flow runs wait for a worker before it is told why none may come."""

CANCEL_WITHIN = 20.0
"""Seconds that flow runs are given to end when they are cancelled; Prefect gives this one 30."""

AT_A_TIME = 200
"""Flow runs that one call of the API tells about."""

ENTRYPOINT = "prefect_dlt.component_flow.load_component"


@dataclass(frozen=True)
class Target:
    """Where components are loaded.

    Attributes:
        name: What `submit_to` was given.
        deployment: The deployment that is run for each.
        takes_references: Whether it is told how to build pipeline and source; one of the same flow knows.
    """

    name: str
    deployment: DeploymentResponse
    takes_references: bool


def check_submit_to(work: ComponentLoad, submit_to: str) -> None:
    """Refuse what cannot be loaded by other flow runs.

    Raises:
        CallableNeededError: If pipeline or source is an object; for a work pool, if it is no function of a module.
        ConfigurationError: If `submit_to` cannot be a name, or an option cannot be sent.
    """
    if not isinstance(submit_to, str) or not submit_to.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError("submit_to", submit_to, 'give "flow/deployment", or the name of a work pool')
    # A deployment of the same flow has functions of its own, from wherever it is loaded.
    if "/" in submit_to:
        check_callable("pipeline", work.pipeline, flow_runs_of(submit_to))
        check_callable("source", work.source, flow_runs_of(submit_to))
    else:
        _references(work, submit_to)


def _references(work: ComponentLoad, submit_to: str) -> Json:
    """Return what the flow of a work pool is told of pipeline, source and options."""
    where, secrets = flow_runs_of(submit_to), known_secrets()
    references = {
        "pipeline": reference_of("pipeline", work.pipeline, where, secrets),
        "source": reference_of("source", work.source, where, secrets),
    }
    options = {name: value for name, value in work.runner_options.items() if value is not None}
    options["retry_policy"] = policy_as_json(options.get("retry_policy"), where)
    if isinstance(options.get("store_trace_info"), Pipeline):
        expected = f"{where} cannot be sent a pipeline; give True or False"
        raise ConfigurationError("store_trace_info", options["store_trace_info"], expected)
    if "retry_pipeline_steps" in options:
        options["retry_pipeline_steps"] = list(options["retry_pipeline_steps"])
    limits = {name: value for name, value in asdict(work.limits).items() if value is not None}
    return {**references, "runner_options": as_json("options", options, where, secrets), "limits": limits}


def check_target(work: ComponentLoad, submit_to: str, run_options: Json) -> None:
    """Refuse what cannot be submitted, before anything is loaded or dropped.

    Raises:
        ConfigurationError: If there is no such deployment or work pool, it takes no components, or an option cannot be
            sent.
    """
    as_json("options", run_options, flow_runs_of(submit_to), known_secrets())
    with get_client(sync_client=True) as client:
        if _target(client, submit_to).takes_references:
            _references(work, submit_to)


def refreshed_by_earlier_attempts(parts: Sequence[Component]) -> dict[str, float | None]:
    """Return when the parts were refreshed that earlier attempts of this flow run have submitted, by their names."""
    with get_client(sync_client=True) as client:
        submitted = list(_submitted_by_earlier_attempts(client, parts))
    details = {name: cast("Json", run.parameters.get("details") or {}) for name, run in submitted}
    return {name: detail.get("refreshed_at") for name, detail in details.items()}


def submit_components(
    work: ComponentLoad,
    submit_to: str,
    parts: Sequence[Component],
    pipeline_names: Sequence[str],
    run_options: Json,
    *,
    details: Mapping[str, Json] | None = None,
    cancels_on_failure: bool = False,
) -> list[ComponentResult]:
    """Load each component in a flow run of its own, and wait for all of them; return what became of each.

    When this flow run is retried, components that its earlier attempts have loaded are not loaded again, and flow runs
    that are still under way are waited for.

    Args:
        work: How to load.
        submit_to: A deployment, as "flow/deployment", or the name of a work pool.
        parts: The components, in the order in which they are submitted.
        pipeline_names: The names of their pipelines.
        run_options: What `pipeline.run` takes besides.
        details: What else flow runs have to know of components, by the components' names.
        cancels_on_failure: Whether one failure ends the others.
    """
    as_json("options", run_options, flow_runs_of(submit_to), known_secrets())
    with get_client(sync_client=True) as client:
        target = _target(client, submit_to)
        told = _references(work, submit_to) if target.takes_references else {}
        submitted: dict[str, FlowRun] = {}
        try:
            earlier = _earlier(client, parts)
            for part, pipeline_name in zip(parts, pipeline_names, strict=True):
                flow_run = earlier.get(part.name)
                if flow_run is None:
                    detail = (details or {}).get(part.name, {})
                    flow_run = _submit(target, part, pipeline_name, {**told, "details": detail}, run_options)
                submitted[part.name] = flow_run
            ended = _wait(client, target, submitted, cancels_on_failure=cancels_on_failure)
        except BaseException:
            # Also when a part could not be submitted: nobody would wait for the others.
            _cancel(client, submitted.values(), waits=True)
            raise
        return [_result(part, ended[part.name]) for part in parts]


# -- where to ----------------------------------------------------------------------------------------------------------


def _target(client: SyncPrefectClient, submit_to: str) -> Target:
    if "/" not in submit_to:
        return Target(submit_to, _deployment_on_pool(client, submit_to), takes_references=True)
    try:
        deployment = client.read_deployment_by_name(submit_to)
    except ObjectNotFound:
        expected = "there is no deployment of that name; `prefect deployment ls` lists those that there are"
        raise ConfigurationError("submit_to", submit_to, expected) from None
    _check_room(client, submit_to, deployment.work_pool_name)
    parameters = (deployment.parameter_openapi_schema or {}).get("properties", {})
    if "component" not in parameters:
        expected = (
            "its flow takes no component; name a deployment of the flow that create_run_pipeline_flow returns, "
            f"deployed again since it has submit_to=, or of {ENTRYPOINT}"
        )
        raise ConfigurationError("submit_to", submit_to, expected)
    limit = deployment.global_concurrency_limit
    if limit is not None and str(deployment.id) == running_deployment.id:
        expected = (
            f"this flow run is one of it, and holds one of the {limit.limit} that it may have at a time, so that its "
            "components would wait for it. Deploy the flow a second time, under another name, for the components"
        )
        raise ConfigurationError("submit_to", submit_to, expected)
    return Target(submit_to, deployment, takes_references="pipeline" in parameters)


def _deployment_on_pool(client: SyncPrefectClient, pool: str) -> DeploymentResponse:
    """Return the deployment of `load_component` on a pool, made or brought up to date.

    Where this flow run is one of a deployment, the code comes from where that has it from, with the same settings.
    """
    try:
        work_pool = client.read_work_pool(pool)
    except ObjectNotFound:
        known = ", ".join(sorted(each.name for each in client.read_work_pools())) or "none"
        expected = f"there is no work pool of that name (there are: {known}), and a deployment is named flow/deployment"
        raise ConfigurationError("submit_to", pool, expected) from None
    _check_room(client, pool, pool)
    name = pool
    options: Json = {}
    if running_deployment.id is not None:
        running = client.read_deployment(UUID(str(running_deployment.id)))
        taken = work_pool.base_job_template.get("variables", {}).get("properties", {})
        # Deployments of several projects may have one name; neither name has a slash in it.
        name = f"{pool}, with the code of {running.name} of {client.read_flow(running.flow_id).name}"
        options = {
            "pull_steps": running.pull_steps,
            "path": running.path,
            "job_variables": {key: value for key, value in running.job_variables.items() if key in taken},
            "version": running.version,
        }
    deployment_id = client.create_deployment(
        client.create_flow(load_component),
        name,
        entrypoint=ENTRYPOINT,
        work_pool_name=pool,
        description="Loads one component of a dlt source; made, and kept up to date, by flows with submit_to=",
        parameter_openapi_schema=load_component.parameters.model_dump_for_openapi(),
        enforce_parameter_schema=False,
        tags=["prefect-dlt"],
        **options,
    )
    return client.read_deployment(deployment_id)


def _check_room(client: SyncPrefectClient, submit_to: str, pool: str | None) -> None:
    """Refuse a pool in which this flow run takes the only place."""
    context = FlowRunContext.get()
    own = context.flow_run.work_pool_name if context is not None and context.flow_run is not None else None
    if pool is None or own != pool:
        return
    if client.read_work_pool(pool).concurrency_limit == 1:
        expected = (
            f"this flow run is on work pool {pool!r}, and holds the only place that it has, so that its components "
            f"would wait for it. Give the pool more: prefect work-pool set-concurrency-limit {shlex.quote(pool)} 3"
        )
        raise ConfigurationError("submit_to", submit_to, expected)


# -- flow runs ---------------------------------------------------------------------------------------------------------


def _key(part: str, attempt: int) -> str:
    """Return what tells the flow run of a component from all others, and is the same in a retry of this one."""
    return f"{_this_flow_run().id}:{part}:{attempt}"


def _this_flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("Components are submitted from a flow run")
    return context.flow_run


def _attempt() -> int:
    return max(_this_flow_run().run_count, 1)


def _earlier(client: SyncPrefectClient, parts: Sequence[Component]) -> dict[str, FlowRun]:
    """Return the flow runs of earlier attempts of this one that have loaded a component, or are still about it."""
    return {
        name: run
        for name, run in _submitted_by_earlier_attempts(client, parts)
        if run.state is not None and (run.state.is_completed() or not run.state.is_final())
    }


def _submitted_by_earlier_attempts(
    client: SyncPrefectClient, parts: Sequence[Component]
) -> Iterator[tuple[str, FlowRun]]:
    keys = {_key(part.name, attempt): part.name for part in parts for attempt in range(1, _attempt())}
    names = list(keys)
    for start in range(0, len(names), AT_A_TIME):
        chosen = FlowRunFilterIdempotencyKey(any_=names[start : start + AT_A_TIME])
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=chosen)):
            yield keys[str(run.idempotency_key)], run


def _submit(target: Target, part: Component, pipeline_name: str, told: Json, run_options: Json) -> FlowRun:
    parameters: Json = {"component": part.name, "resources": list(part.resources) or None}
    parameters |= {**told, "run_options": run_options} if target.takes_references else {**told, **run_options}
    run: Any = run_deployment
    return run(
        target.deployment.id,
        parameters=parameters,
        flow_run_name=f"{part.name} of {_this_flow_run().name}",
        timeout=0,
        tags=[tag_of(pipeline_name)],
        idempotency_key=_key(part.name, _attempt()),
        _sync=True,
    )


def _wait(
    client: SyncPrefectClient, target: Target, submitted: dict[str, FlowRun], *, cancels_on_failure: bool
) -> dict[str, Watched]:
    """Wait until all flow runs have ended, or are lost."""
    watched = {name: Watched(run) for name, run in submitted.items()}
    is_cancelled, tells_at = False, time.monotonic() + TELLS_AFTER
    while True:
        with_trouble = _look(client, list(watched.values()))
        open_runs = [each for each in watched.values() if not (_is_over(each) or each.is_lost)]
        if not open_runs and not with_trouble:
            return watched
        failed = [each for each in watched.values() if each.is_lost or (_is_over(each) and not _is_loaded(each))]
        if failed and cancels_on_failure and not is_cancelled:
            _cancel(client, [each.flow_run for each in open_runs], waits=False)
            is_cancelled = True
        if time.monotonic() > tells_at and not with_trouble:
            tells_at = math.inf
            # To be told nothing is better than to lose what is loaded.
            with contextlib.suppress(Exception):
                _tell_who_is_awaited(client, target, open_runs)
        # Where the flow is called in a task, on a thread, this is what hears of a request to stop.
        pause(POLL_SECONDS)


def _tell_who_is_awaited(client: SyncPrefectClient, target: Target, open_runs: Sequence[Watched]) -> None:
    """Warn of flow runs that wait for a worker where there is none; Prefect itself says nothing."""
    waiting = sum(each.flow_run.state is not None and each.flow_run.state.is_scheduled() for each in open_runs)
    pool = target.deployment.work_pool_name
    if not waiting:
        return
    if pool is None:
        reason = f"deployment {target.name!r} is on no work pool: is the process there that serves it?"
    elif (status := client.read_work_pool(pool).status) == WorkPoolStatus.NOT_READY:
        reason = f"work pool {pool!r} has none. Start one: prefect worker start --pool {shlex.quote(pool)}"
    elif status == WorkPoolStatus.PAUSED:
        reason = f"work pool {pool!r} is paused. Let it go on: prefect work-pool resume {shlex.quote(pool)}"
    else:
        return
    logger.warning("%d of the components' flow runs wait for a worker, and %s", waiting, reason)


def _look(client: SyncPrefectClient, watched: Sequence[Watched]) -> bool:
    """Note how flow runs are; return whether the API could not be asked, which ends no load."""
    try:
        waited_for = {each.flow_run.id: each for each in watched if each.told is None or not _is_over(each)}
        ids = list(waited_for)
        for start in range(0, len(ids), AT_A_TIME):
            chosen = FlowRunFilterId(any_=ids[start : start + AT_A_TIME])
            flow_runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=chosen))
            told = {run.flow_run.id: run for run in reversed(with_what_they_told(client, flow_runs))}
            for flow_run in flow_runs:
                waited_for[flow_run.id].note(client, flow_run, told.get(flow_run.id))
    except Exception as error:  # noqa: BLE001 - an API that is away for a while comes back
        logger.warning("How the components are could not be asked (%s)", type(error).__name__)
        for each in watched:
            each.seen_now()
        return True
    return False


def _is_over(each: Watched) -> bool:
    return each.flow_run.state is not None and each.flow_run.state.is_final()


def _is_loaded(each: Watched) -> bool:
    return each.flow_run.state is not None and each.flow_run.state.is_completed()


def _cancel(client: SyncPrefectClient, flow_runs: Any, *, waits: bool) -> None:
    """Cancel flow runs, and wait a while for them to end."""
    open_runs: list[UUID] = []
    for flow_run in list(flow_runs):
        try:
            state = client.read_flow_run(flow_run.id).state
            if state is None or state.is_final():
                continue
            # One that no worker has taken has no process to end.
            asked = Cancelled if state.is_scheduled() else Cancelling
            client.set_flow_run_state(flow_run.id, asked(message="The flow run that submitted it was cancelled."))
            open_runs.append(flow_run.id)
        except Exception as error:  # noqa: BLE001 - the others are cancelled in any case
            logger.warning("Flow run %r could not be cancelled (%s)", flow_run.name, type(error).__name__)
    ends_at = time.monotonic() + CANCEL_WITHIN
    while waits and open_runs and time.monotonic() < ends_at:
        time.sleep(POLL_SECONDS / 4)
        states = [client.read_flow_run(each).state for each in open_runs]
        open_runs = [each for each, state in zip(open_runs, states, strict=True) if state and not state.is_final()]


# -- results -----------------------------------------------------------------------------------------------------------


def _result(part: Component, each: Watched) -> ComponentResult:
    told = each.told.told.result if each.told is not None else None
    state = each.flow_run.state
    if _is_loaded(each):
        return replace(told, error=None) if told is not None else ComponentResult(part.name)
    message = " ".join(redact((state.message if state else None) or "", known_secrets()).split())
    if told is not None and told.error is not None:
        return told
    how = str(state.name).lower() if state else "unknown"
    error = f"flow run {each.flow_run.name!r} is {how}{f': {message}' if message else ''}"
    if state is None or not state.is_cancelled():
        return ComponentResult(part.name, error=error)
    return ComponentResult(
        part.name, error=error, failed_as="interrupted" if each.flow_run.start_time else "not started"
    )
