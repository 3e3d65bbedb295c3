"""Prefect's database, migrated once: on an empty one a server spends half of its start on migrating it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path


def migrated(folder: Path) -> Path:
    """Return a migrated database, to be copied; it is made when this version of Prefect has none in the folder yet."""
    database = folder / f"{version('prefect')}.db"
    with (folder / "lock").open("w") as lock:
        # Several pytests may need it at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            with tempfile.TemporaryDirectory(dir=folder) as home:
                subprocess.run(
                    [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"],
                    env={**os.environ, "PREFECT_HOME": home},
                    check=True,
                    capture_output=True,
                )
                (Path(home) / "prefect.db").rename(database)
    return database
