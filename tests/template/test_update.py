"""A project from an earlier release takes in the newest one, and keeps what is its user's."""

import shutil
from pathlib import Path
from typing import Any

import copier
import pytest
from copier import VcsRef

from tests.template.conftest import ROOT, Generate, commit, files_in, git

# The releases that were made, and one that differs from what is on disk in every kind of file.
EARLIER = ["v0.0.1", *git(ROOT, "tag", "--list", "v*").split()]

DIFFERENT = {
    ".dlt/config.toml.jinja": ("add_dlt_load_id = true", "add_dlt_load_id = false"),
    ".gitignore": (".ruff_cache/\n", ""),
    "README.md.jinja": ("## Update", "## How to update"),
    "flows/load.py.jinja": ("parents[1]", "parent.parent"),
    "prefect.yaml.jinja": ("ENQUEUE", "CANCEL_NEW"),
    "pyproject.toml.jinja": ("line-length = 120", "line-length = 100"),
    "runtime/src/prefect_dlt/_version.py": ('__version__ = "', '__version__ = "0.0.'),
    "sources/flights.py": ("The demo: every flight", "All flights"),
    "tests/test_flights.py": ("The demo loads", "It loads"),
}

# What `uv add pymysql` does.
DEPENDENCY = ("    # Yours: uv add <package>\n", '    # Yours: uv add <package>\n    "pymysql>=1.1",\n')


@pytest.fixture(scope="session")
def releases(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the template's repository with an earlier release before what is on disk."""
    repository = tmp_path_factory.mktemp("releases") / "prefect-dlt"
    git(template, "clone", "--quiet", str(template), str(repository))
    git(repository, "checkout", "--quiet", "--detach")
    for name, (now, before) in DIFFERENT.items():
        path = repository / "template" / name
        text = path.read_text(encoding="utf-8")
        assert now in text, f"{name} no longer says {now!r}: find it another difference"
        path.write_text(text.replace(now, before), encoding="utf-8")
    (repository / "template" / "runtime" / "src" / "prefect_dlt" / "gone.py").write_text('"""Gone since."""\n')
    commit(repository, "An earlier release")
    git(repository, "tag", "v0.0.1")
    git(repository, "checkout", "--quiet", "v999.0.0")
    return repository


@pytest.fixture
def generate(releases: Path, tmp_path: Path) -> Generate:
    """Return a function that makes a project of a release, the newest by default, and commits it."""

    def make(folder: str = "project", vcs_ref: str | None = None, **answers: Any) -> Path:
        project = tmp_path / folder
        answers = {"project_name": "shop-loads", **answers}
        copier.run_copy(str(releases), project, data=answers, vcs_ref=vcs_ref, defaults=True, unsafe=False, quiet=True)
        git(project, "init", "--quiet")
        commit(project, "Scaffold")
        return project

    return make


def edit(path: Path, old: str, new: str) -> None:
    """Replace a piece of a file."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def update(project: Path, **options: Any) -> None:
    """Run `copier update` as a user does."""
    copier.run_update(project, defaults=True, unsafe=False, quiet=True, overwrite=True, **options)


def assert_no_conflict(project: Path) -> None:
    """Fail when an update left two versions of something."""
    states = {line[:2] for line in git(project, "status", "--porcelain").splitlines()}
    assert not states & {"UU", "AA", "DU", "UD"}
    assert not [name for name, content in files_in(project).items() if b"<<<<<<<" in content and name != "README.md"]
    assert not [name for name in files_in(project) if name.endswith(".rej")]


@pytest.mark.parametrize("earlier", EARLIER)
def test_an_untouched_project_becomes_a_fresh_copy(generate: Generate, earlier: str) -> None:
    project, fresh = generate(vcs_ref=earlier), generate("fresh")

    update(project)

    assert_no_conflict(project)
    theirs = {"README.md", *(name for name in files_in(fresh) if name.startswith(("sources/", "tests/")))}
    assert without(files_in(project), theirs) == without(files_in(fresh), theirs)


def test_an_update_keeps_what_is_the_users(generate: Generate) -> None:
    project, fresh = generate(vcs_ref="v0.0.1"), generate("fresh")
    with (project / "sources" / "flights.py").open("a", encoding="utf-8") as file:
        file.write("\n\nMINE = True\n")
    (project / "README.md").write_text("# Our loads\n")
    (project / "sources" / "shop.py").write_text('"""Our shop."""\n')
    (project / "flows" / "shop.py").write_text('"""Our flow."""\n')
    (project / ".dlt" / "secrets.toml").write_text('[sources.shop]\napi_key = "none"\n')
    (project / "tests" / "test_flights.py").unlink()
    edit(project / "pyproject.toml", *DEPENDENCY)
    deployment = "  - name: shop\n    entrypoint: flows.shop.shop\n    work_pool:\n      name: pool-shop-loads\n"
    with (project / "prefect.yaml").open("a", encoding="utf-8") as file:
        file.write(deployment)
    retries = ("retry_attempts = 3", "retry_attempts = 5\nretry_max = 600")
    edit(project / ".dlt" / "config.toml", *retries)
    commit(project, "Make it ours")
    before = files_in(project)

    update(project)

    assert_no_conflict(project)
    after, wanted = files_in(project), files_in(fresh)
    users = {"README.md", "sources/flights.py", "sources/shop.py", "flows/shop.py", ".dlt/secrets.toml"}
    assert {name: after[name] for name in users} == {name: before[name] for name in users}
    # Both versions of a file that both have changed, in one.
    wanted["pyproject.toml"] = wanted["pyproject.toml"].replace(DEPENDENCY[0].encode(), DEPENDENCY[1].encode())
    wanted["prefect.yaml"] += deployment.encode()
    wanted[".dlt/config.toml"] = wanted[".dlt/config.toml"].replace(retries[0].encode(), retries[1].encode())
    # Deleted, and not brought back.
    del wanted["tests/test_flights.py"]
    assert without(after, users) == without(wanted, users)
    assert (project / "runtime" / "src" / "prefect_dlt" / "gone.py").exists() is False


def test_an_answer_can_be_changed_later(generate: Generate) -> None:
    project = generate(source="empty")
    edit(project / "pyproject.toml", *DEPENDENCY)
    commit(project, "Add a dependency")

    update(project, vcs_ref=VcsRef.CURRENT, skip_answered=True, data={"destination": "postgres"})

    assert_no_conflict(project)
    wanted = files_in(generate("fresh", source="empty", destination="postgres"))
    wanted["pyproject.toml"] = wanted["pyproject.toml"].replace(DEPENDENCY[0].encode(), DEPENDENCY[1].encode())
    assert without(files_in(project), {"README.md"}) == without(wanted, {"README.md"})


def test_another_source_comes_with_a_recopy(generate: Generate) -> None:
    project = generate()
    update(project, vcs_ref=VcsRef.CURRENT, skip_answered=True, data={"source": "empty"})
    commit(project, "Change the source")

    recopy(project, "!sources/own.py", "!tests/test_own.py")

    assert "sources/flights.py" in files_in(project)
    new = git(project, "status", "--porcelain", "--untracked-files=all").splitlines()
    assert new == ["?? sources/own.py", "?? tests/test_own.py"]


def test_edits_in_the_runtime_are_undone_by_a_recopy(generate: Generate) -> None:
    project = generate()
    untouched = files_in(project)
    for name in ("runtime/src/prefect_dlt/_version.py", "flows/load.py"):
        (project / name).write_text("mistake = True\n")
    shutil.rmtree(project / "sources")
    commit(project, "Edit what is not ours")

    recopy(project, "!runtime/**")

    after = files_in(project)
    assert after["runtime/src/prefect_dlt/_version.py"] == untouched["runtime/src/prefect_dlt/_version.py"]
    assert after["flows/load.py"] == b"mistake = True\n"
    assert not [name for name in after if name.startswith("sources/")]


def recopy(project: Path, *kept: str) -> None:
    """Run `copier recopy` on some files only, at the release the project has, as a user does."""
    copier.run_recopy(
        project,
        vcs_ref=VcsRef.CURRENT,
        exclude=["**", *kept],
        defaults=True,
        overwrite=True,
        unsafe=False,
        quiet=True,
    )


def without(files: dict[str, bytes], names: set[str]) -> dict[str, bytes]:
    """Return all files but those named."""
    return {name: content for name, content in files.items() if name not in names}
