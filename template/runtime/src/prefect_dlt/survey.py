"""Look at a source, a pipeline, its destination and what earlier runs have left, before anything runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from dlt.common.destination.client import WithStateSync
from dlt.common.destination.exceptions import DestinationUndefinedEntity
from dlt.common.schema import Schema
from dlt.common.schema.utils import get_root_table
from dlt.common.storages import FileStorage, SchemaStorage
from dlt.common.storages.configuration import SchemaStorageConfiguration
from dlt.common.versioned_state import json_decode_state
from dlt.extract import DltSource
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.decompose import Component, all_components, derived_name
from prefect_dlt.modes import Circumstances, LoadedAs
from prefect_dlt.pending import pending_packages
from prefect_dlt.plan import BY_ROW, PlannedComponent
from prefect_dlt.staging import configured, passes_through_staging, why_shared


def survey(pipeline: Pipeline, source: Any, options: Mapping[str, Any], *, look_back: bool) -> Circumstances:
    """Return what decides how a source can be taken apart.

    Args:
        pipeline: The pipeline that would load it, or that those of the parts would derive from.
        source: The whole source, whichever of its resources are to be loaded.
        options: What `pipeline.run` would be given: `table_name` and `write_disposition` count for all resources.
        look_back: Whether the destination is asked how earlier runs have loaded it, where this machine does not know.
    """
    if not isinstance(source, DltSource):
        return Circumstances(type(source).__name__, 0)
    parts = all_components(source)
    staging, is_for_all = why_shared(pipeline)
    writers: dict[str, set[str]] = defaultdict(set)
    replaced: set[str] = set()
    staged: list[str] = []
    for part in parts:
        selected = [name for name in part.resources if source.resources[name].selected] or part.resources
        dispositions = [_disposition(source, name, options) for name in selected]
        if staging and (is_for_all or any(passes_through_staging(each, pipeline) for each in dispositions)):
            staged.append(part.name)
        for name, disposition in zip(selected, dispositions, strict=True):
            for table in tables_of(source, [name], options):
                writers[table].add(part.name)
                if callable(disposition) or _kind(disposition) == "replace":
                    replaced.add(table)
    pipelines: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        # A file system may ignore case.
        pipelines[derived_name(pipeline.pipeline_name, part.name).lower()].append(part.name)
    loaded, remembered = _loaded_as(pipeline, parts, asks=look_back)
    shared = {table: tuple(sorted(names)) for table, names in sorted(writers.items()) if len(names) > 1}
    return Circumstances(
        source.name,
        len(parts),
        dev_mode=bool(pipeline.dev_mode),
        shared_tables=shared,
        replaced=frozenset(replaced & shared.keys()),
        shared_names={name: tuple(names) for name, names in pipelines.items() if len(names) > 1},
        staged_together=tuple(staged),
        staging=staging,
        one_at_a_time=_one_at_a_time(pipeline),
        loaded_as=loaded,
        remembered=remembered,
    )


def tables_of(source: DltSource, resources: Iterable[str], options: Mapping[str, Any]) -> list[str]:
    """Return the tables that resources write to, as the destination will call them; not those that the data decides."""
    tables: set[str] = set()
    for name in resources:
        resource = source.resources[name]
        table = options.get("table_name") or resource.table_name
        if isinstance(table, str):
            tables.add(source.schema.naming.normalize_tables_path(table))
    return sorted(tables)


def planned(
    pipeline: Pipeline,
    pipeline_name: str,
    source: Any,
    part: Component,
    options: Mapping[str, Any],
) -> PlannedComponent:
    """Return what is known of a part, from the source, and from what earlier runs have left on this machine."""
    folder = Path(pipeline.pipelines_dir) / pipeline_name
    tables: list[str] = []
    if isinstance(source, DltSource):
        tables = tables_of(source, part.resources, options)
        known = _tables_known(folder, source.name, set(part.resources))
        tables += sorted(known - set(tables))
        if not options.get("table_name") and any(
            source.resources[name].has_dynamic_table_name for name in part.resources
        ):
            tables.append(BY_ROW)
    waiting = tuple(str(package) for package in pending_packages(folder))
    state = _remembered(_local_state(folder))
    return PlannedComponent(part.name, pipeline_name, part.resources, tuple(tables), state, waiting)


def _disposition(source: DltSource, resource: str, options: Mapping[str, Any]) -> Any:
    return options.get("write_disposition") or source.resources[resource].write_disposition


def _kind(disposition: Any) -> Any:
    return cast("Any", disposition).get("disposition") if isinstance(disposition, Mapping) else disposition


def _one_at_a_time(pipeline: Pipeline) -> str:
    """Return why the destination should have one load at a time; an empty text when it takes several."""
    destination: Any = pipeline.destination
    if destination is None:
        return ""
    caps = destination.capabilities()
    if caps.loader_parallelism_strategy == "sequential" or caps.max_parallel_load_jobs == 1:
        return f"{destination.destination_name} takes one load job at a time"
    credentials: Any = getattr(configured(pipeline, destination), "credentials", None)
    if str(getattr(credentials, "drivername", "")).startswith("sqlite"):
        return "SQLite takes one writer at a time"
    if getattr(credentials, "database", None) == ":memory:":
        return "a database in memory belongs to one pipeline"
    return ""


def _loaded_as(
    pipeline: Pipeline, parts: Sequence[Component], *, asks: bool
) -> tuple[LoadedAs | None, tuple[str, ...]]:
    """Return how the source was loaded last, by this pipeline or by one for each part, and what that remembers."""
    folder = Path(pipeline.pipelines_dir)
    names = [derived_name(pipeline.pipeline_name, part.name) for part in parts]
    state_of_whole = _local_state(folder / pipeline.pipeline_name)
    states_of_parts = [_local_state(folder / name) for name in names]
    whole = _last_extracted(state_of_whole)
    apart = max(map(_last_extracted, states_of_parts), default="")
    if asks and not whole and not apart:
        whole, apart = _stored(pipeline, names)
    if not whole and not apart:
        return None, ()
    loaded: LoadedAs = "parts" if apart >= whole else "whole"
    states = states_of_parts if loaded == "parts" else [state_of_whole]
    # The pipeline may have loaded other sources too.
    own = {name for part in parts for name in part.resources}
    return loaded, tuple(sorted(own & {name for state in states for name in _with_state(state)}))


def _stored(pipeline: Pipeline, names: Sequence[str]) -> tuple[str, str]:
    """Return when a pipeline, and the first known of others, stored their states in the destination; "" for never."""
    if not pipeline.destination:
        return "", ""
    database: Any = getattr(configured(pipeline, pipeline.destination), "credentials", None)
    is_duckdb = pipeline.destination.destination_type.endswith(".duckdb")
    path = str(getattr(database, "database", None) or "") if is_duckdb else ""
    if path and not path.startswith("md:") and Path(path).is_absolute() and not Path(path).exists():
        # To ask would be to make it.
        return "", ""
    with pipeline.destination_client() as client:
        if not isinstance(client, WithStateSync):
            return "", ""
        with suppress(DestinationUndefinedEntity):
            found = client.get_stored_state(pipeline.pipeline_name)
            whole = found.created_at.isoformat() if found else ""
            for name in names:
                if (part := client.get_stored_state(name)) is not None:
                    return whole, part.created_at.isoformat()
            return whole, ""
    return "", ""


def _local_state(folder: Path) -> dict[str, Any]:
    """Return what a pipeline remembers on this machine; nothing where it has not run."""
    with suppress(OSError, ValueError, KeyError):
        return json_decode_state(FileStorage(str(folder)).load(Pipeline.STATE_FILE))
    return {}


def _last_extracted(state: Mapping[str, Any]) -> str:
    at = state.get("_local", {}).get("_last_extracted_at")
    return at.isoformat() if at is not None else ""


def _remembered(state: Mapping[str, Any]) -> str:
    if not state.get("schema_names"):
        return "nothing"
    resources = _with_state(state)
    at = _last_extracted(state)[:16].replace("T", " ")
    said = f"extracted {at} UTC" if at else "loaded before"
    return f"{said}; state of {', '.join(sorted(resources))}" if resources else said


def _with_state(state: Mapping[str, Any]) -> set[str]:
    """Return the resources that a pipeline remembers something of, where an incremental one has come to for example."""
    return {
        name
        for of_source in state.get("sources", {}).values()
        for name, kept in of_source.get("resources", {}).items()
        if kept
    }


def _tables_known(folder: Path, schema_name: str, resources: set[str]) -> set[str]:
    """Return the tables of resources that a pipeline has loaded so far, nested ones too."""
    path = folder / "schemas"
    if not path.is_dir():
        return set()
    schema: Schema | None = None
    with suppress(Exception):
        schema = SchemaStorage(SchemaStorageConfiguration(schema_volume_path=str(path))).load_schema(schema_name)
    if schema is None:
        return set()
    return {
        name for name in schema.data_table_names() if get_root_table(schema.tables, name).get("resource") in resources
    }
