"""The rows of job files are counted right in every format that dlt writes, whatever text is in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.row_counts import metered_rows, normalized_rows

AWKWARD = "a \"quoted\" line\n(1),\nand 'another', with ; and \\"


def rows_of(pipeline: Pipeline, place: int = 0, *, breaks_are_escaped: bool = True) -> dict[str, int | str]:
    """Count the rows of one of the packages that wait to be loaded, dlt's own tables left out."""
    package = pipeline.get_load_package_info(pipeline.list_normalized_load_packages()[place])
    counted = normalized_rows(package, (), {}, breaks_are_escaped=breaks_are_escaped)
    return {table: rows for table, rows in counted.items() if not table.startswith("_dlt")}


@pytest.mark.parametrize("compress", ["true", "false"])
@pytest.mark.parametrize("kind", ["insert_values", "parquet", "jsonl", "csv"])
def test_each_format_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, compress: str) -> None:
    monkeypatch.setenv("NORMALIZE__DATA_WRITER__FILE_MAX_ITEMS", "2")
    monkeypatch.setenv("NORMALIZE__DATA_WRITER__DISABLE_COMPRESSION", compress)
    destination: Any = dlt.destinations.postgres("postgresql://nobody@localhost/none")
    if kind == "jsonl":
        destination = dlt.destinations.duckdb(str(tmp_path / "warehouse.duckdb"))
    shop = dlt.pipeline("shop", pipelines_dir=str(tmp_path), destination=destination)
    rows = [{"id": key, "text": AWKWARD, "lines": [1, 2]} for key in range(5)]
    for count in (5, 1, 0):
        shop.extract(rows[:count], table_name="orders", write_disposition="replace", loader_file_format=kind)
        shop.normalize()

    assert [rows_of(shop, place) for place in range(3)] == [
        {"orders": 5, "orders__lines": 10},
        {"orders": 1, "orders__lines": 2},
        {"orders": 0},
    ]


def test_a_file_that_was_brought_along_is_counted_with_and_without_a_header(tmp_path: Path) -> None:
    with_header, without = tmp_path / "with.csv", tmp_path / "without.csv"
    with_header.write_text('id,text\n1,"two\nlines"\n2,b', encoding="utf-8")
    without.write_text('1,"two\nlines"\n2,b\n', encoding="utf-8")
    orders = dlt.pipeline(
        "orders",
        pipelines_dir=str(tmp_path),
        destination=dlt.destinations.postgres("postgresql://nobody@localhost/none"),
    )
    columns: Any = {"id": {"data_type": "bigint"}, "text": {"data_type": "text"}}

    @dlt.resource(columns=columns)
    def brought(path: Path) -> Any:
        yield dlt.mark.with_file_import(str(path), "csv")  # dlt is not told how many rows it has

    orders.extract([brought(with_header).with_name("headed"), brought(without).with_name("bare")])
    info = orders.normalize()

    assert rows_of(orders) == {"headed": 2, "bare": 2}
    counted_by_dlt = metered_rows([info], orders.list_normalized_load_packages()[0])
    assert [job_id for job_id in counted_by_dlt if not job_id.startswith("_dlt")] == []


def test_where_texts_keep_their_line_breaks_inserts_are_not_counted(pipeline: Callable[..., Pipeline]) -> None:
    shop = pipeline()
    shop.extract([{"id": 1}], table_name="orders", loader_file_format="insert_values")
    shop.normalize()

    assert rows_of(shop, breaks_are_escaped=False) == {"orders": "rows in insert_values files cannot be counted"}
