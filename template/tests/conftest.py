"""What the tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dlt
import pytest

Query = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def pipeline(tmp_path: Path) -> dlt.Pipeline:
    """Return a pipeline into a DuckDB file of the test's own, away from the project's data."""
    return dlt.pipeline(
        "test",
        pipelines_dir=str(tmp_path / "pipelines"),
        destination=dlt.destinations.duckdb(str(tmp_path / "test.duckdb"), preferred_loader_file_format="parquet"),
        dataset_name="loaded",
    )


@pytest.fixture
def query(pipeline: dlt.Pipeline) -> Query:
    """Return a function that asks the database what the pipeline has loaded."""

    def execute(sql: str) -> list[tuple[Any, ...]]:
        with pipeline.sql_client() as client:
            return [tuple(row) for row in client.execute_sql(sql) or ()]

    return execute
