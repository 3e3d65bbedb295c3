"""What the tests share."""

from pathlib import Path

import dlt
import pytest


@pytest.fixture
def pipeline(tmp_path: Path) -> dlt.Pipeline:
    """Return a pipeline into a DuckDB file of the test's own, away from the project's data."""
    return dlt.pipeline(
        "test",
        pipelines_dir=str(tmp_path / "pipelines"),
        destination=dlt.destinations.duckdb(str(tmp_path / "test.duckdb"), preferred_loader_file_format="parquet"),
        dataset_name="loaded",
    )
