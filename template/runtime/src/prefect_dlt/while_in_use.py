"""Change something of the process for as long as any of its threads asks for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


class WhileInUse:
    """A change of the process that the first user makes, and the last one to leave takes back.

    Args:
        change: Makes the change, and returns what takes it back.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._users = 0
        self._take_back: Callable[[], None] | None = None
        if hasattr(os, "register_at_fork"):
            # A fork copies the lock as it was at that moment.
            os.register_at_fork(after_in_child=self._start_anew)

    @contextmanager
    def used(self) -> Generator[None]:
        """Have the change made inside, by whichever thread came first."""
        with self._lock:
            if not self._users:
                self._take_back = self._change()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._take_back is not None:
                    self._take_back()

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
