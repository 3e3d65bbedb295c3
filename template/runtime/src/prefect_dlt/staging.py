"""A staging area for each pipeline that loads into a dataset together with others."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from dlt.common.configuration.resolve import inject_section
from dlt.common.configuration.specs.config_section_context import ConfigSectionContext
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.decompose import staging_name

_THROUGH_STAGING = frozenset({"insert-from-staging", "staging-optimized"})


@dataclass(frozen=True)
class StagingAreas:
    """What staging areas are called, as it is configured for a pipeline; it takes dlt a while to say so.

    Attributes:
        layout: How staging datasets are called; None where the destination has none.
        bucket_url: Where files are staged; None for nowhere, or where there is no such setting.
    """

    layout: str | None
    bucket_url: str | None = field(repr=False)


def staging_areas(pipeline: Pipeline) -> StagingAreas:
    """Return what the staging areas of a pipeline are called."""
    return StagingAreas(_layout(pipeline), _bucket_url(pipeline))


def with_own_staging(pipeline: Pipeline, component: str, areas: StagingAreas | None = None) -> tuple[Any, Any]:
    """Return destination and staging destination of a pipeline, as copies that share no staging area with others.

    Rows that are merged or replaced are brought to a staging dataset first, which each load empties before: two loads
    that share one lose or double rows. The same goes for files on a staging destination, at least those of dlt's own
    tables. The staging dataset is called as it is configured, and the name of the part is put to its end; files get a
    folder of that name.

    Args:
        pipeline: The pipeline that others derive from.
        component: The part that one of them loads.
        areas: What the staging areas of `pipeline` are called, where that is known.
    """
    areas = areas or staging_areas(pipeline)
    name = staging_name(component)
    destination, staging = pipeline.destination, pipeline.staging
    if areas.layout is not None and "%s" in areas.layout:
        destination = _changed(destination, staging_dataset_name_layout=f"{areas.layout}_{name}")
    if areas.bucket_url is not None:
        staging = _changed(staging, bucket_url=f"{areas.bucket_url.rstrip('/')}/{name}")
    return destination, staging


def why_shared(pipeline: Pipeline) -> tuple[str, bool]:
    """Return why the staging area of a pipeline cannot be separated, and whether all rows pass through it.

    The reason is empty when it can, or where there is none.
    """
    staging: Any = pipeline.staging
    if staging is not None and _bucket_url(pipeline) is None:
        return f"the staging destination, {staging.destination_name}, has no bucket_url to put folders in", True
    layout = _layout(pipeline)
    if layout is not None and "%s" not in layout:
        return f"staging_dataset_name_layout names one staging dataset for all, {layout!r}, without '%s'", False
    return "", False


def passes_through_staging(disposition: Any, pipeline: Pipeline) -> bool:
    """Tell whether rows of a write disposition pass through the staging dataset; yes, where the data decides it."""
    if callable(disposition):
        return True
    strategy: Any = None
    if isinstance(disposition, Mapping):
        given = cast("Mapping[str, Any]", disposition)
        disposition, strategy = given.get("disposition"), given.get("strategy")
    if disposition == "replace":
        strategy = strategy or getattr(configured(pipeline, pipeline.destination), "replace_strategy", None)
        return strategy in _THROUGH_STAGING
    return disposition == "merge"


def _layout(pipeline: Pipeline) -> str | None:
    """Return how staging datasets are called, as it is configured; None where the destination has none."""
    layout = getattr(configured(pipeline, pipeline.destination), "staging_dataset_name_layout", None)
    return layout if isinstance(layout, str) else None


def _bucket_url(pipeline: Pipeline) -> str | None:
    url = getattr(configured(pipeline, pipeline.staging), "bucket_url", None)
    return url if isinstance(url, str) and url else None


def configured(pipeline: Pipeline, destination: Any) -> Any:
    """Return the configuration of a destination as it is for a pipeline; None for no destination.

    It may lack credentials: only names are asked for, and who plans a run need not have them.
    """
    if destination is None:
        return None
    context = ConfigSectionContext(pipeline_name=pipeline.pipeline_name, sections=())
    with inject_section(context, merge_existing=False):
        return destination.configuration(None, accept_partial=True)


def _changed(destination: Any, **params: Any) -> Any:
    # Not the caller's own one, which other pipelines load to as well.
    changed = copy.copy(destination)
    changed.config_params = {**destination.config_params, **params}
    return changed
