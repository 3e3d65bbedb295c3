"""The template as it is on disk, and projects made from it."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import copier
import pytest

from tests.template import services

ROOT = Path(__file__).parents[2]

Generate = Callable[..., Path]


def users_environment() -> dict[str, str]:
    """Return the environment in which a project with an environment of its own is used.

    Only uv may use what this machine keeps: its cache, and its settings. And where Python is told to write no bytecode,
    each process of a new environment would compile all of dlt and Prefect anew.
    """
    ours = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in ours}


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, as nobody in particular, and return what it prints."""
    who = ("-c", "user.name=A user", "-c", "user.email=user@example.invalid", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def commit(folder: Path, message: str) -> None:
    """Commit everything in a folder."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--no-verify", "--allow-empty", "--message", message)


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder with their contents, without what git keeps about it."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != ".git")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clone of this repository, overlaid with what is on disk, committed and tagged as the newest release."""
    clone = tmp_path_factory.mktemp("template") / "prefect-dlt"
    git(ROOT, "clone", "--quiet", str(ROOT), str(clone))
    for tracked in git(clone, "ls-files", "-z").split("\0")[:-1]:
        (clone / tracked).unlink()
    for name in git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")[:-1]:
        if (ROOT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    commit(clone, "What is on disk")
    git(clone, "tag", "v999.0.0")
    return clone


def make_project(template: Path, project: Path, vcs_ref: str | None = None, **answers: Any) -> Path:
    """Make a project of some answers, and the default ones."""
    copier.run_copy(str(template), project, data=answers, vcs_ref=vcs_ref, defaults=True, unsafe=False, quiet=True)
    return project


@pytest.fixture
def generate(template: Path, tmp_path: Path) -> Generate:
    """Return a function that makes a project of some answers, and the default ones."""

    def make(folder: str = "project", vcs_ref: str | None = None, **answers: Any) -> Path:
        return make_project(template, tmp_path / folder, vcs_ref, **{"project_name": "shop-loads", **answers})

    return make


@pytest.fixture(scope="session")
def prefect_server(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of the API of a Prefect server, started as a user would."""
    home = tmp_path_factory.mktemp("prefect-server")
    shutil.copyfile(prefect_database, home / "prefect.db")
    with services.prefect_server(home) as api:
        yield api
