"""Run the suite here, and the runtime's part of it on the oldest and the newest versions allowed.

The suite runs, in parts that each take a few minutes, in the environment this program runs in,
which holds the tested versions of `constraints/`. The oldest and the newest each get an environment
of their own, in `.venvs`, with the built wheel. There, what is marked slow is left out: it takes
more than a second or two of CPU, or waits for long, and what other versions could change has a
test that is not marked. A Python that cannot be had is named in the summary, and is a failure when
CI is set.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = "prefect-dlt[duckdb,postgres,sql,demo] @ " + (ROOT / "template" / "runtime").as_uri()
ONE_AT_A_TIME = threading.Lock()
PASSED, FAILED, NOT_TESTED = "passed", "FAILED", "NOT TESTED"

LONGEST = 45 * 60
"""Seconds that a part may take; what hangs, in a test or at the end, is told rather than waited for."""


@dataclass(frozen=True)
class Variant:
    """Versions that the runtime's tests run on, in an environment of their own.

    Attributes:
        python: Version of Python, as `major.minor`.
        resolution: Which of the allowed versions uv takes for direct dependencies.
    """

    python: str
    resolution: str

    @property
    def folder(self) -> Path:
        """Where the environment is made."""
        return ROOT / ".venvs" / f"{self.python}-{self.resolution}"


@dataclass(frozen=True)
class Part:
    """Tests that one pytest runs.

    Attributes:
        title: What is tested, for the summary.
        folders: Where the tests are, in `tests`.
        variant: What they run on; None for the environment this program runs in.
        only: Which of them, as pytest's option `-m` takes it; all by default.
    """

    title: str
    folders: tuple[str, ...]
    variant: Variant | None = None
    only: str = ""


SLOW, NOT_SLOW = "slow", "not slow"
HERE = f"Python {sys.version_info.major}.{sys.version_info.minor}, tested versions"
OLDEST, NEWEST = Variant("3.10", "lowest-direct"), Variant("3.13", "highest")
PARTS = (
    Part(f"template, {HERE}", ("template",)),
    # What waits most, for servers that misbehave and processes that are killed, beside what computes most.
    Part(f"runtime, slow, {HERE}", ("runtime",), only=SLOW),
    Part(f"runtime, {HERE}", ("runtime",), only=NOT_SLOW),
    Part("runtime, oldest Python and oldest dependencies", ("runtime",), OLDEST, NOT_SLOW),
    Part("runtime, newest Python and newest dependencies", ("runtime",), NEWEST, NOT_SLOW),
    Part(f"chaos and docs, {HERE}", ("chaos", "docs")),
    Part(f"task runners, {HERE}", ("task_runners",)),
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
    # Compiled: the tests start many processes, and where Python is told to write no bytecode, each would do it anew.
    install = ["uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", str(variant.folder)]
    versions = ["--resolution", variant.resolution, "--reinstall-package", "prefect-dlt"]
    installed = subprocess.run([*install, *versions, "--group", "tests", RUNTIME], cwd=ROOT, check=False)
    return f"{FAILED}: its dependencies could not be installed" if installed.returncode else None


def run_pytest(environment: Path, folders: tuple[str, ...], options: tuple[str, ...], output: Path) -> str:
    """Run some of the tests with an environment's Python, its output in a file; return how it went."""
    path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
    with output.open("wb") as file:
        try:
            done = subprocess.run(
                [environment / "bin" / "pytest", *options, *(f"tests/{folder}" for folder in folders)],
                cwd=ROOT,
                env={**os.environ, "PATH": path},
                check=False,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=LONGEST,
            )
        except subprocess.TimeoutExpired:
            return f"{FAILED}: pytest did not end within {LONGEST // 60} minutes"
    return PASSED if done.returncode == 0 else f"{FAILED}: pytest ended with {done.returncode}"


def run(part: Part) -> tuple[str, str, float]:
    """Run a part of the tests; print its output in one piece, and return title, outcome and seconds."""
    started = time.monotonic()
    (ROOT / ".venvs").mkdir(exist_ok=True)
    output = ROOT / ".venvs" / f"{PARTS.index(part)}.log"
    output.unlink(missing_ok=True)
    environment = part.variant.folder if part.variant else Path(sys.prefix)
    options = ("-m", part.only) if part.only else ()
    problem = make_environment(part.variant) if part.variant else None
    outcome = problem or run_pytest(environment, part.folders, options, output)
    with ONE_AT_A_TIME:
        heading(part.title)
        print(output.read_text(encoding="utf-8", errors="replace") if output.exists() else outcome, flush=True)
    return part.title, outcome, time.monotonic() - started


def heading(title: str) -> None:
    """Print what comes next."""
    print(f"\n== {title} ==", flush=True)


def main() -> int:
    """Run all parts; return the exit code."""
    left_out = {folder.name for folder in (ROOT / "tests").iterdir() if any(folder.glob("test_*.py"))}
    left_out -= {folder for part in PARTS for folder in part.folders}
    if left_out:
        raise SystemExit(
            f"No part runs the tests in {', '.join(sorted(left_out))}; see PARTS in {Path(__file__).name}."
        )
    # All at once: fewer leave two cores idle, waiting for servers and workers to start, or for the last part.
    with ThreadPoolExecutor(len(PARTS)) as pool:
        outcomes = list(pool.map(run, PARTS))

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
