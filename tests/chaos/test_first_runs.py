"""First runs of many components into one new dataset, and what tells of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from tests.chaos.first_runs import FirstRun, plan, told

ROOT = Path(__file__).resolve().parents[2]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own: one that has threads could not fork."""
    command = [sys.executable, "-m", "tests.chaos.first_runs", "--api", str(PREFECT_API_URL.value()), *options]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=own)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prefect_api")
def test_no_first_run_of_many_components_fails() -> None:
    # 32 processes take longer than all that the others do.
    first_runs = run("--duckdb", "1", "--postgres", "1", "--processes", "1", "--width-on-processes", "8")
    assert first_runs.returncode == 0, first_runs.stdout + first_runs.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prefect_api")
def test_first_runs_fail_without_what_makes_them_safe() -> None:
    # Of 16 components, 14 or more failed in each of eight such runs: one is enough.
    unsafe = run("--duckdb", "1", "--width", "16", "--baseline", "nothing")
    assert unsafe.returncode == 1, unsafe.stdout + unsafe.stderr
    assert "duckdb: 1 of 1 runs failed" in unsafe.stdout, unsafe.stdout
    assert " x " in unsafe.stdout, unsafe.stdout


def test_runs_of_each_kind_are_spread_over_the_whole_time() -> None:
    planned = plan({"duckdb": 4, "postgres": 4, "processes": 1})

    assert [run.number for run in planned] == list(range(9))
    assert Counter(run.kind for run in planned) == {"duckdb": 4, "postgres": 4, "processes": 1}
    assert {run.kind for run in planned[:2]} == {run.kind for run in planned[-2:]} == {"duckdb", "postgres"}


def test_what_failed_is_told_with_its_texts_and_how_often() -> None:
    def result(first: FirstRun, failures: dict[str, str], difference: str = "") -> dict[str, object]:
        return {**vars(first), "seconds": 1.0, "failures": failures, "difference": difference}

    results = [
        result(FirstRun(0, "duckdb"), {"a": "conflict", "b": "conflict"}),
        result(FirstRun(1, "duckdb"), {"a": "no file"}),
        result(FirstRun(2, "duckdb"), {}, "a: 1 of 2"),
        result(FirstRun(3, "postgres"), {"a": "other"}),
    ]

    assert told(results, "duckdb", width=4).splitlines() == [
        "duckdb: 2 of 3 runs failed, 3 of 12 components; 1 loaded something else; 1.0 s a run",
        "  2 x conflict",
        "  1 x no file",
        "  run 2: a: 1 of 2",
    ]
