"""What the flow run of a component tells, as JSON, and what later ones conclude from it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefect_dlt.record import TableRow
from prefect_dlt.results import ComponentResult
from prefect_dlt.told import Begun, Told, chains_added_to, is_stale

RESULT = ComponentResult("orders", "shop__orders", 1.5, None, (TableRow("orders", 3, 0.5, with_earlier=True),))
TOLD = Told("host:/data", 3, (Begun("17.1", (("orders",), ("orders", "orders__lines"))),), ("17.1",), True, RESULT)


def test_what_is_told_arrives_as_it_was() -> None:
    assert Told.of(json.loads(json.dumps(TOLD.as_json()))) == TOLD
    assert Told.of(Told("here").as_json()) == Told("here")


@pytest.mark.parametrize("data", [None, [], {"beats": 1, "unknown": 2, "result": {"name": "orders", "unknown": 3}}])
def test_what_another_version_has_told_is_understood_as_far_as_it_goes(data: Any) -> None:
    assert Told.of(data).home == ""


def test_rows_are_added_to_tables_that_are_not_replaced_or_merged_by_a_key() -> None:
    tables: dict[str, Any] = {
        "_dlt_loads": {"columns": {}},
        "orders": {"write_disposition": "append", "columns": {}},
        "orders__lines": {"parent": "orders", "columns": {}},
        "orders__lines__parts": {"parent": "orders__lines", "columns": {}},
        "people": {"write_disposition": "merge", "columns": {"id": {"name": "id", "primary_key": True}}},
        "people__names": {"parent": "people", "columns": {}},
        "events": {"write_disposition": "merge", "columns": {"id": {"name": "id"}}},
        "days": {"write_disposition": "replace", "columns": {}},
    }

    assert chains_added_to(tables) == (
        ("events",),
        ("orders",),
        ("orders", "orders__lines"),
        ("orders", "orders__lines", "orders__lines__parts"),
    )


@pytest.mark.parametrize(
    ("homes", "is_put_aside"),
    [
        # The latest first; a star has completed.
        ("", False),
        ("here", False),
        ("here there*", False),
        ("there*", True),
        ("there* here", True),
        ("there there* here", True),
        ("there here", False),
        ("there here there*", False),
    ],
)
def test_what_is_pending_is_put_aside_when_it_was_loaded_elsewhere_since(homes: str, is_put_aside: bool) -> None:
    told = [Told(home.rstrip("*")) for home in homes.split()]
    completed = [home.endswith("*") for home in homes.split()]

    assert is_stale(["17.1"], "here", told, completed) == is_put_aside


def test_what_is_pending_is_put_aside_when_its_rows_were_taken_back() -> None:
    told = [Told("here"), Told("here", taken_back=("17.1",))]

    assert is_stale(["17.1"], "here", told, [False, False])
    assert not is_stale(["17.2"], "here", told, [False, False])
