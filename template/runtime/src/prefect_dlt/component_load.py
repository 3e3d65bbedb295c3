"""Load one part of a source, or the whole of it, with a pipeline, as a task does."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from dlt.common.runtime.collector import NullCollector
from dlt.extract import DltResource, DltSource
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.collector import PrefectCollector
from prefect_dlt.configuration import RunnerSettings, runner_settings
from prefect_dlt.dataset import check_dataset_name, derive
from prefect_dlt.decompose import derived_name, select
from prefect_dlt.logs import forward_dlt_logs
from prefect_dlt.results import ComponentResult
from prefect_dlt.runner import PipelineRunner

WHOLE = "the whole source"


@dataclass(frozen=True)
class ComponentLoad:
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
        """Return the pipeline as it was given."""
        return self.pipeline if isinstance(self.pipeline, Pipeline) else self.pipeline()

    def settings(self, base: Pipeline) -> RunnerSettings:
        """Return how the runner of the component is set up."""
        # What is configured for a pipeline counts for those that derive from it.
        return runner_settings(base.pipeline_name, **self.runner_options)

    def build_pipeline(self, base: Pipeline) -> Pipeline:
        """Return the pipeline that loads the component: the given one, or one that derives from it."""
        pipeline = base
        check_dataset_name(pipeline)
        if self.derived:
            pipeline = derive(base, derived_name(pipeline.pipeline_name, self.component))
            pipeline.collector = _own_collector(base)
        elif isinstance(pipeline.collector, NullCollector):
            pipeline.collector = PrefectCollector()
        return pipeline

    def build_source(self, resources: Sequence[str] | None) -> Any:
        """Return the source with these resources selected."""
        return select(_built(self.source), resources)

    def run(self, resources: Sequence[str] | None, run_options: dict[str, Any]) -> ComponentResult:
        """Load these resources; return what became of them."""
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


def _built(source: Any) -> Any:
    # A DltResource can be called as well, to bind its arguments, but it is data as it stands.
    if isinstance(source, DltSource | DltResource) or not callable(source):
        return cast("Any", source)
    return source()


def _own_collector(pipeline: Pipeline) -> Any:
    """Return the collector for a pipeline derived from this one: a copy, since one collector serves one pipeline."""
    return PrefectCollector() if isinstance(pipeline.collector, NullCollector) else copy.deepcopy(pipeline.collector)
