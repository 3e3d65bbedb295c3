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


# The flow of each project as it is, twice. Importing dlt and Prefect takes longer than that: it is done once, and each
# project is run by a fork of its own.
PROGRAM = """
import os, sys
import prefect_dlt, pyarrow.parquet

tables, *projects = sys.argv[1:]
codes = []
for project in projects:
    sys.stdout.flush()
    if not (child := os.fork()):
        os.chdir(project)
        sys.path.insert(0, project)
        with open("output.txt", "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        from flows.load import load

        print(*[load(resources=tables.split(",")) for _ in range(2)], sep="\\n")
        sys.exit()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sys.exit(any(codes))
"""


@pytest.mark.parametrize(("source", "destination"), [*itertools.product(SOURCES, DESTINATIONS)])
def test_a_combination_loads_its_rows_once(
    generate: Generate,
    tmp_path: Path,
    prefect_server: str,
    make_database: Callable[[str], str],
    source: str,
    destination: str,
) -> None:
    names = {mode: f"{source}-{destination}-{mode}".replace("_", "-") for mode in MODES}
    projects = {
        mode: generate(name, project_name=name, source=source, destination=destination, decompose=mode)
        for mode, name in names.items()
    }
    database = shop_database("postgres", tmp_path, make_database, f"{source}-{destination}-source")
    warehouse = make_database(f"{source}-{destination}-warehouse")
    # Of the demo, the small tables: the flights are loaded by a worker elsewhere.
    tables = list(EXPECTED[source])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(tables), *map(str, projects.values())],
        env={
            **os.environ,
            "DLT_DATA_DIR": str(tmp_path / "dlt"),
            "PREFECT_API_URL": prefect_server,
            "SOURCES__SQL_DATABASE__CREDENTIALS": database,
            "DESTINATION__POSTGRES__CREDENTIALS": warehouse,
        },
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = {
        mode: path.read_text("utf-8") for mode, each in projects.items() if (path := each / "output.txt").exists()
    }
    assert done.returncode == 0, done.stdout + "\n".join(output.values())
    assert not done.stdout  # what is imported says nothing

    for mode, project in projects.items():
        found = _counted(project, warehouse, names[mode].replace("-", "_"), tables, destination)
        assert found == EXPECTED[source], mode
        # No line of the output is noise: no warning, no traceback, no secret.
        assert "Completed()" in output[mode]
        assert "Traceback" not in output[mode]
        assert "Warning" not in output[mode]
        assert "secret-of" not in output[mode]


def _counted(project: Path, warehouse: str, dataset: str, tables: list[str], destination: str) -> dict[str, int]:
    queries = {table: f"SELECT count(*) FROM {dataset}.{table}" for table in tables}
    if destination == "duckdb":
        with duckdb.connect(str(project / "data" / "local-warehouse.duckdb"), read_only=True) as connection:
            return {table: connection.execute(query).fetchall()[0][0] for table, query in queries.items()}
    with psycopg2.connect(warehouse) as connection, connection.cursor() as cursor:
        found: dict[str, int] = {}
        for table, query in queries.items():
            cursor.execute(query)
            found[table] = cursor.fetchall()[0][0]
        return found
