"""The reference shows what the package has: all public names, and each signature as it is in the code."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

import prefect_dlt

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in [*REFERENCE, ROOT / "docs" / "README.md"])

# Modules whose public functions and classes users are told of, and the page that does so.
PAGES = {"retry": "retry.md", "errors": "errors.md", "logs": "logs.md"}
LEFT_OUT = {
    "retry": {
        "check_steps",
        "check_seconds",
        "is_stop_request",
        "is_exhausted",
        "chain",
        "most_attempts",
        "policy_text",
        "why_not_retried",
    },
    "logs": {"start_forwarding", "stop_forwarding", "keep_console", "current_run_ids"},
}

Signatures = dict[str, str]


def signatures(code: str) -> Signatures:
    """Return each function of a program by its name, a method with its class, and its arguments and result."""
    found: Signatures = {}
    for node in ast.parse(code).body:
        for function in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(function, ast.FunctionDef):
                name = f"{node.name}.{function.name}" if isinstance(node, ast.ClassDef) else function.name
                result = ast.unparse(function.returns) if function.returns else ""
                found[name] = f"({ast.unparse(function.args)}) -> {result}"
    return found


@functools.cache
def in_package() -> Signatures:
    modules = (ROOT / "template" / "runtime" / "src" / "prefect_dlt").glob("*.py")
    return {name: text for module in modules for name, text in signatures(module.read_text(encoding="utf-8")).items()}


@functools.cache
def in_reference() -> Signatures:
    from tests.docs.test_pages import blocks

    code = [block for page in REFERENCE for block in blocks(page, "python")]
    return {name: text for block in code for name, text in signatures(block).items()}


def test_each_public_name_is_documented() -> None:
    documented = re.findall(r"`(?:prefect_dlt\.)?(\w+)`", TEXT)
    assert set(prefect_dlt.__all__) - set(documented) == set()


def test_each_public_name_is_used_in_the_file_that_pyright_checks() -> None:
    uses = (ROOT / "tests" / "typing" / "public_api.py").read_text(encoding="utf-8")
    assert [name for name in prefect_dlt.__all__ if name not in uses] == []


@pytest.mark.parametrize("module", PAGES)
def test_a_page_names_what_its_module_offers(module: str) -> None:
    source = ROOT / "template" / "runtime" / "src" / "prefect_dlt" / f"{module}.py"
    nodes = ast.parse(source.read_text(encoding="utf-8")).body
    names = {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    public = {name for name in names if not name.startswith("_")} - LEFT_OUT.get(module, set())
    text = (ROOT / "docs" / "reference" / PAGES[module]).read_text(encoding="utf-8")
    assert [name for name in sorted(public) if name not in text] == []


@pytest.mark.parametrize("name", in_reference())
def test_a_signature_is_the_one_in_the_code(name: str) -> None:
    assert in_reference()[name] == in_package()[name]


def test_each_callback_is_in_the_reference() -> None:
    callbacks = {
        name for name in vars(prefect_dlt.CallbackCollector) if name.startswith(("before_", "after_", "on_"))
    } - {"on_start_trace", "on_start_trace_step", "on_end_trace_step", "on_end_trace"}
    documented = {name.partition(".")[2] for name in in_reference() if name.startswith("CallbackCollector.")}
    assert callbacks == documented - {"__init__"}


def test_each_question_and_file_of_the_template_is_in_the_reference() -> None:
    import yaml

    questions = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))
    asked = [name for name, value in questions.items() if not name.startswith("_") and value.get("when") is not False]
    files = [path.name.removesuffix(".jinja") for path in (ROOT / "template").iterdir() if "{" not in path.name]
    ours = [name for name in files if name not in ("__pycache__", ".dlt", ".ruff_cache", ".pytest_cache")]
    text = (ROOT / "docs" / "reference" / "template.md").read_text(encoding="utf-8")
    assert [name for name in asked if f"`{name}`" not in text] == []
    assert [name for name in ours if f"`{name}`" not in text and f"`{name}/" not in text] == []
