"""Pipelines into DuckDB, and one Prefect server for the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.common.configuration.container import Container
from dlt.common.pipeline import PipelineContext
from dlt.pipeline.pipeline import Pipeline
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(autouse=True)
def no_active_pipeline() -> Iterator[None]:
    """No pipeline stays active after a test."""
    yield
    Container()[PipelineContext].deactivate()


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A real Prefect server with a database of its own; it takes some ten seconds to start."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


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
