"""A flow whose process is told to end, from within, when it has come to a certain point."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.task_runners import parts


@contextmanager
def terminated_at(*paths: Path) -> Iterator[None]:
    """Send SIGTERM to this process when some files are there."""

    def end() -> None:
        for path in paths:
            parts.wait_for(path)
        os.kill(os.getpid(), signal.SIGTERM)

    ends = threading.Thread(target=end)
    # Where a flow does not take it, Prefect hands it on to the process, which is that of the tests.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ends.start()
    try:
        yield
    finally:
        ends.join()
        signal.signal(signal.SIGTERM, before)
