"""Job files are read back as dlt wrote them, in each of its formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.job_files import JobFile, UnreadableFileError

NAMES = ["plain", "it's", "a, b), (c", "back\\slash\\", '"quoted"', "two\nlines", "", "ünïcode", "E'x',"]


def written(shop: Pipeline, file_format: Any) -> JobFile:
    """Have dlt write rows in a format, and return the file."""
    rows = [{"id": n, "name": name, "at": "2026-01-01T00:00:00Z", "raw": b"\x00'"} for n, name in enumerate(NAMES)]
    shop.extract(dlt.resource(rows, name="orders"), loader_file_format=file_format)
    shop.normalize()
    (load_id,) = shop.list_normalized_load_packages()
    jobs = shop.get_load_package_info(load_id).jobs["new_jobs"]
    return JobFile(Path(next(job.file_path for job in jobs if job.job_file_info.table_name == "orders")))


# On Python 3.10, dlt cannot write its own state as CSV.
@pytest.mark.parametrize(
    "file_format", ["insert_values", "jsonl", "parquet", pytest.param("csv", marks=pytest.mark.slow)]
)
def test_a_column_is_read_from_each_format(pipeline: Callable[..., Pipeline], tmp_path: Path, file_format: str) -> None:
    shop = pipeline()
    if file_format == "csv":
        shop = dlt.pipeline("files", pipelines_dir="p", destination=dlt.destinations.filesystem(str(tmp_path / "out")))

    file = written(shop, file_format)

    assert {"id", "name", "_dlt_id", "_dlt_load_id"} <= set(file.columns)
    # An empty text reads like none in CSV, and the ids that are looked for are neither.
    assert [name or "" for name in file.values("name")] == NAMES
    assert len(set(file.values("_dlt_id"))) == len(NAMES)
    assert file.has_rows()


@pytest.mark.parametrize("rows", ["(1,E'a\n", "(1,E'a',E'b');\n", "(1,NULL);\n", "(1,5);\n"])
def test_a_row_that_reads_otherwise_is_an_error(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "orders.1a.0.insert_values"
    path.write_text(f'INSERT INTO {{}}("id","_dlt_id")\nVALUES\n{rows}', encoding="utf-8")

    with pytest.raises(UnreadableFileError):
        list(JobFile(path).values("_dlt_id"))


def test_a_file_of_an_unknown_format_has_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "orders.1a.0.model"
    path.write_text("SELECT 1", encoding="utf-8")
    assert JobFile(path).columns == ()


@pytest.mark.parametrize("content", ["", '{"id": 1}\n'])
def test_a_file_without_rows_has_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "orders.1a.0.jsonl"
    path.write_text(content, encoding="utf-8")
    assert JobFile(path).has_rows() == bool(content)
