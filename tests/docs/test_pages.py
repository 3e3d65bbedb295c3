"""What the pages show can be run: Python that parses and imports what exists, commands that name what is there."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "template" / "runtime" / "README.md"])
BLOCK = re.compile(r"^ *```(?P<language>\w+)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    """Return what a page is called in the name of a test."""
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page that are in a language."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [match["text"] for match in found if match["language"] == language]


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page, each as its words; joined by && they count as several."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    parts: list[list[str]] = []
    for line in text.splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                parts.append(words)
                words = []
    return parts


def does_not_exist(module: str, name: str) -> bool:
    """Tell whether an import of this package fails; a project's own modules are looked up in the template."""
    top = module.partition(".")[0]
    if top in ("flows", "sources"):
        path = ROOT / "template" / Path(*module.split("."))
        return not (path.with_suffix(".py").exists() or path.with_suffix(".py.jinja").exists())
    return top == "prefect_dlt" and not hasattr(importlib.import_module(module), name)


def missing(code: str) -> list[str]:
    """Return what a program imports though it does not exist."""
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    names = [(node.module or "", alias.name) for node in imports for alias in node.names]
    return [f"{module}.{name}" for module, name in names if does_not_exist(module, name)]


@each_page
def test_python_parses_and_imports_what_exists(page: Path) -> None:
    assert [name for code in blocks(page, "python") for name in missing(code)] == []


@each_page
def test_python_in_commands_parses_and_imports_what_exists(page: Path) -> None:
    programs = [words[words.index("-c") + 1] for words in commands(page) if "python" in words and "-c" in words]
    assert [name for code in programs for name in missing(code)] == []


@each_page
def test_a_module_that_is_started_exists(page: Path) -> None:
    modules = [words[words.index("-m") + 1] for words in commands(page) if "python" in words and "-m" in words]
    assert [module for module in modules if does_not_exist(module, "")] == []


@each_page
def test_a_make_target_exists(page: Path) -> None:
    targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
    called = [word for words in commands(page) if words[0] == "make" for word in words[1:2]]
    assert [target for target in called if target not in targets] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "decisions"], ids=name_of)
def test_a_page_says_what_it_is_for_before_anything_else(page: Path) -> None:
    title, empty, first = page.read_text(encoding="utf-8").split("\n", 3)[:3]
    assert title.startswith("# ")
    assert not empty
    assert re.match(r"\w|`", first), first
