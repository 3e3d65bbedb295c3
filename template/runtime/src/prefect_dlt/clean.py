"""Begin with an empty working directory, and with what the destination knows of state and schemas."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import dlt
from dlt.common.destination.client import WithStateSync
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.errors import ConfigurationError

KEPT_LOCAL = ("initial_cwd", "duckdb_database")
"""What of dlt's local state is kept: where a destination is, that is named relative to a folder."""

ARGUMENT = "run_from_clean_folder"


def try_to_restore(pipeline: Pipeline) -> None:
    """Restore state and schemas from the destination, to a folder that is thrown away; raise what dlt raises.

    Raises:
        ConfigurationError: If dropping the working directory would lose more than can be restored.
    """
    _check_destination(pipeline)
    with tempfile.TemporaryDirectory(prefix="prefect-dlt-") as folder:
        try:
            elsewhere = dlt.pipeline(
                pipeline_name=pipeline.pipeline_name,
                pipelines_dir=folder,
                destination=pipeline.destination,
                staging=pipeline.staging,
                dataset_name=pipeline.dataset_name,
            )
            elsewhere.sync_destination()
        finally:
            # dlt.pipeline() makes the new pipeline the active one.
            pipeline.activate()


def drop(pipeline: Pipeline) -> None:
    """Drop the working directory; traces that wait as JSON files stay in it."""
    local_state = _local_state(pipeline)
    traces, aside = Path(pipeline.working_dir) / "traces", _traces_aside(pipeline)
    if traces.is_dir():
        put_traces_back(pipeline)
        traces.rename(aside)
    pipeline.drop()
    for name, value in local_state.items():
        pipeline.set_local_state_val(name, value)
    put_traces_back(pipeline)


def put_traces_back(pipeline: Pipeline) -> None:
    """Put the traces back to where they were, after `drop`, or where a process was killed during it."""
    aside, traces = _traces_aside(pipeline), Path(pipeline.working_dir) / "traces"
    if not aside.is_dir():
        return
    traces.mkdir(parents=True, exist_ok=True)
    for path in aside.iterdir():
        path.replace(traces / path.name)
    aside.rmdir()


def _traces_aside(pipeline: Pipeline) -> Path:
    return Path(pipeline.pipelines_dir) / f".{pipeline.pipeline_name}.traces"


def _local_state(pipeline: Pipeline) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name in KEPT_LOCAL:
        with suppress(KeyError):
            kept[name] = pipeline.get_local_state_val(name)
    return kept


def _place(config: Any) -> Path | None:
    """Return where in this machine's files a destination keeps its data, by dlt's configuration of it; or None."""
    database = getattr(getattr(config, "credentials", None), "database", None)
    place = getattr(config, "bucket_url", None) or database
    if not isinstance(place, str):
        return None
    url = urlparse(place)
    path = url2pathname(url.path) if url.scheme == "file" else place
    return Path(os.path.realpath(path)) if Path(path).is_absolute() else None


def _check_destination(pipeline: Pipeline) -> None:
    """Raise `ConfigurationError` where dropping the working directory would lose more than can be restored."""
    with pipeline.destination_client() as client:
        place = _place(client.config)
        if place is not None and place.is_relative_to(Path(os.path.realpath(pipeline.working_dir))):
            expected = f"the data itself is in the working directory, as {place}, and would be dropped with it"
            raise ConfigurationError(ARGUMENT, True, expected)
        # Without state there is nothing to lose: nothing incremental has run.
        keeps_state = isinstance(client, WithStateSync) and pipeline.config.restore_from_destination
        if not keeps_state and pipeline.state.get("sources"):
            expected = (
                "the destination does not keep the pipeline's state, and incremental resources would begin anew "
                "(dlt's restore_from_destination is off, or the destination cannot)"
            )
            raise ConfigurationError(ARGUMENT, True, expected)
