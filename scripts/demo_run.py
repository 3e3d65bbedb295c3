"""Run the demo project's flow, then write down what it loaded and what is in the database, as JSON.

Runs on the project's own Python, in the project's folder.
Usage: python demo_run.py <the file to write>
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import duckdb

TABLES = """
    SELECT table_name FROM information_schema.tables
    WHERE table_schema = $dataset AND NOT starts_with(table_name, '_dlt_')
"""


def count_rows(database: Path, dataset: str) -> dict[str, int]:
    """Return how many rows each table of a dataset holds."""
    with duckdb.connect(str(database), read_only=True) as connection:
        tables = connection.execute(TABLES, {"dataset": dataset}).fetchall()
        return {name: connection.table(f'"{dataset}"."{name}"').shape[0] for (name,) in sorted(tables)}


def main(report: Path) -> None:
    """Run the flow and write the report."""
    project: Any = importlib.import_module("flows.load")
    try:
        loaded = {table.name: table for table in project.load().tables}
    except KeyboardInterrupt:
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - Prefect has logged its traceback, unless the run could not begin
        sys.exit(f"{type(error).__name__}: {error}")
    (database,) = Path.cwd().glob("data/*.duckdb")
    rows = count_rows(database, project.build_pipeline().dataset_name)
    tables = [
        {
            "name": name,
            "loaded": loaded[name].rows_text if name in loaded else "0",
            "rows": count,
            "seconds": loaded[name].seconds if name in loaded else None,
        }
        for name, count in sorted(rows.items(), key=lambda item: -item[1])
    ]
    report.write_text(json.dumps({"database": str(database), "tables": tables}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
