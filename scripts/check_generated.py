"""Check what the template generates: each choice of each question, with the project's own settings.

A project is made for the default answers and for every other choice; ruff and pyright then check it
with the rules it brings along. Which choices there are is read from `copier.yml`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import copier
import yaml

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (
    ("ruff", "check", "--quiet"),
    ("ruff", "format", "--check", "--quiet"),
    ("pyright", "--pythonpath", sys.executable),
)


def answer_sets(questions: dict[str, Any]) -> list[dict[str, str]]:
    """Return the default answers, then one set for each choice that is not a default."""
    sets: list[dict[str, str]] = [{}]
    for name, question in questions.items():
        if not name.startswith("_") and question.get("choices"):
            choices: dict[str, str] = question["choices"]
            sets += [{name: c} for c in choices.values() if c != question.get("default")]
    return sets


def passes(answers: dict[str, str], folder: Path) -> bool:
    """Generate a project and check it; tell whether nothing was found."""
    title = ", ".join(f"{name}={value}" for name, value in answers.items()) or "default answers"
    copier.run_copy(
        str(ROOT),
        folder,
        data={"project_name": "checked", **answers},
        defaults=True,
        quiet=True,
        vcs_ref="HEAD",
    )
    failed = False
    for check in CHECKS:
        done = subprocess.run(check, cwd=folder, check=False, capture_output=True, text=True)
        if done.returncode:
            failed = True
            print(f"Generated with {title}: {' '.join(check[:2])} found", done.stdout, done.stderr)
    print(f"{'failed' if failed else 'passed'}  {title}", flush=True)
    return not failed


def main() -> int:
    """Check every answer set; return the exit code."""
    questions = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        sets = enumerate(answer_sets(questions))
        results = [passes(answers, Path(folder, str(number))) for number, answers in sets]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
