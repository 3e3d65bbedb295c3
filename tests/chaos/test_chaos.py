"""A run that is killed at any moment, and what the next one makes of what it left."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.cases import Case, look, make_pipeline, source
from tests.chaos.program import plan

ROOT = Path(__file__).resolve().parents[2]


CASE = Case("duckdb", "append", "first", "rows")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a DuckDB file that ten rows were loaded into, and the pipeline that did it."""
    folder = tmp_path_factory.mktemp("loaded")
    pipeline = make_pipeline(CASE, folder, str(folder / "warehouse.duckdb"))
    pipeline.run(source(CASE, 10))
    pipeline.deactivate()
    return folder


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own: one that has threads could not fork."""
    command = [sys.executable, "-m", "tests.chaos", *options]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_next_run_loads_everything_once_wherever_a_run_is_killed() -> None:
    killed = run("--kills", "100")
    assert killed.returncode == 0, killed.stdout + killed.stderr


@pytest.mark.slow
def test_what_dlt_alone_doubles_and_gets_stuck_on_is_found() -> None:
    # Killed right after the commit of a job: append into DuckDB, and into PostgreSQL, where row ids are unique.
    killed = run("--plain", "--kinds", "commit", "--kills", "8", "--seed", "3", "--only", "0", "1")
    assert killed.returncode == 1, killed.stdout + killed.stderr
    assert "trials with rows lost 0, with rows doubled 1, stuck 1" in killed.stdout, killed.stdout


@pytest.mark.parametrize(
    ("statement", "lost", "surplus"),
    [
        ("SELECT * FROM {events}", {}, {}),
        ("DELETE FROM {events__lines__parts} WHERE part = 0", {"events__lines__parts": 1}, {}),
        ("INSERT INTO {events__lines} SELECT * FROM {events__lines} WHERE line = 70", {}, {"events__lines": 1}),
        # Its lines have no parent any more.
        ("DELETE FROM {events} WHERE id = 7", {"events": 1, "events__lines": 2}, {"events__lines": 2}),
        ("UPDATE {events} SET value = 3 WHERE id = 7", {"events": 1}, {"events": 1}),
        ("INSERT INTO {_dlt_loads} SELECT * FROM {_dlt_loads}", {}, {"_dlt_loads": 1}),
        ("DELETE FROM {_dlt_loads}", {"_dlt_loads": 1}, {}),
        ("INSERT INTO {_dlt_pipeline_state} SELECT * FROM {_dlt_pipeline_state}", {}, {"_dlt_pipeline_state": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_difference_is_counted(
    loaded: Path,
    tmp_path: Path,
    no_active_pipeline: None,
    statement: str,
    lost: dict[str, int],
    surplus: dict[str, int],
) -> None:
    shutil.copytree(loaded, tmp_path, dirs_exist_ok=True)
    pipeline = make_pipeline(CASE, tmp_path, str(tmp_path / "warehouse.duckdb"))
    with pipeline.sql_client() as client:
        tables = {name: client.make_qualified_table_name(name) for name in re.findall(r"{(\w+)}", statement)}
        client.execute_sql(statement.format(**tables))

    difference = look(pipeline, CASE).compare(CASE, 10)
    assert Counter(row[0] for row in difference.lost.elements()) == lost
    assert Counter(row[0] for row in difference.surplus.elements()) == surplus


def test_kills_are_spread_over_all_combinations_and_the_whole_run() -> None:
    planned = plan(100, seed=1)
    kills = Counter(kill.case.combination for kill in planned)
    assert sum(len(kill.moments) for kill in planned) == 100
    assert len(kills) == 18
    assert min(kills.values()) >= 3

    by_clock = sorted(kill.moments[0].share for kill in planned if kill.moments[0].kind == "clock")
    assert [int(share * len(by_clock)) for share in by_clock] == list(range(len(by_clock)))


def test_a_plan_is_repeated_by_its_seed() -> None:
    assert plan(30, seed=7) == plan(30, seed=7)
    assert plan(30, seed=7) != plan(30, seed=8)
