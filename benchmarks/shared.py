"""What benchmarks have in common: a Prefect server, an environment of their own, and how figures are told."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

Figures = dict[str, Any]


@contextlib.contextmanager
def server(home: Path) -> Generator[str]:
    """Run a real Prefect server; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment(home), stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    try:
        deadline = time.monotonic() + 600
        while not _is_healthy(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The Prefect server did not start:\n{(home / 'server.log').read_text()}")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _is_healthy(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
        return answer.status == 200  # noqa: PLR2004 - HTTP's OK
    return False


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process that measures: a Prefect of its own, and no telemetry."""
    own = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "RUNTIME__DLTHUB_TELEMETRY": "false",
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**others, **own, **more}


def machine() -> dict[str, Any]:
    """Return what figures depend on: versions, system and number of cores."""
    versions = {name: version(name) for name in ("prefect-dlt", "dlt", "prefect", "duckdb")}
    return {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count(), **versions}


def peak_memory() -> float:
    """Return the largest memory that this process has had, in MiB."""
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def run_child(program: str, arguments: list[str], home: Path, **more: str) -> Figures:
    """Run one variant in a process and a folder of its own; return the figures that it wrote.

    Args:
        program: The file of the benchmark.
        arguments: What it is told to do.
        home: Where the folder is made.
        **more: What is set in its environment besides.
    """
    with tempfile.TemporaryDirectory(dir=home) as folder:
        own = environment(home, PYTHONPATH=str(ROOT), DLT_DATA_DIR=folder, **more)
        began = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, program, *arguments], cwd=folder, env=own, check=False, capture_output=True, text=True
        )
        if ended.returncode:
            raise RuntimeError(f"{' '.join(arguments)} failed:\n{ended.stdout[-2_000:]}\n{ended.stderr[-4_000:]}")
        figures: Figures = json.loads((Path(folder) / "figures.json").read_text())
        figures["process"] = time.perf_counter() - began
        return figures


def in_turn(rounds: int, names: list[Any]) -> Iterator[tuple[int, Any]]:
    """Yield each name once a round, the warm-up is round 0; what changes with time meets all alike."""
    for number in range(rounds + 1):
        turn = number % len(names)
        yield from ((number, name) for name in names[turn:] + names[:turn])


def show(number: int, name: str, figures: Figures) -> None:
    """Print the numbers of one run."""
    print(f"{f'round {number}' if number else 'warm-up':8} {name:24} {told(figures)}", flush=True)


def send_reports_through(url: str) -> None:
    """Let publishers, and nothing else of this process, use another API."""
    from prefect.context import SettingsContext, get_settings_context

    from prefect_dlt import publisher as module

    def settings() -> SettingsContext:
        context = get_settings_context()
        api = context.settings.api.model_copy(update={"url": url})
        return SettingsContext(profile=context.profile, settings=context.settings.model_copy(update={"api": api}))

    module.get_settings_context = settings  # pyright: ignore[reportPrivateImportUsage]


def spread(values: list[float], digits: int) -> str:
    """Return minimum, median and maximum."""
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))


def told(figures: Figures) -> str:
    """Return the numbers of one run in a line."""
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items() if isinstance(value, int | float))


def print_aims(aims: list[Figures]) -> bool:
    """Print one line for each aim; return whether all are met."""
    for aim in aims:
        verdict = "met" if aim["met"] else "short"
        print(f"{verdict:6}{aim['name']:44}{aim['figure']:>10.2f} {aim['unit']}, aim {aim['aim']}")
    return all(aim["met"] for aim in aims)
