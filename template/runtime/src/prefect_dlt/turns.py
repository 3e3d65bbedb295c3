"""Processes that load into one DuckDB file take turns, since DuckDB lets one of them have it open at a time.

A process has its turn from when the first connection of its pipelines is opened to when the last one is closed, and for
the whole of a load step. Between them, while it extracts and normalises, others have theirs.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dlt.pipeline.pipeline import Pipeline
from fasteners import InterProcessLock  # pyright: ignore[reportMissingTypeStubs]

from prefect_dlt.stop import pause

logger = logging.getLogger("prefect_dlt")

POLL_SECONDS = 0.05
"""Pause between two looks at a lock that another process holds."""

TOLD_AFTER = 5.0
"""Seconds after which it is logged that a turn is waited for."""


@dataclass(eq=False)
class _Turn:
    """The turn of this process with one database.

    Attributes:
        path: The database.
        lock: What other processes wait for.
        users: How many pipelines may ask for it at present.
        holders: How many connections and load steps hold it at present.
        anchor: A connection that is open as long: the last one to close detaches the file under the next one's feet.
    """

    path: Path
    lock: InterProcessLock
    users: int = 0
    holders: int = 0
    anchor: Any = None


# A lock of the operating system is one of the whole process. The guard is held while a lock file is opened and closed
# besides: closing it anywhere in the process would give up the lock.
_guard = threading.Lock()
_turns: dict[str, _Turn] = {}


@dataclass(eq=False)
class _Borrowed:
    """How often a pool of connections holds a turn."""

    turn: _Turn
    count: int = 0


_thrown_away: deque[_Borrowed] = deque()
"""Of pools that are gone with connections that nobody has returned; python may come across them at any moment."""


def database_of(pipeline: Pipeline) -> Path | None:
    """Return the DuckDB file that a pipeline loads into; None where it is none, or nothing that is shared."""
    if not pipeline.destination or not pipeline.destination.destination_type.endswith(".duckdb"):
        return None
    credentials: Any = pipeline.destination_client().config.credentials
    # What somebody else has opened is theirs to share, and the others are no files.
    if credentials.external_conn() is not None or str(credentials.database).startswith((":", "md:")):
        return None
    return Path(os.path.realpath(credentials.database))


@contextmanager
def taking_turns(pipeline: Pipeline) -> Generator[None]:
    """Have a pipeline connect to its DuckDB file, inside, only while no other process does that takes turns as well.

    Whatever connects to that file through dlt in this process waits for the turn: the load step of this pipeline as a
    whole, all else for as long as it is connected. Where a pipeline loads elsewhere, nothing is waited for.

    Args:
        pipeline: The pipeline.

    While it waits for its turn it raises dlt's `SignalReceivedException` when pipelines are asked to stop.
    """
    database = database_of(pipeline)
    if database is None:
        yield
        return
    turn = _begin(database)
    try:
        with around_load(pipeline, lambda: _held(turn)):
            yield
    finally:
        _end(turn)


@contextmanager
def around_load(pipeline: Pipeline, around: Callable[[], AbstractContextManager[None]]) -> Generator[None]:
    """Have each load step of a pipeline, inside, run within what `around` returns; `pipeline.run` makes one as well."""
    load, before = pipeline.load, vars(pipeline).get("load")

    @functools.wraps(load)
    def load_within(*args: Any, **kwargs: Any) -> Any:
        with around():
            return load(*args, **kwargs)

    vars(pipeline)["load"] = load_within
    try:
        yield
    finally:
        del vars(pipeline)["load"]
        if before is not None:
            vars(pipeline)["load"] = before


@contextmanager
def _held(turn: _Turn) -> Generator[None]:
    _wait(turn)
    try:
        yield
    finally:
        with _guard:
            _give_up(turn)


def _begin(database: Path) -> _Turn:
    with _guard:
        turn = _turns.get(str(database))
        if turn is None:
            # Beside the database, where every process finds it.
            lock = InterProcessLock(database.with_name(f".{database.name}.turn.lock"))
            turn = _turns[str(database)] = _Turn(database, lock)
        if not any(each.users for each in _turns.values()):
            _Connections.watch()
        turn.users += 1
        return turn


def _end(turn: _Turn) -> None:
    with _guard:
        _clear_away()
        turn.users -= 1
        if not any(each.users for each in _turns.values()):
            _Connections.leave_alone()


def _wait(turn: _Turn, borrowed: _Borrowed | None = None) -> None:
    began, is_told = time.monotonic(), False
    while not _take(turn, borrowed):
        if not is_told and time.monotonic() - began > TOLD_AFTER:
            is_told = True
            logger.info("Another process loads into %s, and this one waits for its turn", turn.path)
        pause(POLL_SECONDS)


def _take(turn: _Turn, borrowed: _Borrowed | None = None) -> bool:
    with _guard:
        _clear_away()
        if not turn.holders and not _take_lock(turn):
            return False
        turn.holders += 1
        if borrowed is not None:
            borrowed.count += 1
        return True


def _take_lock(turn: _Turn) -> bool:
    try:
        is_taken = turn.lock.acquire(blocking=False)
    except (OSError, RuntimeError) as error:  # RuntimeError is what the library makes of an OSError
        # Some file systems have no locks. DuckDB itself then says that it cannot open the file.
        logger.warning("Processes that load into %s cannot take turns: %s", turn.path, error)
        is_taken = True
    if is_taken:
        # What is wrong with the file, the connection says that is made for it.
        with suppress(Exception):
            turn.anchor = importlib.import_module("duckdb").connect(str(turn.path))
    elif turn.lock.lockfile is not None:
        turn.lock.lockfile.close()
    return is_taken


def _give_up(turn: _Turn, times: int = 1) -> None:
    # None in a child that was forked meanwhile: the turn is the parent's.
    if not times or not turn.holders:
        return
    turn.holders -= times
    if turn.holders:
        return
    if turn.anchor is not None:
        turn.anchor.close()
        turn.anchor = None
    if turn.lock.acquired:
        turn.lock.release()


def _give_back(borrowed: _Borrowed, times: int) -> None:
    borrowed.count -= times
    _give_up(borrowed.turn, times)


def _clear_away() -> None:
    while _thrown_away:
        borrowed = _thrown_away.popleft()
        _give_back(borrowed, borrowed.count)


class _Connections:
    """What dlt's connections to DuckDB do besides while there are pipelines that take turns: hold the turn."""

    originals: ClassVar[tuple[Callable[..., Any], Callable[..., Any]] | None] = None
    borrowed: ClassVar[weakref.WeakKeyDictionary[Any, _Borrowed]] = weakref.WeakKeyDictionary()

    @classmethod
    def watch(cls) -> None:
        pool = importlib.import_module("dlt.destinations.impl.duckdb.configuration").DuckDbConnectionPool
        cls.originals = borrow_conn, return_conn = pool.borrow_conn, pool.return_conn

        @functools.wraps(borrow_conn)
        def borrow_in_turn(self: Any, *args: Any, **kwargs: Any) -> Any:
            borrowed = cls.of(self)
            if borrowed is None:
                return borrow_conn(self, *args, **kwargs)
            _wait(borrowed.turn, borrowed)
            try:
                return borrow_conn(self, *args, **kwargs)
            except BaseException:
                with _guard:
                    _give_back(borrowed, 1)
                raise

        @functools.wraps(return_conn)
        def return_and_give_up(self: Any, *args: Any, **kwargs: Any) -> Any:
            left = return_conn(self, *args, **kwargs)
            borrowed = cls.borrowed.get(self)
            # Not with each of them: the connection itself is closed with the last one.
            if borrowed is not None and not left:
                with _guard:
                    _give_back(borrowed, borrowed.count)
            return left

        pool.borrow_conn, pool.return_conn = borrow_in_turn, return_and_give_up

    @classmethod
    def of(cls, pool: Any) -> _Borrowed | None:
        credentials = pool.credentials
        turn = _turns.get(os.path.realpath(str(getattr(credentials, "database", ""))))
        if turn is None or credentials.external_conn() is not None:
            return None
        with _guard:
            borrowed = cls.borrowed.get(pool)
            if borrowed is None:
                borrowed = cls.borrowed[pool] = _Borrowed(turn)
                # A connection that nobody has returned is closed when its pool is thrown away.
                weakref.finalize(pool, _thrown_away.append, borrowed)
        return borrowed

    @classmethod
    def leave_alone(cls) -> None:
        pool = importlib.import_module("dlt.destinations.impl.duckdb.configuration").DuckDbConnectionPool
        if cls.originals is not None:
            pool.borrow_conn, pool.return_conn = cls.originals
            cls.originals = None


_of_the_parent: list[Any] = []


def _forget() -> None:
    """In a forked child: it holds none of its parent's turns, and another thread of the parent's may hold the guard."""
    global _guard  # noqa: PLW0603 - a lock that was held while the process was forked stays held in the child
    _guard = threading.Lock()
    for turn in _turns.values():
        # The connection is the parent's, and to throw it away would end this process.
        _of_the_parent.append(turn.anchor)
        turn.holders, turn.anchor = 0, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
