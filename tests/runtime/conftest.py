"""Pipelines into DuckDB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline


@pytest.fixture(autouse=True)
def _no_active_pipeline(no_active_pipeline: None) -> None:
    """No pipeline stays active after any of these tests."""


@pytest.fixture
def pipeline(tmp_path: Path) -> Callable[..., Pipeline]:
    """Make pipelines into one DuckDB file and one folder of the test's own."""

    def make(name: str = "shop", **options: Any) -> Pipeline:
        return dlt.pipeline(
            name,
            pipelines_dir=str(tmp_path / "pipelines"),
            destination=dlt.destinations.duckdb(str(tmp_path / "warehouse.duckdb")),
            dataset_name="shop_data",
            **options,
        )

    return make


def count(pipeline: Pipeline, table: str) -> int:
    """Return how many rows a table of the pipeline's dataset has."""
    with pipeline.sql_client() as client:
        rows = client.execute_sql(f"SELECT count(*) FROM {client.make_qualified_table_name(table)}")
    return int(rows[0][0]) if rows else 0
