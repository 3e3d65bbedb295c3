"""Every combination of source, destination and taking apart loads real rows, twice without doubling any."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import psycopg2
import pytest

from tests.template.conftest import Generate
from tests.template.databases import shop_database

EXPECTED = {
    "demo": {"airlines": 16, "airports": 1_458, "planes": 3_322},
    "sql_database": {"items": 3, "orders": 1_000},
    "empty": {"items": 2},
}
SOURCES = list(EXPECTED)
DESTINATIONS = ["duckdb", "postgres"]
MODES = ["none", "sequential", "parallel"]


@pytest.mark.parametrize(("source", "destination", "mode"), [*itertools.product(SOURCES, DESTINATIONS, MODES)])
def test_a_combination_loads_its_rows_once(
    generate: Generate,
    tmp_path: Path,
    prefect_server: str,
    make_database: Callable[[str], str],
    source: str,
    destination: str,
    mode: str,
) -> None:
    name = f"{source}-{destination}-{mode}".replace("_", "-")
    project = generate(project_name=name, source=source, destination=destination, decompose=mode)
    database = shop_database("postgres", tmp_path, make_database, f"{name}-source")
    warehouse = make_database(f"{name}-warehouse")
    # The flow as the project has it; twice in one process, which is what takes the time. Of the demo, the small tables:
    # the flights are loaded by a worker elsewhere.
    tables = list(EXPECTED[source])
    program = f"from flows.load import load; [print(load(resources={tables!r})) for _ in range(2)]"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project,
        env={
            **os.environ,
            "DLT_DATA_DIR": str(tmp_path / "dlt"),
            "PREFECT_API_URL": prefect_server,
            "PYTHONPATH": str(project),
            "SOURCES__SQL_DATABASE__CREDENTIALS": database,
            "DESTINATION__POSTGRES__CREDENTIALS": warehouse,
        },
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout

    dataset = name.replace("-", "_")
    queries = {table: f"SELECT count(*) FROM {dataset}.{table}" for table in EXPECTED[source]}
    if destination == "duckdb":
        with duckdb.connect(str(project / "data" / "local-warehouse.duckdb"), read_only=True) as connection:
            found = {table: connection.execute(query).fetchall()[0][0] for table, query in queries.items()}
    else:
        with psycopg2.connect(warehouse) as connection, connection.cursor() as cursor:
            found = {}
            for table, query in queries.items():
                cursor.execute(query)
                found[table] = cursor.fetchall()[0][0]
    assert found == EXPECTED[source]
    # No line of the output is noise: no warning, no traceback, no secret.
    assert "Traceback" not in done.stdout
    assert "Warning" not in done.stdout
    assert "secret-of" not in done.stdout
