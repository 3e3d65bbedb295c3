"""What a flow does before any part of its source is loaded: choose the mode, refuse, plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dlt.extract import DltSource
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.attempts import attempted
from prefect_dlt.component_load import WHOLE, ComponentLoad
from prefect_dlt.dataset import check_dataset_name
from prefect_dlt.decompose import Component, Decompose, Mode, all_components, components, derived_name, select
from prefect_dlt.durations import known_durations
from prefect_dlt.errors import ConfigurationError
from prefect_dlt.known_secrets import learn_secrets
from prefect_dlt.modes import choose_mode, left_behind
from prefect_dlt.on_failure import OnFailure
from prefect_dlt.options import DESTINATION_OPTIONS, PLACE_OPTIONS, with_destinations_built
from prefect_dlt.plan import Plan, largest_first
from prefect_dlt.references import flow_runs_of
from prefect_dlt.survey import planned, survey


@dataclass(frozen=True)
class Request:
    """What a run is asked for.

    Attributes:
        resources: Names of the resources to load; all that the source selects with None.
        options: What `pipeline.run` takes.
        on_failure: What becomes of the other parts when one fails.
        submit_to: The deployment or work pool that loads the parts; None for the tasks of the flow.
    """

    resources: Sequence[str] | None
    options: dict[str, Any]
    on_failure: OnFailure = "continue"
    submit_to: str | None = None


@dataclass(frozen=True)
class Prepared:
    """How a source is loaded in one run.

    Attributes:
        mode: The mode it is loaded in.
        reason: Why.
        base: The pipeline as it was given; with None, it is not built here.
        source: The source, whatever of it is loaded; with None, it is not built here.
        parts: The parts, in the order in which they are started; of a source that is loaded whole, none.
        members: All resources of each part, those that are not loaded too, by the part's name.
        warning: What this way leaves behind that earlier runs remember; empty where nothing.
    """

    mode: Mode
    reason: str
    base: Pipeline | None = None
    source: Any = None
    parts: tuple[Component, ...] = ()
    members: Mapping[str, tuple[str, ...]] | None = None
    warning: str = ""

    @property
    def told(self) -> str:
        """Why it is loaded in this mode, and what that leaves behind."""
        return f"{self.reason}. {self.warning}" if self.warning else self.reason

    def work_of(self, part: Component, work: ComponentLoad) -> ComponentLoad:
        """Return what a task needs to load a part."""
        members = (self.members or {}).get(part.name, part.resources)
        return replace(work, component=part.name, derived=self.mode == "parallel", members=members)


def placed(work: ComponentLoad, request: Request) -> tuple[ComponentLoad, Request]:
    """Return the same with where the run says to load to told to the pipeline, rather than to each run of it.

    So it counts for all that derives from the pipeline or asks its destination: parts with staging areas of their own,
    the look at earlier runs, a refresh.
    """
    options = with_destinations_built(request.options)
    place = {name: options.pop(name) for name in PLACE_OPTIONS if name in options}
    return replace(work, place=place), replace(request, options=options)


def prepare(work: ComponentLoad, decompose: Decompose, request: Request) -> Prepared:
    """Return how to load a source; nothing has run by then, and nothing is changed.

    Raises:
        UnknownResourcesError: If the source does not have one of the resources.
        NotASourceError: If what is to be taken apart, or loaded by names, is no dlt source.
        ConfigurationError: If the pipeline is in dev mode, or DuckDB cannot tell its dataset from its database.
        CollisionError: If parts would write to one table, or be loaded by pipelines of one name.
        SharedStagingError: If parts that load at the same time would share a staging area.
    """
    if request.submit_to is not None:
        _check_submitted(request, request.submit_to)
    if decompose == "none":
        return Prepared("none", f"decompose={decompose!r}")
    work, request = placed(work, request)
    base = work.build_base()
    check_dataset_name(base)
    settings = work.settings(base)
    source = attempted(settings, "build the source", lambda: work.build_source(None))
    learn_secrets(base, source)
    chosen = select(source, request.resources)
    circumstances = attempted(
        settings,
        "find out how the source was loaded before",
        lambda: survey(base, source, request.options, look_back=decompose == "auto"),
    )
    mode, reason = choose_mode(decompose, circumstances)
    if request.submit_to is not None and mode == "sequential":
        reason = f"{reason}; and flow runs elsewhere cannot share the working directory of one pipeline"
        mode = "none"
    if mode == "none":
        return Prepared(mode, reason, base, source)
    parts = components(chosen)
    if mode == "parallel":
        parts = largest_first(parts, known_durations(base))
    members = {part.name: part.resources for part in all_components(source)}
    # What is dropped before it is loaded anew has no state to be missed.
    warning = "" if request.options.get("refresh") or base.refresh else left_behind(mode, circumstances)
    return Prepared(mode, reason, base, source, tuple(parts), members, warning)


def _check_submitted(request: Request, submit_to: str) -> None:
    for name in DESTINATION_OPTIONS:
        if name in request.options:
            expected = f"{flow_runs_of(submit_to)} build the pipeline themselves: say there what it loads to"
            raise ConfigurationError(name, f"<{type(request.options[name]).__name__}>", expected)


def plan(
    flow_name: str,
    work: ComponentLoad,
    decompose: Decompose,
    request: Request,
) -> Plan:
    """Return what a run with these parameters would do; raise what it would raise before anything runs."""
    if isinstance(work.pipeline, Pipeline):
        # What a run would be told of the destination does not stay with it.
        work = replace(work, pipeline=_twin(work.pipeline))
    prepared = prepare(work, decompose, request)
    work, request = placed(work, request)
    base = prepared.base or work.build_base()
    source = prepared.source if prepared.source is not None else work.build_source(None)
    chosen = select(source, request.resources)
    if prepared.mode == "none":
        names = tuple(sorted(chosen.resources.selected)) if isinstance(chosen, DltSource) else ()
        parts, names_of = (Component(WHOLE, names),), {WHOLE: base.pipeline_name}
    else:
        parts = prepared.parts
        is_derived = prepared.mode == "parallel"
        names_of = {
            each.name: derived_name(base.pipeline_name, each.name) if is_derived else base.pipeline_name
            for each in parts
        }
    seconds = known_durations(base)
    found = [planned(base, names_of[part.name], chosen, part, request.options) for part in parts]
    return Plan(
        flow_name,
        prepared.mode,
        prepared.told,
        base.pipeline_name,
        base.destination.destination_name if base.destination else "no destination yet",
        base.dataset_name,
        tuple(replace(each, seconds=seconds.get(each.name)) for each in found),
        request.options.get("refresh") or base.refresh,
    )


def _twin(pipeline: Pipeline) -> Pipeline:
    """Return the same pipeline as another object."""
    twin = Pipeline.__new__(Pipeline)
    # Not `copy`: dlt pickles a pipeline as a stub, and it would be that.
    vars(twin).update(vars(pipeline))
    return twin
