"""Run the suite here, then the runtime's part of it on the oldest and the newest versions allowed.

The first run uses the environment this program runs in, which holds the tested versions of
`constraints/`. The other two each get an environment of their own, in `.venvs`, with the built
wheel. A Python that cannot be had is named in the summary, and is a failure when CI is set.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = "prefect-dlt[duckdb,postgres,sql,demo] @ " + (ROOT / "template" / "runtime").as_uri()
ONE_AT_A_TIME = threading.Lock()
PASSED, FAILED, NOT_TESTED = "passed", "FAILED", "NOT TESTED"


@dataclass(frozen=True)
class Variant:
    """An environment the runtime's tests run in, apart from this one.

    Attributes:
        title: What is tested, for the summary.
        python: Version of Python, as `major.minor`.
        resolution: Which of the allowed versions uv takes for direct dependencies.
    """

    title: str
    python: str
    resolution: str

    @property
    def folder(self) -> Path:
        """Where the environment is made."""
        return ROOT / ".venvs" / f"{self.python}-{self.resolution}"


VARIANTS = (
    Variant("runtime, oldest Python and oldest dependencies", "3.10", "lowest-direct"),
    Variant("runtime, newest Python and newest dependencies", "3.13", "highest"),
)


def pyenv_folders() -> list[str]:
    """Return where pyenv keeps its interpreters; its shims run the selected version only."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return [str(folder) for folder in sorted(root.glob("versions/3.*/bin"))]


def make_environment(variant: Variant) -> str | None:
    """Make the environment of a variant from scratch; return why not when that fails."""
    search = os.pathsep.join([*pyenv_folders(), os.environ["PATH"]])
    made = subprocess.run(
        ["uv", "venv", "--quiet", "--clear", "--python", variant.python, variant.folder],
        env={**os.environ, "PATH": search},
        check=False,
        capture_output=True,
    )
    if made.returncode != 0:
        return f"{NOT_TESTED}: no Python {variant.python} here, and none could be downloaded"
    install = ["uv", "pip", "install", "--quiet", "--python", str(variant.folder)]
    versions = ["--resolution", variant.resolution, "--reinstall-package", "prefect-dlt"]
    installed = subprocess.run([*install, *versions, "--group", "tests", RUNTIME], cwd=ROOT, check=False)
    return f"{FAILED}: its dependencies could not be installed" if installed.returncode else None


def run_pytest(environment: Path, tests: str, output: Path | None = None) -> str:
    """Run some of the tests with an environment's Python, its output in a file if one is named; return how it went."""
    path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
    with output.open("wb") if output else nullcontext() as file:
        done = subprocess.run(
            [environment / "bin" / "pytest", tests],
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            check=False,
            stdout=file,
            stderr=subprocess.STDOUT if file else None,
        )
    return PASSED if done.returncode == 0 else f"{FAILED}: pytest ended with {done.returncode}"


def run_variant(variant: Variant) -> tuple[str, str, float]:
    """Run the runtime's tests in a variant; print their output in one piece, and return title, outcome and seconds."""
    started = time.monotonic()
    output = variant.folder.with_name(f"{variant.folder.name}.log")
    output.unlink(missing_ok=True)
    outcome = make_environment(variant) or run_pytest(variant.folder, "tests/runtime", output)
    with ONE_AT_A_TIME:
        heading(variant.title)
        print(output.read_text(encoding="utf-8", errors="replace") if output.exists() else outcome, flush=True)
    return variant.title, outcome, time.monotonic() - started


def heading(title: str) -> None:
    """Print what comes next."""
    print(f"\n== {title} ==", flush=True)


def main() -> int:
    """Run all three; return the exit code."""
    outcomes: list[tuple[str, str, float]] = []

    here = f"everything, Python {sys.version_info.major}.{sys.version_info.minor}, tested versions"
    heading(here)
    started = time.monotonic()
    outcome = run_pytest(Path(sys.prefix), "tests")
    outcomes.append((here, outcome, time.monotonic() - started))

    # Side by side: each of them keeps one core busy, and a CI machine has two.
    with ThreadPoolExecutor(len(VARIANTS)) as pool:
        outcomes += pool.map(run_variant, VARIANTS)

    heading("summary")
    width = max(len(title) for title, _, _ in outcomes)
    for title, outcome, seconds in outcomes:
        print(f"{title:<{width}}  {seconds:5.0f} s  {outcome}")
    # Left out on a developer's machine, a version is tested elsewhere; left out in CI, nowhere.
    untested = sum(outcome.startswith(NOT_TESTED) for _, outcome, _ in outcomes)
    failed = sum(outcome.startswith(FAILED) for _, outcome, _ in outcomes)
    passed = len(outcomes) - failed - untested
    print(f"{passed} passed, {failed} failed, {untested} not tested")
    return 1 if failed or (untested and os.environ.get("CI")) else 0


if __name__ == "__main__":
    sys.exit(main())
