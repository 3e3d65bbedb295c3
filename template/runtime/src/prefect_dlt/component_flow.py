"""Load one component of a source in a flow run of its own, wherever a worker takes it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dlt.pipeline.pipeline import Pipeline
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from prefect_dlt.abandoned import begun, home_of, place_of, take_back, waiting_load_ids
from prefect_dlt.cancellation import drain_on_cancellation
from prefect_dlt.component_load import WHOLE, ComponentLoad
from prefect_dlt.configuration import runner_settings
from prefect_dlt.errors import ComponentFailedError, ComponentRunsElsewhereError
from prefect_dlt.known_secrets import known_secrets
from prefect_dlt.limits import Limits
from prefect_dlt.logs import forward_dlt_logs
from prefect_dlt.preparation import Request, placed
from prefect_dlt.redact import redacted_traceback
from prefect_dlt.references import Json, callable_of, policy_of
from prefect_dlt.results import ComponentResult
from prefect_dlt.runs_elsewhere import wait_for_runs_elsewhere
from prefect_dlt.scoped_config import scoped_config
from prefect_dlt.signs_of_life import RunOfComponent, SignsOfLife, add_tag, runs_of, tag_at, tell_of
from prefect_dlt.told import Begun, is_stale
from prefect_dlt.turns import around_load, taking_turns

logger = logging.getLogger("prefect_dlt")


@flow(name="load component", log_prints=True, validate_parameters=False)
def load_component(  # noqa: PLR0917 - Prefect passes parameters by name
    pipeline: Json,
    source: Json,
    component: str,
    resources: list[str] | None = None,
    run_options: Json | None = None,
    runner_options: Json | None = None,
    limits: Json | None = None,
    details: Json | None = None,
) -> None:
    """Load one component; flows with `submit_to=` start this on a work pool.

    Args:
        pipeline: A reference to the function that builds the pipeline: {"call": "module:name", "args": […], "kwargs":
            {…}}.
        source: A reference to the function that builds the source.
        component: Name of the component.
        resources: Its resources.
        run_options: What `pipeline.run` takes besides.
        runner_options: What `prefect_dlt.runner` takes besides.
        limits: Its parallelism and file sizes; see `prefect_dlt.limits.Limits`.
        details: What else is to be known of the component.
    """
    options = dict(runner_options or {})
    options["retry_policy"] = policy_of(options.get("retry_policy"))
    work = ComponentLoad(callable_of(pipeline), callable_of(source), options, Limits(**(limits or {})))
    with forward_dlt_logs(), drain_on_cancellation():
        load_here(work.with_details(details or {}), component, resources, run_options or {})


def load_here(
    work: ComponentLoad, component: str, resources: Sequence[str] | None, run_options: Json
) -> ComponentResult:
    """Load one component in this flow run, and tell what becomes of it to the one that has started it.

    What an earlier flow run of the component has left half done elsewhere is taken back first.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("A component is loaded in a flow run")
    # As if made elsewhere: it takes turns.
    work = replace(work, component=component, derived=component != WHOLE, made_in="")
    work, request = placed(work, Request(resources, run_options))
    base = work.build_base()
    with scoped_config(work.pipeline_name(base), work.scope(base)):
        return _load_here(work, work.build_pipeline(base), context.flow_run.id, resources, request.options)


def _load_here(
    work: ComponentLoad, pipeline: Pipeline, flow_run_id: Any, resources: Sequence[str] | None, run_options: Json
) -> ComponentResult:
    signs = SignsOfLife(flow_run_id, home_of(pipeline))
    # Before the first sign of life: of two flow runs that begin at the same time, the later one finds the earlier one.
    with get_client(sync_client=True) as client:
        add_tag(client, flow_run_id, tag_at(pipeline.pipeline_name, place_of(pipeline)))
    with signs.given():
        try:
            work = _with_what_was_left(work, pipeline, flow_run_id, signs)
            result = replace(work, around_load=partial(_telling, signs)).run_as_part(resources, run_options)
        except ComponentRunsElsewhereError as error:
            raise ComponentFailedError(work.component, str(error), {}) from None
        except ComponentFailedError as error:
            with contextlib.suppress(Exception):
                signs.tell(result=ComponentResult(work.component, error=error.message, **error.told))
            if error.__cause__ is not None:
                traceback = redacted_traceback(error.__cause__, known_secrets())
                logger.error("%s failed\n%s", work.component, traceback)  # noqa: TRY400 - without secrets
            # Not what it came from: Prefect would store and show its text, and all that is in it.
            raise ComponentFailedError(error.component, error.message, error.told) from None
        try:
            signs.tell(result=result)
        except Exception as error:  # noqa: BLE001 - what is loaded does not fail because nobody could be told
            logger.warning("What became of %r could not be told (%s)", work.component, type(error).__name__)
        return result


@contextlib.contextmanager
def _telling(signs: SignsOfLife, pipeline: Pipeline) -> Generator[None]:
    """Tell which packages a load step begins with, before it does: whoever goes on elsewhere has to know."""

    @contextlib.contextmanager
    def tell() -> Generator[None]:
        signs.tell(begun=tuple(begun(pipeline)))
        yield

    with around_load(pipeline, tell):
        yield


def _with_what_was_left(work: ComponentLoad, pipeline: Pipeline, flow_run_id: Any, signs: SignsOfLife) -> ComponentLoad:
    """Take back what ended flow runs have left elsewhere, and put aside here what was loaded anew elsewhere."""
    home, tag = home_of(pipeline), tag_at(pipeline.pipeline_name, place_of(pipeline))
    settings = runner_settings(pipeline.pipeline_name, **work.runner_options)
    with get_client(sync_client=True) as client:
        wait_for_runs_elsewhere(client, signs, tag, pipeline, settings.lock_timeout)
        # Its own first attempt, where Prefect runs it again, is over as well.
        earlier = [
            run
            for run in runs_of(client, tag)
            if (run.is_over or run.flow_run.id == flow_run_id) and run.artifact.id != signs.artifact_id
        ]
        told, completed = [run.told for run in earlier], [run.is_completed for run in earlier]
        waiting = waiting_load_ids(pipeline)
        if waiting and is_stale(waiting, home, told, completed):
            logger.warning(
                "Pipeline %r has been run elsewhere since, and what waits here was extracted anew: it is put aside",
                pipeline.pipeline_name,
            )
            work = replace(work, runner_options={**work.runner_options, "discard_pending": True})
        for run in earlier:
            if run.told.home == home or run.is_completed or run.told.is_settled:
                continue
            # What waits here is loaded from here, whatever the directory was called.
            left = tuple(package for package in run.told.begun if package.load_id not in waiting)
            if left:
                _take_back(client, pipeline, run, left)
    return work


def _take_back(client: Any, pipeline: Pipeline, run: RunOfComponent, packages: tuple[Begun, ...]) -> None:
    load_ids = tuple(package.load_id for package in packages)
    # First noted, then done: whoever has the package there must not take its loaded files for loaded any more.
    tell_of(client, run, lambda told: replace(told, taken_back=load_ids))
    with taking_turns(pipeline):
        lines = take_back(pipeline, packages)
    for line in lines:
        logger.warning("Flow run %r did not end its load, and this one loads it anew. %s", run.flow_run.name, line)
    tell_of(client, run, lambda told: replace(told, taken_back=load_ids, is_settled=True))
