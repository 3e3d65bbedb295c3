"""Who may import whom: what decides and what acts knows no Prefect, and imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import prefect_dlt

FOLDER = Path(prefect_dlt.__file__).parent
TALK = {
    "cancellation",
    "collector",
    "component_load",
    "deployment",
    "emitter",
    "fan_out",
    "flows",
    "logs",
    "look_ups",
    "prefect_api",
    "publisher",
}
ACT = {
    "callbacks",
    "clean",
    "command",
    "configuration",
    "dataset",
    "discard",
    "environment",
    "job_files",
    "known_secrets",
    "leftovers",
    "loaded_rows",
    "lock",
    "package_jobs",
    "pending",
    "portable",
    "recovery",
    "row_counts",
    "runner",
    "stop",
    "trace_files",
    "traces",
    "usage",
    "verify",
}
DECIDE = {
    "assets",
    "count_queries",
    "decompose",
    "diagrams",
    "errors",
    "events",
    "keys",
    "markdown",
    "outbox",
    "progress",
    "reasons",
    "record",
    "redact",
    "refusals",
    "report",
    "results",
    "retry",
    "schema_changes",
    "trace_tables",
    "verification",
}


def imports_of(module: str) -> set[str]:
    """Return what a module imports: its own package's modules by name, others by their package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    return {name.partition(".")[2] if name.startswith("prefect_dlt.") else name.partition(".")[0] for name in names}


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "_version"} == TALK | ACT | DECIDE


def test_only_what_talks_to_prefect_imports_it_or_what_does() -> None:
    assert {module for module in TALK | ACT | DECIDE if imports_of(module) & {"prefect", *TALK}} == TALK


def test_imports_point_from_talk_to_act_to_decide() -> None:
    for module in DECIDE:
        assert not imports_of(module) & (ACT | TALK), module
    for module in ACT:
        assert not imports_of(module) & TALK, module
