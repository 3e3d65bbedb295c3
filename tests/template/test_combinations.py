"""Every combination of source, destination and taking apart loads real rows, twice without doubling any."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import psycopg2
import pytest

from tests.template.conftest import make_project
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
import contextlib, importlib, json, os, sys
import prefect_dlt, pyarrow.parquet

codes = {}
for project, tables in json.loads(sys.argv[1]).items():
    sys.stdout.flush()
    if not (child := os.fork()):
        os.chdir(project)
        sys.path.insert(0, project)
        with open("output.txt", "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        from flows.load import load

        print(*[load(resources=tables) for _ in range(2)], sep="\\n")
        with open("modules.json", "w") as file:
            own = ("__main__", "flows", "sources")
            json.dump([name for name in sys.modules if name.partition(".")[0] not in own], file)
        sys.exit()
    codes[project] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # What this one has imported by and by, those that follow have from the beginning.
    with contextlib.suppress(OSError), open(os.path.join(project, "modules.json")) as file:
        for name in json.load(file):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
print(json.dumps(codes))
"""


@dataclass(frozen=True)
class Done:
    """What came of the flows of all projects.

    Attributes:
        folder: Where each project is, in a folder of its name.
        warehouse: The address of the PostgreSQL database that some have loaded into.
        codes: With what the process of each project ended, by its folder.
    """

    folder: Path
    warehouse: str
    codes: dict[str, int]


def name_of(source: str, destination: str, mode: str) -> str:
    """Return the name of a project."""
    return f"{source}-{destination}-{mode}".replace("_", "-")


@pytest.fixture(scope="module")
def done(
    template: Path,
    tmp_path_factory: pytest.TempPathFactory,
    prefect_server: str,
    make_database: Callable[[str], str],
) -> Done:
    """Make a project of each combination and run its flow, twice."""
    folder = tmp_path_factory.mktemp("combinations")
    projects: dict[str, list[str]] = {}
    for source, destination, mode in itertools.product(SOURCES, DESTINATIONS, MODES):
        name = name_of(source, destination, mode)
        make_project(template, folder / name, project_name=name, source=source, destination=destination, decompose=mode)
        # Of the demo, the small tables: the flights are loaded by a worker elsewhere.
        projects[str(folder / name)] = list(EXPECTED[source])
    warehouse = make_database("warehouse-of-combinations")
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(projects)],
        cwd=folder,
        env={
            **os.environ,
            "DLT_DATA_DIR": str(folder / "dlt"),
            "OPENBLAS_NUM_THREADS": "1",  # others would be alive when the process forks
            "PREFECT_API_URL": prefect_server,
            "SOURCES__SQL_DATABASE__CREDENTIALS": shop_database(
                "postgres", folder, make_database, "source-of-combinations"
            ),
            "DESTINATION__POSTGRES__CREDENTIALS": warehouse,
        },
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout
    (said,) = ended.stdout.splitlines()  # what is imported says nothing
    return Done(folder, warehouse, json.loads(said))


@pytest.mark.timeout(900)  # the first of them waits for all
@pytest.mark.parametrize(("source", "destination"), [*itertools.product(SOURCES, DESTINATIONS)])
def test_a_combination_loads_its_rows_once(done: Done, source: str, destination: str) -> None:
    names = {mode: name_of(source, destination, mode) for mode in MODES}
    projects = {mode: done.folder / name for mode, name in names.items()}
    tables = list(EXPECTED[source])
    output = {mode: (project / "output.txt").read_text("utf-8") for mode, project in projects.items()}
    assert {mode: done.codes[str(project)] for mode, project in projects.items()} == dict.fromkeys(MODES, 0), output

    for mode, project in projects.items():
        found = _counted(project, done.warehouse, names[mode].replace("-", "_"), tables, destination)
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
