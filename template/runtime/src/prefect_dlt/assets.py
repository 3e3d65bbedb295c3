"""What a run loaded as Prefect's assets: one for each table, behind what its rows came from; without any secret."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from dlt.common.pipeline import ExtractInfo, LoadInfo, NormalizeInfo
from dlt.common.schema.typing import TColumnSchema

from prefect_dlt.events import EventDraft, Redaction, digest, fitting, table_labels
from prefect_dlt.record import RunRecord, Table
from prefect_dlt.schema_changes import type_text

MATERIALIZED = "prefect.asset.materialization.succeeded"
"""Name of Prefect's event for an asset that has been written."""

REFERENCED = "prefect.asset.referenced"
"""Name of Prefect's event for an asset that has been read."""

MATERIALIZED_BY = "dlt"
"""The tool that wrote an asset, as Prefect shows it."""

LONGEST_KEY = 512
"""Characters of an asset's key that Prefect takes."""

MOST_ORIGINS = 50
"""Assets that one table comes from, at most; Prefect takes 100 related resources, those of the run included."""

MOST_LOADS = 100
"""Load packages of one table that are told of one by one."""

SAME_SCHEME = {"postgresql": "postgres"}
"""Two names of one kind of database: what one pipeline loads is then what the next one reads."""

STORES_WITH_CONTAINERS = {"abfs", "abfss", "wasb", "wasbs"}
"""Schemes of addresses in which a container stands before the @, where others have a user."""

HINTS = (
    *("data_type", "nullable", "precision", "scale", "timezone", "variant", "description"),
    *("primary_key", "merge_key", "unique", "row_key", "parent_key", "root_key", "hard_delete", "dedup_sort"),
    *("partition", "cluster", "sort", "incremental"),
)
"""What is told of a column beside its name and type, in dlt's words."""

EXPLICIT = {"nullable", "precision", "scale", "timezone"}
"""Hints that say something when they are false or 0."""

# Prefect refuses some of these in a key, and a slash would end the name that it is part of.
UNSAFE = re.compile(r"[^\w.~!$*()+,;:=@-]")


@dataclass(frozen=True)
class _Load:
    """Where a table was loaded, and in which packages."""

    address: str
    dataset: str
    load_ids: list[str]


def asset_events(record: RunRecord) -> list[EventDraft]:
    """Return an event for each table that a run loaded, nested ones too, after one for each asset they come from.

    A table of a package that was not loaded to its end has none, and neither has one with a failed job.
    """
    redaction = Redaction.of(record)
    whole = redaction.whole
    rows, origins = _rows(record), _Origins(record, whole)
    referenced = dict[str, None]()
    materialized = list[EventDraft]()
    for name, load in sorted(_loads(record, whole).items()):
        table = record.tables_known.get(name) or Table(name, "", None, None, {})
        behind = origins.of(table)
        told = behind[:MOST_ORIGINS]
        referenced |= dict.fromkeys(told)
        labels = {
            "prefect.resource.id": asset_key(load.address, whole(load.dataset), whole(name)),
            **table_labels(record, table.schema, name, redaction),
        }
        related = [{"prefect.resource.id": key, "prefect.resource.role": "asset"} for key in told]
        related += [{"prefect.resource.id": MATERIALIZED_BY, "prefect.resource.role": "asset-materialized-by"}]
        payload = {**_payload(record, table, load, rows, redaction), "upstream_left_out": len(behind) - len(told)}
        materialized.append(EventDraft(MATERIALIZED, labels, related, payload))
    return [EventDraft(REFERENCED, {"prefect.resource.id": key}) for key in referenced] + materialized


def asset_key(address: str, *names: str) -> str:
    """Return the key of an asset: an address without user and query, and the names of what is there.

    A name with a character that Prefect refuses gets a digest of the original, so that no two share a key; so does a
    key that is too long.

    Args:
        address: Such as "postgresql://ada:***@db.example.com:5432/shop"; it begins with a scheme.
        names: Such as dataset and table; empty ones are left out.
    """
    scheme, _, rest = address.replace("\\", "/").partition("://")
    scheme = re.sub(r"[^a-z0-9]", "", scheme.partition("+")[0].lower()) or "dlt"
    host, _, path = rest.partition("?")[0].partition("/")
    before, _, host = host.rpartition("@")
    parts = [before.partition(":")[0]] if scheme in STORES_WITH_CONTAINERS else []
    parts += [*path.split("/"), *names]
    key = f"{SAME_SCHEME.get(scheme, scheme)}://" + "/".join([_part(host), *(_part(part) for part in parts if part)])
    return key if len(key) <= LONGEST_KEY else f"{key[: LONGEST_KEY - 13]}-{digest(key)}"


class _Origins:
    """Which assets the rows of a table come from, as far as dlt tells: databases' tables, endpoints, files.

    Of a resource that tells nothing, it is the source as a whole.
    """

    def __init__(self, record: RunRecord, whole: Callable[[str], str]) -> None:
        self._tables = record.tables_known
        self._whole = whole
        self._read: dict[str, list[str]] = {}
        self._fed_by: dict[str, list[str]] = {}
        self._sources: dict[str, str] = {}
        for step in record.steps("extract"):
            info = step.step_info
            for metrics in info.metrics.values() if isinstance(info, ExtractInfo) else ():
                for each in metrics:
                    for location in each["inputs"]:
                        self._read.setdefault(location["resource_name"], []).extend(self._keys(location))
                    for first, then in each["dag"]:
                        self._fed_by.setdefault(then, []).append(first)
                    self._sources |= dict.fromkeys(each["resource_metrics"], each["schema_name"])

    def of(self, table: Table) -> list[str]:
        """Return the keys of the assets that a table comes from; none when this run did not extract it."""
        resource = self._resource(table)
        if resource not in self._sources:
            return []
        seen, waiting, keys = {resource}, [resource], dict[str, None]()
        while waiting:
            current = waiting.pop()
            keys |= dict.fromkeys(self._read.get(current, ()))
            fresh = [name for name in self._fed_by.get(current, ()) if name not in seen]
            seen |= set(fresh)
            waiting += fresh
        return list(keys) or [asset_key(f"dlt://{_part(self._whole(self._sources[resource]))}")]

    def _resource(self, table: Table) -> str:
        seen = set[str]()
        while table.resource is None and table.parent in self._tables and table.parent not in seen:
            seen.add(table.parent)
            table = self._tables[table.parent]
        return table.resource or table.name

    def _keys(self, location: Mapping[str, Any]) -> list[str]:
        address = location.get("location")
        if not address:
            return []
        if location["kind"] == "dataset":
            address = _with_scheme(str(address), location["destination_type"])
        # Of a database in a file, the address is that of the file already.
        is_file = str(address).endswith(f"://{location.get('database')}")
        where = (
            ("db_schema", "physical_dataset_name") if is_file else ("database", "db_schema", "physical_dataset_name")
        )
        base = [self._whole(str(location[name])) for name in where if location.get(name)]
        parts = [[self._whole(name)] for name in location.get("tables") or ()]
        # An endpoint or a pattern may have several parts; a table's name is one, whatever it holds.
        paths = [*(location.get("endpoints") or ()), *filter(None, [location.get("glob")])]
        parts += [self._whole(path).split("/") for path in paths]
        return [asset_key(self._whole(str(address)), *base, *part) for part in parts or [[]]]


def _payload(
    record: RunRecord, table: Table, load: _Load, rows: Mapping[str, Mapping[str, int]], redaction: Redaction
) -> dict[str, Any]:
    shown = redaction.shown
    # What an earlier run normalised has rows that this one does not know.
    counts = {load_id: rows[load_id].get(table.name, 0) if load_id in rows else None for load_id in load.load_ids}
    known = [count for count in counts.values() if count is not None]
    return {
        "pipeline": shown(record.pipeline_name),
        "destination": shown(record.destination),
        "dataset": shown(load.dataset),
        "schema": shown(table.schema),
        "table": shown(table.name),
        "parent": shown(table.parent) if table.parent else None,
        "resource": shown(table.resource) if table.resource else None,
        "rows": sum(known) if known else None,
        "load_id": load.load_ids[-1],
        "loads": [{"load_id": load_id, "rows": count} for load_id, count in counts.items()][-MOST_LOADS:],
        "loads_left_out": max(0, len(counts) - MOST_LOADS),
        **fitting(_column(name, column, shown) for name, column in table.columns.items() if column.get("data_type")),
    }


def _loads(record: RunRecord, whole: Callable[[str], str]) -> dict[str, _Load]:
    """Return each table that was loaded; dlt's own are left out."""
    loads = dict[str, _Load]()
    for step in record.steps("load"):
        info = step.step_info
        if not isinstance(info, LoadInfo):
            continue
        address, dataset = _address(info, whole), info.dataset_name or ""
        for package in info.load_packages:
            if package.state != "loaded":
                continue
            failed = {job.job_file_info.table_name for job in package.jobs["failed_jobs"]}
            done = dict.fromkeys(job.job_file_info.table_name for job in package.jobs["completed_jobs"])
            for name in done:
                if name not in failed and not name.startswith("_dlt"):
                    ids = loads.setdefault(name, _Load(address, dataset, [])).load_ids
                    ids += [package.load_id] if package.load_id not in ids else []
    return loads


def _rows(record: RunRecord) -> dict[str, dict[str, int]]:
    """Return load id to rows by table, for the packages that this run normalised."""
    rows = dict[str, dict[str, int]]()
    for step in record.steps("normalize"):
        info = step.step_info
        for load_id, metrics in info.metrics.items() if isinstance(info, NormalizeInfo) else ():
            counts = Counter[str]()
            for each in metrics:
                counts.update({name: written.items_count for name, written in each["table_metrics"].items()})
            # A repeated normalize tells of its package again, and knows better.
            rows[load_id] = dict(counts)
    return rows


def _address(info: LoadInfo, whole: Callable[[str], str]) -> str:
    """Return where a destination is, with a scheme; what dlt shows of it tells the most, and has no password."""
    shown = whole(str(info.destination_displayable_credentials or ""))
    if "://" in shown:
        return shown
    # BigQuery shows an account and its project; a destination without an address shows an object of Python's.
    project = shown.rpartition("@")[2]
    return _with_scheme(project if re.fullmatch(r"[\w.:-]+", project) else info.destination_name, info.destination_type)


def _with_scheme(address: str, destination_type: str) -> str:
    return address if "://" in address else f"{destination_type.rpartition('.')[2]}://{address}"


def _part(name: str) -> str:
    """Return a name as a part of a key."""
    safe = UNSAFE.sub("-", name)
    return safe if safe == name else f"{safe}-{digest(name)}"


def _column(name: str, column: TColumnSchema, shown: Callable[[str], str]) -> dict[str, Any]:
    hints = cast("Mapping[str, Any]", column)
    told: dict[str, Any] = {"name": shown(name), "type": shown(type_text(column))}
    for hint in HINTS:
        value = hints.get(hint)
        if isinstance(value, str):
            told[hint] = shown(value)
        # A hint that is absent is as one that is not set, but for null values, which are allowed by default.
        elif isinstance(value, int) and (value or hint in EXPLICIT):
            told[hint] = value
    told.setdefault("nullable", True)
    return told
