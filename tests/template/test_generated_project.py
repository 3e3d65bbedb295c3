"""A generated project passes its own checks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.template.conftest import Generate, commit, git, users_environment

# Each source, each destination and each way to take a source apart at least once.
ANSWERS = [
    {"source": "demo", "destination": "duckdb", "decompose": "none"},
    {"source": "sql_database", "destination": "postgres", "decompose": "sequential", "schedule": "@daily"},
    {"source": "empty", "destination": "duckdb", "decompose": "parallel", "schedule": "0 6 * * MON-FRI"},
]


@pytest.mark.parametrize("answers", ANSWERS, ids=lambda answers: "-".join(answers.values()))
def test_a_generated_project_passes_its_own_checks(generate: Generate, tmp_path: Path, answers: dict[str, Any]) -> None:
    project = generate(**answers)
    home = tmp_path / "home"
    home.mkdir()

    def uv(*arguments: str, **variables: str) -> None:
        """Run uv in the project, and show what it printed when it fails."""
        done = subprocess.run(
            ["uv", *arguments],
            cwd=project,
            env={**users_environment(), **variables},
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"uv {' '.join(arguments)}\n{done.stdout}"

    git(project, "init", "--quiet")
    uv("sync", "--python", sys.executable)
    commit(project, "Scaffold")
    # Ruff's check and format, and pyright.
    uv("run", "--no-sync", "pre-commit", "run", "--all-files")
    uv("run", "--no-sync", "pytest", HOME=str(home), PREFECT_HOME=str(home / ".prefect"))

    # The tests left the project's data and the user's home alone.
    assert not (project / "data").exists()
    assert not (home / ".dlt").exists()
