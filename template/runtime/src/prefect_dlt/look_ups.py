"""Look up at Prefect's API what runs want to know, on a thread that no report waits for."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable

from prefect.client.orchestration import SyncPrefectClient
from prefect.context import SettingsContext

logger = logging.getLogger("prefect_dlt")

MOST_WAITING = 100
"""Look-ups that wait at most; beyond that, a new one is not taken."""

LookUp = Callable[[SyncPrefectClient], None]
"""Reads from the API and keeps what it learns; it may not write."""


class LookUps:
    """Calls look-ups one after the other, once each, on a thread that lives as long as any wait.

    Args:
        connect: Returns the client that they are called with.
        settings: Prefect's settings that the thread has.
    """

    def __init__(self, connect: Callable[[], SyncPrefectClient], settings: SettingsContext) -> None:
        self._connect = connect
        self._settings = settings
        self._waiting: deque[LookUp] = deque(maxlen=MOST_WAITING)
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self, look_up: LookUp) -> None:
        """Take a look-up; returns at once. When it fails, a line of debug says so, and nothing else."""
        with self._changing:
            if len(self._waiting) == MOST_WAITING:
                return
            self._waiting.append(look_up)
            if self._thread is None:
                # Not in the context of the run that asks: that would keep it for as long as the thread lives.
                thread = threading.Thread(
                    target=contextvars.Context().run, args=(self._work,), name="prefect-dlt-look-up", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:
                    # At the end of the process no thread can be started.
                    self._waiting.clear()
                else:
                    self._thread = thread

    def close(self, timeout: float) -> None:
        """Drop what waits, and wait for the look-up that is under way, at most `timeout` seconds."""
        with self._changing:
            self._waiting.clear()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _work(self) -> None:
        with self._settings:
            while True:
                with self._changing:
                    if not self._waiting:
                        self._thread = None
                        return
                    look_up = self._waiting.popleft()
                try:
                    look_up(self._connect())
                except Exception:
                    logger.debug("A look-up at Prefect's API failed", exc_info=True)
