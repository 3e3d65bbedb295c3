"""What a project is made of, on every set of answers."""

import ast
import functools
import re
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.template.conftest import Generate, files_in

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ANSWERS = [
    {"source": source, "destination": destination, "decompose": decompose, **schedule}
    for source, destination, decompose, schedule in product(
        ("demo", "sql_database", "empty"),
        ("duckdb", "postgres"),
        ("none", "sequential", "parallel", "auto"),
        ({}, {"schedule": "0 6 * * MON-FRI", "timezone": "Europe/Berlin"}),
    )
]

# What Windows refuses in the name of a file or folder.
ILLEGAL = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


@functools.cache
def parse(text: str) -> None:
    """Fail when a text is no Python; most are the same in all projects, and parsed once."""
    ast.parse(text)


@pytest.mark.parametrize("answers", ANSWERS, ids=lambda answers: "-".join(answers.values()))
def test_every_file_of_a_project_is_sound(generate: Generate, template: Path, answers: dict[str, Any]) -> None:
    project = generate(**answers)
    files = files_in(project)

    for name, content in files.items():
        text = content.decode()
        assert not name.endswith(".jinja")
        assert not any(ILLEGAL.search(part) for part in name.split("/")), f"Windows refuses {name}"
        if not name.startswith("runtime/"):
            assert not re.search(r"\{\{|\{%|\{#", text), f"{name} is not rendered"
            assert text.endswith("\n") or not text, f"{name} ends in the middle of a line"
            assert not text.endswith("\n\n"), f"{name} ends in an empty line"
        if name.endswith((".toml", ".toml.example")):
            tomllib.loads(text)
        elif name.endswith((".yaml", ".yml")):
            yaml.safe_load(text)
        elif name.endswith(".py"):
            parse(text)
    runtime = {name.removeprefix("runtime/"): content for name, content in files.items() if name.startswith("runtime/")}
    assert runtime == files_in(template / "template" / "runtime")
    sources = {name for name in files if name.startswith("sources/")} - {"sources/__init__.py"}
    assert len(sources) == 1


def test_template_names_are_legal_on_windows(template: Path) -> None:
    names = {name for name in files_in(template) if any(ILLEGAL.search(part) for part in name.split("/"))}

    assert names == set()


def test_a_default_project_names_no_schedule(generate: Generate) -> None:
    deployments = yaml.safe_load((generate() / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]

    assert [deployment["schedules"] for deployment in deployments] == [[]]


def test_a_schedule_reaches_prefect_yaml(generate: Generate) -> None:
    project = generate(schedule="*/15 8-18 * * MON-FRI", timezone="Europe/Berlin")

    deployments = yaml.safe_load((project / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert deployments[0]["schedules"] == [{"cron": "*/15 8-18 * * MON-FRI", "timezone": "Europe/Berlin"}]


def test_every_deployment_runs_once_at_a_time(generate: Generate) -> None:
    deployments = yaml.safe_load((generate() / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]

    limits = [deployment["concurrency_limit"] for deployment in deployments]
    assert limits == [{"limit": 1, "collision_strategy": "ENQUEUE"}]
