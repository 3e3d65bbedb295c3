"""Load one part of a source, or the whole of it, with a pipeline, as a task does."""

from __future__ import annotations

import copy
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from dlt.common.pipeline import LoadInfo
from dlt.common.runtime.collector import NullCollector
from dlt.common.schema import Schema
from dlt.extract import DltResource, DltSource
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.built_sources import BuiltSources
from prefect_dlt.collector import BRIEF_PART, PrefectCollector
from prefect_dlt.configuration import RunnerSettings, runner_settings
from prefect_dlt.dataset import check_dataset_name, derive
from prefect_dlt.decompose import derived_name, select
from prefect_dlt.errors import ComponentFailedError
from prefect_dlt.keys import artifact_key
from prefect_dlt.known_secrets import known_secrets
from prefect_dlt.limits import Limits
from prefect_dlt.logs import forward_dlt_logs
from prefect_dlt.options import tell_place
from prefect_dlt.reasons import reason_line
from prefect_dlt.redact import redaction
from prefect_dlt.references import by_name
from prefect_dlt.refresh import is_older, no_refresh
from prefect_dlt.results import ComponentResult
from prefect_dlt.runner import PipelineRunner
from prefect_dlt.scoped_config import Scope, scoped_config
from prefect_dlt.staging import StagingAreas
from prefect_dlt.turns import taking_turns

WHOLE = "the whole source"


def this_process() -> str:
    """Return what tells this process from all others, those of other machines as well."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class ComponentLoad:
    """How to load: what a task needs besides the names of the resources and the options of the run.

    Pipeline and source are objects or callables that build one; callables are called in the task. The runner's options
    are those of `prefect_dlt.runner`; what is None is configured where the task runs. `members` are all resources of
    the component, those that are not loaded too. When the source has been refreshed before, what waits in a working
    directory from before that moment, in seconds since 1970, is put aside. Components that end with one another when
    one of them fails share a word for it. `place` is where a run says to load to, not the pipeline: destination,
    staging, credentials and dataset, as `pipeline.run` takes them. `staging_areas` is known where all have one pipeline
    object.
    `built` are the sources that the threads of this run have built, where the parts are loaded by threads.
    In another process than the one it was made in, it takes turns with others that load into the same DuckDB file.
    """

    pipeline: Pipeline | Callable[[], Pipeline]
    source: Any
    runner_options: dict[str, Any]
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    component: str = WHOLE
    derived: bool = False
    members: tuple[str, ...] = ()
    refreshed_at: float | None = None
    ends_with: str | None = None
    place: Mapping[str, Any] = field(default_factory=dict[str, Any])
    staging_areas: StagingAreas | None = None
    built: BuiltSources | None = None
    made_in: str = field(default_factory=this_process)
    around_load: Callable[[Pipeline], AbstractContextManager[None]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Also for what Prefect sends along with a task: the flow, which holds this.
        return {**vars(self), "pipeline": by_name(self.pipeline), "source": by_name(self.source), "built": None}

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is another process than the one it was made in, of a task runner."""
        return self.made_in not in {"", this_process()}

    def details(self) -> dict[str, Any]:
        """Return what a flow run elsewhere has to know besides the component's name, as JSON for `with_details`."""
        return {"members": list(self.members), "refreshed_at": self.refreshed_at}

    def with_details(self, details: Mapping[str, Any]) -> ComponentLoad:
        """Return how to load a component of which this is told."""
        return replace(self, members=tuple(details.get("members", ())), refreshed_at=details.get("refreshed_at"))

    def build_base(self) -> Pipeline:
        """Return the pipeline as it was given, active in this thread: what is configured for it counts for sources.

        Where another derives from it, that one will be active.
        """
        base = self.pipeline if isinstance(self.pipeline, Pipeline) else self.pipeline()
        if not self.derived:
            base.activate()
        if self.place:
            tell_place(base, self.place)
        return base

    def pipeline_name(self, base: Pipeline) -> str:
        """Return the name of the pipeline that loads the component."""
        return derived_name(base.pipeline_name, self.component) if self.derived else base.pipeline_name

    def scope(self, base: Pipeline) -> Scope:
        """Return what counts for the pipeline that loads the component, besides what is configured for it."""
        return Scope(self.limits.in_dlts_words(), base.pipeline_name if self.derived else None)

    def settings(self, base: Pipeline) -> RunnerSettings:
        """Return how the runner of the component is set up."""
        return runner_settings(self.pipeline_name(base), **self.runner_options)

    def working_dir(self, base: Pipeline) -> str:
        """Return the folder that this pipeline works in."""
        # As dlt writes it: a path that is relative stays so.
        return os.path.join(base.pipelines_dir, self.pipeline_name(base))  # noqa: PTH118

    def derive_quietly(self, base: Pipeline) -> Pipeline:
        """Return the pipeline that loads the component, without a collector, and so without a report."""
        members = self.members or (self.component,)
        return derive(base, self.pipeline_name(base), self.component, members, self.staging_areas)

    def build_pipeline(self, base: Pipeline) -> Pipeline:
        """Return the pipeline that loads the component: the given one, or one that derives from it."""
        if self.derived:
            # What it derives from was checked before.
            pipeline = self.derive_quietly(base)
            pipeline.collector = _own_collector(base)
            return pipeline
        check_dataset_name(base)
        if isinstance(base.collector, NullCollector):
            base.collector = PrefectCollector()
        return base

    def build_source(self, resources: Sequence[str] | None) -> Any:
        """Return the source with these resources selected."""
        return select(_built(self.source), resources, self.members)

    def building_once(self) -> ComponentLoad:
        """Return the same, with a source that each thread builds once, unless it is given as data."""
        return self if _is_data(self.source) else replace(self, built=BuiltSources(self.source))

    def _part_of_source(self, pipeline: Pipeline, resources: Sequence[str] | None) -> Any:
        if self.built is None or resources is None:
            return self.build_source(resources)
        return self.built.take(pipeline, resources, self.members)

    def run(self, resources: Sequence[str] | None, run_options: dict[str, Any]) -> ComponentResult:
        """Load these resources; return what became of them."""
        note = _Note()
        # Earlier and later than the collector does, and whatever collector the pipeline has.
        with forward_dlt_logs():
            info = self._run(resources, run_options, note)
        return ComponentResult(self.component, load_info=info, **note.told())

    def run_as_part(self, resources: Sequence[str] | None, run_options: dict[str, Any]) -> ComponentResult:
        """Load these resources as `run` does; tell of a failure when, how often and by which pipeline it was tried.

        Raises:
            ComponentFailedError: In place of any error; what it came from is its cause, in this process.
        """
        note = _Note()
        try:
            with forward_dlt_logs():
                info = self._run(resources, run_options, note)
        except Exception as error:
            raise ComponentFailedError(self.component, error_line(error), note.told()) from error
        return ComponentResult(self.component, load_info=info, **note.told())

    def _run(self, resources: Sequence[str] | None, run_options: dict[str, Any], note: _Note) -> LoadInfo | None:
        base = self.build_base()
        with scoped_config(self.pipeline_name(base), self.scope(base)):
            settings = self.settings(base)
            pipeline = self.build_pipeline(base)
            if is_older(pipeline, self.refreshed_at):
                # It waits on another machine than that of the flow, which has dropped the tables that it is for.
                settings = replace(settings, discard_pending=True)
            note.runner = PipelineRunner(pipeline, settings)
            with (
                nullcontext() if self.made_in == this_process() else taking_turns(pipeline),
                self.around_load(pipeline) if self.around_load else nullcontext(),
                nullcontext() if self.component == WHOLE else no_refresh(pipeline),
            ):
                return note.runner.run(lambda: self._part_of_source(pipeline, resources), **_own(run_options))


@dataclass
class _Note:
    """What is known of a load, however it ends.

    Attributes:
        runner: What runs the pipeline; None until there is one.
    """

    runner: PipelineRunner | None = None
    _started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    _began: float = field(default_factory=time.monotonic)

    def told(self) -> dict[str, Any]:
        """Return it, as arguments of `ComponentResult`."""
        told: dict[str, Any] = {
            "seconds": time.monotonic() - self._began,
            "started_at": self._started_at,
            "finished_at": datetime.now(timezone.utc),
        }
        if self.runner is None:
            return told
        pipeline, record = self.runner.pipeline, self.runner.record
        told["pipeline_name"] = pipeline.pipeline_name
        if isinstance(pipeline.collector, PrefectCollector):
            told["summary_key"] = artifact_key(pipeline.pipeline_name, "summary")
        if record is not None:
            told |= {"attempts": record.attempts, "tables": tuple(record.tables())}
        return told


def error_line(error: BaseException) -> str:
    """Return what an error says, in one line without secrets."""
    return reason_line(error, redaction(known_secrets()))


def _own(run_options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with a schema for this run alone: dlt writes the tables it finds into the one it is given."""
    return {name: value.clone() if isinstance(value, Schema) else value for name, value in run_options.items()}


def _built(source: Any) -> Any:
    return source if _is_data(source) else source()


def _is_data(source: Any) -> bool:
    # A DltResource can be called as well, to bind its arguments, but it is data as it stands.
    return isinstance(source, DltSource | DltResource) or not callable(source)


def _own_collector(pipeline: Pipeline) -> Any:
    """Return the collector for a pipeline derived from this one: a copy, since one collector serves one pipeline."""
    is_none = isinstance(pipeline.collector, NullCollector)
    collector = PrefectCollector() if is_none else copy.deepcopy(pipeline.collector)
    if isinstance(collector, PrefectCollector) and collector.brief is None:
        collector.brief = BRIEF_PART
    return collector
