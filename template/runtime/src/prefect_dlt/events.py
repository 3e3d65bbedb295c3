"""What a run tells as events: which tables changed in a schema, as data that Prefect takes; without any secret."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote

from prefect_dlt.markdown import printable, shortened
from prefect_dlt.record import RunRecord
from prefect_dlt.redact import redaction
from prefect_dlt.schema_changes import ColumnChange, SchemaChanges, TableChange

SCHEMA_CHANGED = "dlt.schema.changed"
"""Name of the event that tells of a table that is new or different."""

COLUMN_ROLE = "column"
"""Role of a column among the related resources of an event."""

MOST_COLUMNS = 70
"""Columns of one event that an automation can match; Prefect takes 100 related resources, those of the run included."""

LARGEST_PAYLOAD = 1_000_000
"""Bytes of the columns in one event. Prefect's server drops an event of more than 1,500,000 bytes without an answer."""

LONGEST_TEXT = 300
"""Characters of a name or a type in an event; of a longer one the first are told."""

LONGEST_PART = 200
"""Characters of a name in the id of a resource; PostgreSQL, where a server may keep it, indexes no very long text."""

Labels = Mapping[str, str]


@dataclass(frozen=True)
class EventDraft:
    """An event that is still to be sent.

    Attributes:
        name: What happened.
        resource: Labels of what it happened to, its id among them.
        related: Labels of what else took part, each with an id and a role; the run comes on top of them.
        payload: What automations can show but not match.
    """

    name: str
    resource: Labels
    related: Sequence[Labels] = ()
    payload: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Redaction:
    """Text of a run as events may hold it; each text is looked through once.

    Attributes:
        whole: Masks secrets, for what makes one key or id and has to stay as long as it is.
        shown: Masks secrets and makes the text printable and not too long, for everything else.
    """

    whole: Callable[[str], str]
    shown: Callable[[str], str]

    @classmethod
    def of(cls, record: RunRecord) -> Redaction:
        """Return the one for what a run knows as secret by now."""
        whole = redaction(record.secrets)

        @cache
        def shown(text: str) -> str:
            return shortened(printable(whole(text)), LONGEST_TEXT)

        return cls(whole, shown)


def schema_events(record: RunRecord, changed: Mapping[str, SchemaChanges] | None = None) -> list[EventDraft]:
    """Return one event for each table that is new or different in the schemas of a run.

    Args:
        record: Of the run.
        changed: What to tell of its changes, by schema; all of them by default.
    """
    texts = Redaction.of(record)
    schemas = record.schema_changes if changed is None else changed
    return [_table_event(record, change, texts) for of in schemas.values() for change in of.values()]


def table_labels(record: RunRecord, schema: str, table: str, redaction: Redaction) -> dict[str, str]:
    """Return the labels by which an automation finds a table."""
    shown = redaction.shown
    return {
        "prefect.resource.name": ".".join(shown(name) for name in (record.dataset_name, table) if name),
        "dlt.pipeline": shown(record.pipeline_name),
        "dlt.destination": shown(record.destination),
        "dlt.dataset": shown(record.dataset_name),
        "dlt.schema": shown(schema),
        "dlt.table": shown(table),
    }


def fitting(columns: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return columns as an entry of a payload, as many as fit, and how many were left out."""
    taken, size, left_out = list[Mapping[str, Any]](), 0, 0
    for column in columns:
        size += len(json.dumps(column, ensure_ascii=False).encode()) + 2
        if size <= LARGEST_PAYLOAD:
            taken.append(column)
        else:
            left_out += 1
    return {"columns": taken, "columns_left_out": left_out}


def quoted(name: str) -> str:
    """Return a name as a part of an id: other names are other parts, and no part holds a dot or is too long."""
    text = quote(name, safe="", errors="surrogatepass").replace(".", "%2E")
    return text if len(text) <= LONGEST_PART else f"{text[:LONGEST_PART]}-{digest(text)}"


def digest(text: str) -> str:
    """Return a few characters that tell a text from others."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def _table_event(record: RunRecord, change: TableChange, redaction: Redaction) -> EventDraft:
    names = (record.pipeline_name, record.dataset_name, change.table)
    identity = ".".join(["dlt.table", *(quoted(redaction.whole(name)) for name in names)])
    kinds = Counter(column.kind for column in change.columns.values())
    # When there are more columns than can be matched, those that break what reads the table come first.
    order = {"changed": 0, "variant": 1, "new": 2}
    columns = sorted(change.columns.values(), key=lambda each: (each.column.startswith("_dlt"), order[each.kind]))
    return EventDraft(
        SCHEMA_CHANGED,
        {
            "prefect.resource.id": identity,
            **table_labels(record, change.schema, change.table, redaction),
            "dlt.table.change": "new" if change.is_new else "changed",
            **{f"dlt.columns.{kind}": str(kinds[kind]) for kind in ("new", "changed", "variant")},
        },
        [_related(identity, column, redaction) for column in columns[:MOST_COLUMNS]],
        {
            "pipeline": redaction.shown(record.pipeline_name),
            "destination": redaction.shown(record.destination),
            "dataset": redaction.shown(record.dataset_name),
            "schema": redaction.shown(change.schema),
            "table": redaction.shown(change.table),
            "table_is_new": change.is_new,
            "run_failed": record.error is not None,
            "columns_without_resource": max(0, len(columns) - MOST_COLUMNS),
            **fitting(_entry(column, redaction) for column in columns),
        },
    )


def _related(table: str, column: ColumnChange, redaction: Redaction) -> Labels:
    entry = _entry(column, redaction)
    return {
        "prefect.resource.id": f"{table}.{quoted(redaction.whole(column.column))}",
        "prefect.resource.role": COLUMN_ROLE,
        "prefect.resource.name": entry["name"],
        "dlt.column": entry.pop("name"),
        **{f"dlt.column.{name}": value for name, value in entry.items()},
    }


def _entry(column: ColumnChange, redaction: Redaction) -> dict[str, str]:
    """Return what is told of a column; what does not apply is left out."""
    entry = {"name": column.column, "change": column.kind, "type": column.type}
    entry |= {"was": column.was or "", "variant_of": column.variant_of or ""}
    return {name: redaction.shown(text) for name, text in entry.items() if text}
