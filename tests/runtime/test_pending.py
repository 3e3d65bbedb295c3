"""What waits in a working directory is told as it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.pending import MOST_PACKAGES, pending_lines, pending_packages, resumes_with


def test_each_package_is_told_with_how_far_it_is(pipeline: Callable[..., Pipeline]) -> None:
    shop = pipeline()
    assert pending_lines(shop) == []
    assert resumes_with(shop) == "extract, since nothing was kept"

    shop.extract([{"id": 1}], table_name="orders")

    (extracted,) = shop.list_extracted_load_packages()
    assert pending_lines(shop) == [f"load package {extracted}: extracted"]
    assert resumes_with(shop).startswith("normalize")

    shop.normalize()

    assert pending_lines(shop) == [f"load package {extracted}: normalised, 0 of 2 jobs loaded"]
    assert resumes_with(shop).startswith("load")

    shop.load()

    assert pending_lines(shop) == []


def test_jobs_that_were_loaded_are_counted(pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAD__WORKERS", "1")
    shop = pipeline()
    shop.run([{"id": 1, "lines": [{"id": 1}]}], table_name="orders")
    client = type(shop.destination_client())
    original = client.complete_load

    def asleep(*_args: object, **_options: object) -> None:
        raise ConnectionError("asleep")

    monkeypatch.setattr(client, "complete_load", asleep)
    with pytest.raises(PipelineStepFailed):
        shop.run([{"id": 2, "lines": [{"id": 1}]}], table_name="orders")

    (line,) = pending_lines(shop)
    assert line.endswith(": normalised, 2 of 2 jobs loaded")
    monkeypatch.setattr(client, "complete_load", original)


def test_many_packages_are_told_in_a_few_lines(pipeline: Callable[..., Pipeline]) -> None:
    shop = pipeline()
    for _ in range(MOST_PACKAGES + 2):
        shop.extract([{"id": 1}], table_name="orders")

    lines = pending_lines(shop)

    assert len(lines) == MOST_PACKAGES + 1
    assert lines[-1] == "and 2 more load packages"


def tables(pipeline: Pipeline) -> list[str]:
    return [str(table) for package in pending_packages(Path(pipeline.working_dir)) for table in package.tables]


@pytest.mark.parametrize(("file_format", "rows"), [("parquet", "3 rows in 1 file"), ("insert_values", "1 file")])
def test_rows_are_counted_without_a_trace_where_the_files_can_tell(
    pipeline: Callable[..., Pipeline], file_format: Any, rows: str
) -> None:
    shop = pipeline()
    shop.extract([{"id": 1}, {"id": 2}, {"id": 3}], table_name="orders", loader_file_format=file_format)
    trace = Path(shop.working_dir) / "trace.pickle"
    trace.unlink()
    assert tables(shop) == ["orders (3 rows in 1 file)"]

    shop.normalize()
    assert tables(shop) == ["orders (3 rows in 1 file)"]
    trace.unlink()
    assert tables(shop) == [f"orders ({rows})"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["completed_jobs/orders.a.0.jsonl", "new_jobs/orders.b.0.jsonl"], (2, 1, 0)),
        (["started_jobs/orders.a.0.jsonl"], (1, 0, 1)),
        (["started_jobs/orders.a.0.jsonl", ".pending_transitions/orders.a.0.jsonl"], (1, 1, 0)),
        # Brought to the staging destination, and loaded from there by another job.
        (["completed_jobs/orders.a.0.jsonl", "new_jobs/orders.a.0.reference"], (1, 0, 0)),
        (["completed_jobs/orders.a.0.jsonl", "started_jobs/orders.a.0.reference"], (1, 0, 1)),
        (["completed_jobs/orders.a.0.jsonl", "completed_jobs/orders.a.0.reference"], (1, 1, 0)),
        # What was noted of a failure, a merge, and a table of dlt's.
        (["failed_jobs/orders.a.0.jsonl", "failed_jobs/orders.a.0.jsonl.exception"], (1, 0, 0)),
        (["new_jobs/orders.a.0.jsonl", "new_jobs/orders.c.0.sql", "new_jobs/_dlt_pipeline_state.d.0.jsonl"], (1, 0, 0)),
    ],
)
def test_what_of_a_package_is_in_the_destination_is_told(
    pipeline: Callable[..., Pipeline], files: list[str], expected: tuple[int, int, int]
) -> None:
    shop = pipeline()
    shop.extract([{"id": 1}], table_name="orders")
    shop.normalize()
    (package,) = (Path(shop.working_dir) / "load" / "normalized").iterdir()
    for path in package.glob("new_jobs/*"):
        path.unlink()
    for file in files:
        (package / file).write_text('{"state": "completed"}')

    (pending,) = pending_packages(Path(shop.working_dir))

    (table,) = pending.tables
    assert (table.files, table.loaded, table.uncertain) == expected
    assert pending.state == "partly loaded" or not (table.loaded or table.uncertain)
