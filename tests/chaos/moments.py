"""When a run is killed: by the clock, or by itself at one of the points where it has just left something behind."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dlt.destinations.impl.duckdb.sql_client import DuckDbSqlClient
from dlt.destinations.impl.postgres.sql_client import Psycopg2SqlClient
from typing_extensions import override

from prefect_dlt import CallbackCollector

EVENTS = ("commit", "file", "step")
KINDS = ("clock", *EVENTS)
PHASES = ("start", "extract", "normalize", "load", "between", "after")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Attributes:
        kind: "clock", at a time; "commit", right after the database has committed; "file", right before a file or
            folder is made, moved or removed; "step", where a step of dlt begins or ends.
        share: How far into the run, from 0 to 1: of its time, its commits, its changes of files, its steps.
    """

    kind: str
    share: float


@dataclass(frozen=True)
class Span:
    """How long a run is that nobody kills.

    Attributes:
        lead: The time until the runner begins, in seconds.
        seconds: The time it takes in all.
        events: How many moments of each kind it has.
    """

    lead: float
    seconds: float
    events: dict[str, int]

    def at(self, moment: Moment) -> float:
        """Return when a moment of the clock is, in seconds after the start of the process."""
        return self.lead + moment.share * (self.seconds - self.lead)

    def nth(self, moment: Moment) -> int:
        """Return which event of its kind a moment is, from 1."""
        return 1 + int(moment.share * self.events[moment.kind])


class Board:
    """What a run tells its parent, in memory that both have: it is there, whenever the run is killed."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._lock = threading.Lock()

    @property
    def phase(self) -> str:
        """What the run is doing."""
        return PHASES[self._memory[0]]

    @phase.setter
    def phase(self, phase: str) -> None:
        self._memory[0] = PHASES.index(phase)

    @property
    def began(self) -> float:
        """When the runner began, by the monotonic clock, which all processes share."""
        return struct.unpack_from("<d", self._memory, 64)[0]

    @began.setter
    def began(self, began: float) -> None:
        struct.pack_into("<d", self._memory, 64, began)

    def events(self) -> dict[str, int]:
        """Return how many events of each kind have been."""
        return dict(zip(EVENTS, struct.unpack_from(f"<{len(EVENTS)}I", self._memory, 8), strict=True))

    def count(self, kind: str) -> int:
        """Count an event; return how many of its kind have been."""
        with self._lock:
            number = self.events()[kind] + 1
            struct.pack_into("<I", self._memory, 8 + 4 * EVENTS.index(kind), number)
            return number


class Watch(CallbackCollector):
    """Tells the board of a run's phases and events, and kills the process at the one that is asked for.

    Args:
        board: Where to tell.
        folder: Where the pipeline works.
        kind: Of which kind the event is that ends the process; None for no end.
        number: Which of them, from 1.
    """

    def __init__(self, board: Board, folder: str, kind: str | None = None, number: int = 0) -> None:
        # What a callback reports and what progress says is of no interest here.
        super().__init__(log_period=float("inf"))
        self._board, self._folder, self._kind, self._number = board, folder, kind, number
        board.phase = "start"
        sys.addaudithook(self._audit)
        for client in (DuckDbSqlClient, Psycopg2SqlClient):
            watch_commits(client, lambda: self.event("commit"))

    def event(self, kind: str) -> None:
        """Count an event, or end the process with it."""
        if self._board.count(kind) == self._number and kind == self._kind:
            os.kill(os.getpid(), signal.SIGKILL)

    def enter(self, phase: str) -> None:
        """Note a phase; its beginning is an event."""
        self._board.phase = phase
        self.event("step")

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        # Called for all that Python does: the names come first, as they are cheap to compare.
        if event == "open":
            path, _, flags = args
            if isinstance(path, str) and path.startswith(self._folder) and flags & WRITES:
                self.event("file")
        elif event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}:
            # A tree is removed by names that are relative to an open folder.
            path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else ""
            if path.startswith(self._folder) or (args[-1] != -1 and not path.startswith("/")):
                self.event("file")

    @override
    def on_before(self, pipeline: Any) -> None:
        self._board.began = time.monotonic()
        self.enter("start")

    @override
    def before_extract(self, pipeline: Any, trace: Any) -> None:
        self.enter("extract")

    @override
    def after_extract(self, pipeline: Any, trace: Any) -> None:
        self.enter("between")

    @override
    def before_normalize(self, pipeline: Any, trace: Any) -> None:
        self.enter("normalize")

    @override
    def after_normalize(self, pipeline: Any, trace: Any) -> None:
        self.enter("between")

    @override
    def before_load(self, pipeline: Any, trace: Any) -> None:
        self.enter("load")

    @override
    def after_load(self, pipeline: Any, trace: Any) -> None:
        self.enter("between")

    @override
    def on_after(self, pipeline: Any, trace: Any, exception: BaseException | None) -> None:
        self.enter("between")


def watch_commits(client: Any, committed: Callable[[], None]) -> None:
    """Call a function whenever one of dlt's clients has had something committed; for the rest of the process."""
    begin, commit, execute = client.begin_transaction, client.commit_transaction, client.execute_query
    inside: set[int] = set()

    @contextlib.contextmanager
    def begin_transaction(self: Any) -> Iterator[Any]:
        inside.add(id(self))
        try:
            with begin(self) as transaction:
                yield transaction
        finally:
            inside.discard(id(self))

    def commit_transaction(self: Any) -> None:
        commit(self)
        committed()

    @contextlib.contextmanager
    def execute_query(self: Any, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with execute(self, query, *args, **kwargs) as cursor:
            # Outside of a transaction, each statement is one.
            if id(self) not in inside and not str(query).lstrip().upper().startswith(("SELECT", "WITH")):
                committed()
            yield cursor

    client.begin_transaction = begin_transaction
    client.commit_transaction = commit_transaction
    client.execute_query = execute_query
