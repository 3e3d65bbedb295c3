"""Drop what a source has loaded before, once, so that nothing that its parts load is dropped again by another part."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import dlt
from dlt.common.schema import Schema
from dlt.extract import DltSource
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.attempts import attempted
from prefect_dlt.configuration import RunnerSettings
from prefect_dlt.decompose import select
from prefect_dlt.runner import PipelineRunner


def refresh_once(pipeline: Pipeline, settings: RunnerSettings, source: DltSource, mode: Any) -> bool:
    """Drop or empty the tables of a source, and the state of its resources, as `pipeline.run(refresh=…)` does.

    Nothing is extracted. What is pending is loaded first, or put aside, as the settings say. The state goes to the
    destination, from where workers on other machines take it.

    Args:
        pipeline: A pipeline that loads resources of the source.
        settings: How its runner is set up; nothing is verified, and no trace stored.
        source: The source, with those resources selected that are refreshed; for "drop_sources" all are.
        mode: "drop_sources", "drop_resources" or "drop_data".

    Returns:
        Whether there was something to drop or to load.
    """
    if not _knows_anything(pipeline) and not pipeline.has_pending_data:
        # Not with pending data: on a dataset that does not exist yet, dlt would wipe it out.
        ask = lambda: pipeline.sync_destination()  # noqa: E731, PLW0108 - dlt's types want no function that takes None
        attempted(settings, "ask the destination what to refresh", ask)
        if not _knows_anything(pipeline):
            return False
    settings = replace(settings, store_trace_info=False, verify=None, run_from_clean_folder=False)
    PipelineRunner(pipeline, settings).run(lambda: _emptied(source), refresh=mode)
    return True


def _knows_anything(pipeline: Pipeline) -> bool:
    return bool(pipeline.default_schema_name)


def _emptied(source: DltSource) -> DltSource:
    """Return a source with the same names, and no data; dlt drops by names."""
    names = sorted({resource.name for resource in source.resources.extracted})
    return DltSource(Schema(source.name), source.section, [dlt.resource([], name=name) for name in names])


def to_refresh(source: DltSource, resources: Any, mode: Any) -> DltSource:
    """Return the source with what a refresh is about selected: with "drop_sources", all of it."""
    return select(source, list(source.resources) if mode == "drop_sources" else resources)


@contextmanager
def no_refresh(pipeline: Pipeline) -> Generator[None]:
    """Keep a pipeline that refreshes at every run from doing so inside: it has been done for all parts together."""
    mode, pipeline.refresh = pipeline.refresh, None
    try:
        yield
    finally:
        pipeline.refresh = mode


def is_older(pipeline: Pipeline, moment: float | None) -> bool:
    """Tell whether a pipeline has pending data, and all of it from before a moment, in seconds since 1970."""
    if moment is None or not pipeline.has_pending_data:
        return False
    waiting = [*pipeline.list_extracted_load_packages(), *pipeline.list_normalized_load_packages()]
    # dlt's load ids are the time at which they were made.
    return all(float(load_id) < moment for load_id in waiting)
