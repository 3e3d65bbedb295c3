"""Tables and columns that appear or change are told; what stays the same is not."""

from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pytest
from dlt.common.schema.typing import TTableSchema
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.schema_changes import compare_schemas


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    return dlt.pipeline(
        "shop", destination=dlt.destinations.duckdb(str(tmp_path / "shop.duckdb")), pipelines_dir=str(tmp_path)
    )


def tables_after(pipeline: Pipeline, data: Any, **options: Any) -> dict[str, dict[str, TTableSchema]]:
    pipeline.run(data, table_name="orders", **options)
    return {name: {t["name"]: t for t in pipeline.schemas[name].data_tables()} for name in pipeline.schemas}


def types(changes: Any) -> dict[str, dict[str, str]]:
    return {
        table: {name: column.get("data_type") for name, column in columns.items() if not name.startswith("_dlt")}
        for table, columns in changes.items()
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


@pytest.mark.parametrize(
    ("hint", "value"),
    [("data_type", "text"), ("nullable", False), ("precision", 9), ("scale", 2), ("timezone", False)],
)
def test_a_column_whose_type_is_stated_differently_is_told(hint: str, value: Any) -> None:
    before: Any = {"shop": {"orders": {"columns": {"id": {"name": "id", "data_type": "bigint"}}}}}
    after: Any = {"shop": {"orders": {"columns": {"id": {"name": "id", "data_type": "bigint", hint: value}}}}}

    assert compare_schemas(before, after) == {"shop": {"orders": after["shop"]["orders"]["columns"]}}


def test_hints_that_are_not_about_the_type_and_columns_that_are_gone_are_not_told() -> None:
    before: Any = {"shop": {"orders": {"columns": {"id": {"name": "id"}, "old": {"name": "old"}}}, "gone": {}}}
    after: Any = {"shop": {"orders": {"columns": {"id": {"name": "id", "primary_key": True}}}}}

    assert compare_schemas(before, after) == {}


def test_each_schema_has_its_own_changes() -> None:
    table: Any = {"orders": {"columns": {"id": {"name": "id", "data_type": "bigint"}}}}

    changes = compare_schemas({"shop": table}, {"shop": table, "bank": table})

    assert changes == {"bank": {"orders": {"id": {"name": "id", "data_type": "bigint"}}}}
