"""What events say about changed schemas: whom they can reach, and what they must never hold."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest
from dlt.common.schema.typing import TColumnSchema
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import Event as StoredEvent
from prefect.settings import PREFECT_EVENTS_MAXIMUM_SIZE_BYTES

from prefect_dlt import events as module
from prefect_dlt.emitter import to_events
from prefect_dlt.events import MOST_COLUMNS, EventDraft, schema_events
from prefect_dlt.record import RunRecord
from prefect_dlt.schema_changes import Columns, compare_schemas

SECRET = "tr0ub4dor-and-3"


def column(name: str, data_type: Any = "text", **hints: Any) -> TColumnSchema:
    return {"name": name, "data_type": data_type, "nullable": True, **hints}


def table(*columns: TColumnSchema) -> dict[str, TColumnSchema]:
    return {str(each.get("name")): each for each in columns}


def record_of(before: Columns, after: Columns, **known: Any) -> RunRecord:
    record = RunRecord("shop", "duckdb", "shop_data", {}, datetime.now(timezone.utc), **known)
    for schema, changes in compare_schemas({"shop": before}, {"shop": after}).items():
        record.note_schema_changes(schema, changes)
    return record


def stored(drafts: list[EventDraft]) -> list[StoredEvent]:
    """Return events as Prefect's server reads them; it refuses some that its client takes."""
    return [StoredEvent.model_validate_json(event.model_dump_json()) for event in to_events(drafts, [])]


ORDERS = table(column("id", "bigint"), column("price", "bigint"), column("note"))
CHANGED = ORDERS | table(
    column("price__v_text", variant=True), column("note", precision=20), column("paid", "bool", nullable=False)
)


def fires(draft: EventDraft, match: dict[str, Any], match_related: Any = None) -> bool:
    """Tell whether an automation acts on an event; the server's own code decides."""
    trigger = EventTrigger(
        expect={"dlt.schema.changed"},
        match=match,
        match_related=match_related or {},
        posture="Reactive",
        threshold=1,
    )
    (event,) = stored([draft])
    return trigger.expects(event.event) and trigger.covers_resources(event.resource, event.related)


class TestWhatAnAutomationCanMatch:
    @pytest.mark.parametrize(
        ("match", "match_related", "does_fire"),
        [
            ({"dlt.table": "orders"}, None, True),
            ({"dlt.table": ["orders", "customers"]}, None, True),
            ({"dlt.table": "ord*", "dlt.pipeline": "shop", "dlt.dataset": "shop_data"}, None, True),
            ({"prefect.resource.id": "dlt.table.shop.shop_data.orders"}, None, True),
            ({"dlt.table": "customers"}, None, False),
            ({"dlt.table.change": "new"}, None, False),
            ({"dlt.columns.variant": "!0"}, None, True),
            ({}, {"dlt.column": "price__v_text"}, True),
            ({}, {"dlt.column.variant_of": "price"}, True),
            ({}, {"dlt.column": "note", "dlt.column.change": "changed", "dlt.column.was": "text"}, True),
            ({}, {"dlt.column.type": "bool*"}, True),
            ({}, {"dlt.column.change": ["changed", "variant"]}, True),
            ({}, [{"dlt.column": "paid"}, {"dlt.column": "note"}], True),
            # The labels of one column, not of several: paid is new, and what changed is another one.
            ({}, {"dlt.column": "paid", "dlt.column.change": "changed"}, False),
            ({}, {"dlt.column": "id"}, False),
        ],
    )
    def test_table_column_and_type(self, match: Any, match_related: Any, does_fire: bool) -> None:
        (draft,) = schema_events(record_of({"orders": ORDERS}, {"orders": CHANGED}))

        assert fires(draft, match, match_related) is does_fire

    def test_a_new_table_is_told_from_a_changed_one(self) -> None:
        (draft,) = schema_events(record_of({}, {"orders": ORDERS}))

        assert fires(draft, {"dlt.table": "orders", "dlt.table.change": "new"})


def test_the_payload_has_each_column_with_its_types() -> None:
    (draft,) = schema_events(record_of({"orders": ORDERS}, {"orders": CHANGED}))

    assert draft.payload == {
        "pipeline": "shop",
        "destination": "duckdb",
        "dataset": "shop_data",
        "schema": "shop",
        "table": "orders",
        "table_is_new": False,
        "run_failed": False,
        "columns_without_resource": 0,
        "columns": [
            {"name": "note", "change": "changed", "type": "text(20)", "was": "text"},
            {"name": "price__v_text", "change": "variant", "type": "text", "variant_of": "price"},
            {"name": "paid", "change": "new", "type": "bool not null"},
        ],
        "columns_left_out": 0,
    }


def test_no_secret_is_in_an_event() -> None:
    record = record_of(
        {},
        {f"t_{SECRET}": table(column(f"c_{SECRET}", SECRET), column("url postgres://ada:hunter2hunter2@db/shop"))},
        secrets={SECRET, "hunter2hunter2"},
    )
    record.pipeline_name = record.dataset_name = record.destination = f"in {SECRET}"

    text = json.dumps([(draft.resource, draft.related, draft.payload) for draft in schema_events(record)])

    assert SECRET not in text
    assert "hunter2" not in text


HOSTILE = [
    "a",
    "c",
    "a b",
    "a.b",
    "b.c",
    'a"b',
    "a/b",
    "%41",
    "*",
    "!x",
    "[a]",
    "{{ event }}",
    "ä",
    "表",
    "\x00",
    "\ud800",
    "x" * 5_000,
]


def test_any_name_makes_an_event_that_the_server_takes_and_an_id_of_its_own() -> None:
    columns = table(*(column(name) for name in HOSTILE))

    events = stored(schema_events(record_of({}, dict.fromkeys(HOSTILE, columns))))

    ids = [resource.id for event in events for resource in (event.resource, *event.related)]
    assert len(set(ids)) == len(ids) == len(HOSTILE) * (len(HOSTILE) + 1)
    assert max(map(len, ids)) < 1_000
    # PostgreSQL stores no such character in JSON.
    assert not any("\\u0000" in event.model_dump_json() for event in events)


@pytest.mark.parametrize(("tables", "columns"), [(1_000, 10), (1, 10_000)])
def test_many_tables_and_columns_stay_within_prefects_limits(tables: int, columns: int) -> None:
    names = [f"table_{number}" for number in range(tables)]
    each = table(*(column(f"column_{number}") for number in range(columns)))

    events = stored(schema_events(record_of({}, dict.fromkeys(names, each))))

    assert len(events) == tables
    assert max(event.size_bytes for event in events) < PREFECT_EVENTS_MAXIMUM_SIZE_BYTES.value()
    for event in (events[0], events[-1]):
        assert len(event.payload["columns"]) == columns
        assert len(event.related) == min(columns, MOST_COLUMNS)
        assert event.payload["columns_without_resource"] == columns - len(event.related)


def test_what_does_not_fit_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_PAYLOAD", 20_000)
    names = [f"{'ä' * 250}_{number}" for number in range(100)]

    (draft,) = schema_events(record_of({}, {"wide": table(*map(column, names))}))

    (event,) = stored([draft])
    assert 19_000 < len(json.dumps(event.payload["columns"], ensure_ascii=False).encode()) <= 20_000
    assert len(event.payload["columns"]) + event.payload["columns_left_out"] == 100


def test_what_breaks_readers_is_matched_first() -> None:
    many = {str(number): column(str(number)) for number in range(MOST_COLUMNS)}

    (draft,) = schema_events(record_of({"orders": ORDERS}, {"orders": many | CHANGED}))

    assert len(draft.related) == MOST_COLUMNS
    assert [labels["dlt.column"] for labels in draft.related[:2]] == ["note", "price__v_text"]
