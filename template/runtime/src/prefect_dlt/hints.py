"""What to type at a terminal, as errors and log lines tell it."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

PROGRAM = "prefect-dlt"
"""What the command of the package is called."""


def command(verb: str, pipeline_name: str, folder: Path) -> str:
    """Return the command about a pipeline, or about something that was put aside of it, as it is typed."""
    pipelines_dir, name = (folder.parents[1], folder.name) if verb == "restore" else (folder.parent, "")
    words = [_program(), verb, "--pipelines-dir", str(pipelines_dir), pipeline_name, name]
    return shlex.join(word for word in words if word)


def _program() -> str:
    """Return what to type for the command: where its environment is not active, the path of it."""
    # Where Python is embedded, it has no path of its own.
    path = Path(sys.executable).parent / PROGRAM if sys.executable else None
    return str(path) if path is not None and path.exists() and not shutil.which(PROGRAM) else PROGRAM
