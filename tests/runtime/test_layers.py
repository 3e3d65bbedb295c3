"""Who may import whom: what decides and what acts knows no Prefect, and imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import prefect_dlt

FOLDER = Path(prefect_dlt.__file__).parent
TALK = {
    "cancellation",
    "collector",
    "component_flow",
    "component_load",
    "deployment",
    "elsewhere",
    "emitter",
    "fan_out",
    "flow_reporter",
    "flows",
    "logs",
    "look_ups",
    "on_failure",
    "prefect_api",
    "preparation",
    "publisher",
    "runs_elsewhere",
    "signs_of_life",
    "submit_to",
}
ACT = {
    "abandoned",
    "attempts",
    "built_sources",
    "callbacks",
    "capabilities",
    "clean",
    "command",
    "configuration",
    "dataset",
    "discard",
    "durations",
    "environment",
    "garbage",
    "job_files",
    "known_secrets",
    "last_reports",
    "leftovers",
    "loaded_rows",
    "lock",
    "options",
    "own_schema",
    "package_jobs",
    "pending",
    "portable",
    "recovery",
    "refresh",
    "row_counts",
    "row_ids",
    "runner",
    "scoped_config",
    "staging",
    "stop",
    "survey",
    "trace_files",
    "traces",
    "turns",
    "usage",
    "verify",
    "while_in_use",
}
DECIDE = {
    "assets",
    "count_queries",
    "decompose",
    "diagrams",
    "errors",
    "events",
    "flow_record",
    "flow_report",
    "hints",
    "keys",
    "limits",
    "markdown",
    "modes",
    "outbox",
    "page",
    "plan",
    "progress",
    "reasons",
    "record",
    "redact",
    "references",
    "refusals",
    "report",
    "results",
    "retry",
    "schema_changes",
    "schema_report",
    "stage_report",
    "steps",
    "told",
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
