"""Tables and columns that appear or change are told; what stays the same is not."""

from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pytest
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.schema_changes import Columns, TableChange, columns_of, compare_schemas, type_text


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    return dlt.pipeline(
        "shop", destination=dlt.destinations.duckdb(str(tmp_path / "shop.duckdb")), pipelines_dir=str(tmp_path)
    )


def tables_after(pipeline: Pipeline, data: Any, **options: Any) -> dict[str, Columns]:
    pipeline.run(data, table_name="orders", **options)
    return {name: columns_of(pipeline.schemas[name].data_tables()) for name in pipeline.schemas}


def types(changes: dict[str, TableChange]) -> dict[str, dict[str, str]]:
    return {
        table: {name: column.data_type for name, column in change.columns.items() if not name.startswith("_dlt")}
        for table, change in changes.items()
    }


def test_a_first_load_tells_every_table_and_column(pipeline: Pipeline) -> None:
    after = tables_after(pipeline, [{"id": 1, "lines": [{"item": "tea"}]}])

    changes = compare_schemas({}, after)

    assert changes.keys() == {"shop"}
    assert types(changes["shop"]) == {"orders": {"id": "bigint"}, "orders__lines": {"item": "text"}}


def test_a_load_that_changes_nothing_tells_nothing(pipeline: Pipeline) -> None:
    before = tables_after(pipeline, [{"id": 1}])

    assert compare_schemas(before, tables_after(pipeline, [{"id": 2}])) == {}


def test_a_new_column_is_told_alone(pipeline: Pipeline) -> None:
    before = tables_after(pipeline, [{"id": 1}])

    changes = compare_schemas(before, tables_after(pipeline, [{"id": 2, "note": "gift"}]))

    assert types(changes["shop"]) == {"orders": {"note": "text"}}


def test_a_column_of_arrow_data_is_told_like_any_other(pipeline: Pipeline) -> None:
    before = tables_after(pipeline, pa.table({"id": [1]}))

    changes = compare_schemas(before, tables_after(pipeline, pa.table({"id": [2], "price": [1.5]})))

    assert types(changes["shop"]) == {"orders": {"price": "double"}}


def test_a_value_of_another_type_is_told_as_the_column_dlt_makes_for_it(pipeline: Pipeline) -> None:
    before = tables_after(pipeline, [{"id": 1}])

    changes = compare_schemas(before, tables_after(pipeline, [{"id": "one"}]))

    assert types(changes["shop"]) == {"orders": {"id__v_text": "text"}}


def test_a_column_that_gets_its_type_later_is_told_then(pipeline: Pipeline) -> None:
    before = tables_after(pipeline, [{"id": 1, "note": None}])

    changes = compare_schemas(before, tables_after(pipeline, [{"id": 1, "note": "gift"}]))

    assert types(changes["shop"]) == {"orders": {"note": "text"}}


def test_what_happened_to_a_column_is_told(pipeline: Pipeline) -> None:
    before = tables_after(pipeline, [{"id": 1, "price": 1}])

    changes = compare_schemas(before, tables_after(pipeline, [{"id": "one", "note": "gift"}]))

    orders = changes["shop"]["orders"]
    assert not orders.is_new
    assert {name: (column.kind, column.variant_of) for name, column in orders.columns.items()} == {
        "id__v_text": ("variant", "id"),
        "note": ("new", None),
    }


def columns(**hints: Any) -> dict[str, Columns]:
    return {"shop": {"orders": {"id": {"name": "id", "data_type": "bigint", **hints}}}}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("hint", "value", "text"),
    [
        ("data_type", "text", "text"),
        ("nullable", False, "bigint not null"),
        ("precision", 9, "bigint(9)"),
        ("scale", 2, "bigint(2)"),
        ("timezone", False, "bigint without timezone"),
    ],
)
def test_a_column_whose_type_is_stated_differently_is_told_with_what_it_was(hint: str, value: Any, text: str) -> None:
    change = compare_schemas(columns(), columns(**{hint: value}))["shop"]["orders"].columns["id"]

    assert (change.kind, change.was, change.type) == ("changed", "bigint", text)


def test_hints_that_are_not_about_the_type_and_columns_that_are_gone_are_not_told() -> None:
    before = columns()
    before["shop"]["orders"]["old"] = {"name": "old", "data_type": "text"}

    assert compare_schemas(before, columns(primary_key=True)) == {}


def test_each_schema_has_its_own_changes() -> None:
    after = columns()

    changes = compare_schemas(after, after | {"bank": after["shop"]})

    assert changes.keys() == {"bank"}
    assert changes["bank"]["orders"].is_new
    assert changes["bank"]["orders"].schema == "bank"


def test_changes_of_two_steps_are_one_seen_from_before_both() -> None:
    new = compare_schemas({}, columns())["shop"]["orders"]
    first = compare_schemas(columns(), columns(data_type="double"))["shop"]["orders"]
    second = compare_schemas(columns(data_type="double"), columns(data_type="text"))["shop"]["orders"]

    assert new.then(first).is_new
    assert (new.then(first).columns["id"].kind, new.then(first).columns["id"].type) == ("new", "double")
    both = first.then(second).columns["id"]
    assert (both.kind, both.was, both.type) == ("changed", "bigint", "text")


def test_what_is_told_stays_when_the_schema_goes_on_changing(pipeline: Pipeline) -> None:
    before = tables_after(pipeline, [{"id": 1}])

    pipeline.default_schema.tables["orders"]["columns"]["id"]["data_type"] = "text"

    assert before["shop"]["orders"]["id"]["data_type"] == "bigint"


def test_a_type_is_written_as_databases_write_it() -> None:
    assert (
        type_text({"data_type": "decimal", "precision": 38, "scale": 9, "nullable": False}) == "decimal(38, 9) not null"
    )
