"""A naming convention that notes the worker processes it is used in, importable from any of them."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from dlt.common.normalizers.naming.snake_case import NamingConvention as SnakeCase

FOLDER = "NOTED_PROCESSES"
"""The environment variable that says in which folder."""

EXPECTED = "EXPECTED_PROCESSES"
"""The environment variable that says how many there have to be before any of them goes on."""


class NamingConvention(SnakeCase):
    """Snake case, with a file for each worker process, called by its id."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if multiprocessing.parent_process() is None:
            return
        folder, give_up = Path(os.environ[FOLDER]), time.monotonic() + 60
        (folder / str(os.getpid())).touch()
        # Else one of them may have done everything before another has started.
        while len(list(folder.iterdir())) < int(os.environ[EXPECTED]) and time.monotonic() < give_up:
            time.sleep(0.05)
