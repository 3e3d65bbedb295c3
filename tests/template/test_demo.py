"""`make demo`, as a newcomer runs it: from a clone, twice, and then `copier update` in what it made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.template.conftest import git


@pytest.fixture
def checkout(template: Path, tmp_path: Path) -> Path:
    """Return a clone with a change that is not committed: the demo is made of what is on disk."""
    clone = tmp_path / "prefect-dlt"
    git(tmp_path, "clone", "--quiet", str(template), str(clone))
    with (clone / "template" / ".gitignore").open("a") as file:
        file.write("\n# Not committed yet\n")
    return clone


def run(folder: Path, *command: str, home: Path) -> str:
    """Run a command with a home of its own; return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DLT_", "PREFECT_"))}
    kept.setdefault("UV_CACHE_DIR", subprocess.check_output(["uv", "cache", "dir"], text=True).strip())
    done = subprocess.run(
        command,
        cwd=folder,
        env={**kept, "HOME": str(home), "PYTHON": sys.executable},
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def last_run(checkout: Path) -> dict[str, Any]:
    """Return the tables that the last demo reported, by name."""
    report = json.loads((checkout / "demo" / "last-run.json").read_text())
    return {table["name"]: (table["loaded"], table["rows"]) for table in report["tables"]}


def test_the_demo_loads_everything_once_and_its_project_can_be_updated(checkout: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()

    first = run(checkout, "make", "demo", home=home)

    assert last_run(checkout) == {
        "flights": ("336,776", 336_776),
        "weather": ("26,115", 26_115),
        "planes": ("3,322", 3_322),
        "airports": ("1,458", 1_458),
        "airlines": ("16", 16),
    }
    assert "extract · " in first
    assert "make demo-ui" in first
    assert "leaked" not in first  # DuckDB's complaint when the process ends with one of its connections in use
    project = checkout / "demo" / "flights-demo"
    assert str(project / "data" / "local-warehouse.duckdb") in first
    assert "# Not committed yet" in (project / ".gitignore").read_text()

    run(checkout, "make", "demo", home=home)

    assert last_run(checkout)["flights"] == ("0", 336_776)
    # Nothing of the user's was touched: whatever the programs keep is in the demo's own folder.
    assert {path.name for path in home.iterdir()} <= {".cache", ".local"}

    # What is on disk becomes a commit, and the project takes it as an update.
    git(checkout, "commit", "--quiet", "--all", "--no-verify", "--message", "A later improvement")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--no-verify", "--allow-empty", "--message", "Locked")
    run(project, sys.executable, "-m", "copier", "update", "--defaults", "--vcs-ref", "HEAD", home=home)
    assert git(project, "ls-files", "--unmerged") == ""
    assert "# Not committed yet" in (project / ".gitignore").read_text()
