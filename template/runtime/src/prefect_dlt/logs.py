"""Bring what dlt and this package log, on whichever thread, into the log of the Prefect run that it belongs to."""

from __future__ import annotations

import contextvars
import copy
import itertools
import logging
import os
import re
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from uuid import UUID

from dlt.common import logger as dlt_logger
from dlt.common.runtime.run_context import active as active_run_context
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler
from typing_extensions import override

from prefect_dlt.known_secrets import known_secrets, learn_secrets
from prefect_dlt.redact import redact, redacted_traceback

logger = logging.getLogger("prefect_dlt")

RunIds = tuple[UUID | None, UUID | None]
"""Flow run and task run."""

_PLAIN = logging.Formatter("%(message)s")


def forward_dlt_logs(level: int | str | None = None) -> AbstractContextManager[None]:
    """Forward what dlt logs inside a `with` block to the log of the Prefect run that the block is in.

    Use it in the flow or task that runs the pipeline, around the pipeline and its run. `PrefectCollector` does the same
    by itself, at dlt's level, from the beginning of a run to its end. What dlt writes on threads of its own comes too,
    each record once and as a plain message with secrets masked; the terminal keeps its lines. Warnings of this package
    come as well. Outside of a Prefect run the block does nothing.

    Args:
        level: Lowest level of what dlt logs for this run while the block lasts, in the terminal as well: a number or a
            name such as "INFO". By default what dlt is configured to, `RUNTIME__LOG_LEVEL`, or else WARNING.

    Raises:
        ValueError: If there is no level of that name.
    """
    number = (
        logging.NullHandler(level.upper() if isinstance(level, str) else level).level if level is not None else None
    )
    return _Forwarding(number)


class _Forwarding(AbstractContextManager[None]):
    # Not a generator with @contextmanager: that could be used to decorate an async function as well, and do nothing.
    def __init__(self, level: int | None) -> None:
        self._level = level
        self._key: int | None = None

    @override
    def __enter__(self) -> None:
        self._key = start_forwarding(self._level)

    @override
    def __exit__(self, *error: object) -> None:
        stop_forwarding(self._key)


def start_forwarding(level: int | None = None) -> int | None:
    """Begin to forward dlt's records to the run that this is called in, for a pipeline that runs on this thread.

    Never raises. On one thread, what began last counts until it is stopped.

    Args:
        level: Lowest level of the run's records; by default that of the run around it, or else dlt's.

    Returns:
        What to stop it with; None outside of a Prefect run, where nothing begins.
    """
    run_ids = current_run_ids()
    if run_ids is None:
        return None
    try:
        return _forwarder.start(run_ids, level)
    except Exception as error:  # noqa: BLE001 - no log is worth a load
        _warn(error)
        return None


def stop_forwarding(key: int | None) -> None:
    """End what `start_forwarding` began; may be called twice. Never raises."""
    if key is None:
        return
    try:
        _forwarder.stop(key)
    except Exception as error:  # noqa: BLE001 - no log is worth a load
        _warn(error)


def _warn(error: Exception) -> None:
    logger.warning("What dlt logs cannot be forwarded\n%s", redacted_traceback(error, known_secrets()))


def keep_console() -> None:
    """Keep dlt's lines in the terminal, and its format out of Prefect's, when Prefect's handler is on dlt's logger.

    `PREFECT_LOGGING_EXTRA_LOGGERS=dlt` puts it there, and dlt takes the first handler that it finds for its own: it
    then makes none for the terminal, and gives Prefect's, which serves all of Prefect's loggers, a format of its own.
    """
    _give_dlt_a_handler(logging.getLogger("dlt"))


def current_run_ids() -> RunIds | None:
    """Return flow run and task run of the run that this is called in; None outside of one."""
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    flow_run_id = flow.flow_run.id if flow is not None and flow.flow_run is not None else None
    # A flow that is called in a task still has that task's context, which is another flow run's.
    if task is not None and flow_run_id in (None, task.task_run.flow_run_id):
        return task.task_run.flow_run_id, task.task_run.id
    return None if flow_run_id is None else (flow_run_id, None)


@dataclass(repr=False, eq=False)
class _Run:
    """A run whose records are forwarded.

    Attributes:
        key: What it is stopped with.
        owner: Ident of the thread that runs its pipeline; dlt names its own threads after it.
        run_ids: Where its records go.
        level: Lowest level of its records; None for dlt's.
        context: Where threads without a context of their own take Prefect's settings from.
    """

    key: int
    owner: int
    run_ids: RunIds
    level: int | None
    context: contextvars.Context


class _Forwarder(APILogHandler):
    """Sends dlt's records to Prefect's API; it stands first on dlt's logger while there are runs to forward for.

    dlt takes the first handler that it finds, so this one notices when dlt sets its logger up again. It also masks
    records, and marks them as sent, before other handlers see them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys = itertools.count(1)
        self._changing = threading.RLock()
        # Replaced as a whole at each change: records are looked up without the lock.
        self._runs: tuple[_Run, ...] = ()
        self._logger: logging.Logger | None = None
        self._dlt_level = logging.NOTSET
        self._set_level: int | None = None

    def start(self, run_ids: RunIds, level: int | None) -> int | None:
        learn_secrets()
        keep_console()
        # dlt's logger has the name of its run context. Asking for it makes dlt set the logger up, if it has not yet.
        dlts = logging.getLogger(active_run_context().name)
        if dlts is logging.getLogger():
            return None
        around = self._run_of(run_ids)
        if level is None and around is not None:
            level = around.level
        run = _Run(next(self._keys), threading.get_ident(), run_ids, level, contextvars.copy_context())
        with self._changing:
            self._runs = (*self._runs, run)
            self._attach(dlts)
            self._apply_levels()
        return run.key

    def stop(self, key: int) -> None:
        with self._changing:
            self._runs = tuple(run for run in self._runs if run.key != key)
            self._apply_levels()
            if not self._runs:
                self._detach()

    def start_anew(self) -> None:
        """Drop all runs, in a process that was forked from the one they go on in."""
        # The fork has copied the lock as it was at that moment.
        self._changing = threading.RLock()
        self._runs = ()
        self._apply_levels()
        self._detach()

    @override
    def setFormatter(self, fmt: logging.Formatter | None) -> None:
        """Called by dlt when it has just set its level; the format is for the handler that dlt would have found."""
        with self._changing:
            if self._logger is None:
                return
            handler = next(iter(_others(self._logger)), None) or _add_console(self._logger)
            if handler.formatter is None or _is_dlts(handler.formatter):
                handler.setFormatter(fmt)
            self._set_level = None
            self._apply_levels()

    @override
    def format(self, record: logging.LogRecord) -> str:
        # Not by the formatter that it may have been given: dlt's JSON format is given to each handler there is.
        return _PLAIN.format(record)

    @override
    def handle(self, record: logging.LogRecord) -> bool:
        # Without the handler's lock: records do not touch each other, and dlt has locks of its own while it logs.
        self.emit(record)
        return True

    @override
    def flush(self) -> None:
        # At the end of the process Prefect's own handler waits for what is queued; twice would be too long.
        pass

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            run_ids, context = self._place()
            if run_ids is None or not getattr(record, "send_to_api", True):
                return
            # Prefect's own handler, which comes later where the settings ask for it, must not send it a second time.
            record.send_to_api = False
            _mask(record, known_secrets())
            log = copy.copy(record)
            log.flow_run_id, log.task_run_id = run_ids
            log.send_to_api = True
            context.run(super().emit, log)
        except Exception:  # noqa: BLE001, S110 - no log is worth a load, and what logging would print is not masked
            pass

    def _place(self) -> tuple[RunIds | None, contextvars.Context]:
        """Return the run that a record of this thread belongs to, and the context to send it in."""
        run_ids = current_run_ids()
        if run_ids is not None:
            return run_ids, contextvars.copy_context()
        if (run := self._run_of(run_ids)) is not None:
            return run.run_ids, run.context.copy()
        # A thread that nobody is known to own, or the pool of a pipeline that nobody asked for: it may be of another
        # run, or of none.
        return None, contextvars.copy_context()

    def _run_of(self, run_ids: RunIds | None) -> _Run | None:
        """Return the run of this thread: its owner's, or else that of the flow around its task."""
        runs, owner = tuple(reversed(self._runs)), _owner()
        flow_run = (run_ids[0], None) if run_ids is not None else None
        return next((run for run in runs if run.owner == owner), None) or next(
            (run for run in runs if run.run_ids == flow_run), None
        )

    def _is_wanted(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is at the level of its run, when the logger is at the lowest of all."""
        if self._set_level is None:
            return True
        run = self._run_of(current_run_ids())
        return record.levelno >= (self._dlt_level if run is None or run.level is None else run.level)

    def _apply_levels(self) -> None:
        if self._logger is None:
            return
        asked = [run.level for run in self._runs if run.level is not None]
        if asked:
            if self._set_level is None:
                self._dlt_level = self._logger.level
            self._set_level = min(self._dlt_level, *asked)
            self._logger.setLevel(self._set_level)
        elif self._set_level is not None:
            if self._logger.level == self._set_level:
                self._logger.setLevel(self._dlt_level)
            self._set_level = None

    def _attach(self, dlts: logging.Logger) -> None:
        if self._logger is not dlts:
            self._detach()
        self._logger = dlts
        dlts.handlers = [self, *(handler for handler in dlts.handlers if handler is not self)]
        dlts.addFilter(self._is_wanted)
        # What this package warns of belongs to the run as well; Prefect shows no logger but those it is told of.
        logger.addHandler(self)

    def _detach(self) -> None:
        if self._logger is not None:
            self._logger.removeFilter(self._is_wanted)
            self._logger.removeHandler(self)
            logger.removeHandler(self)
            self._logger = None


_forwarder = _Forwarder()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forwarder.start_anew)


def _owner() -> int:
    """Return the ident of the thread that this one works for, as dlt names it, or else its own."""
    name = re.match(r"dlt-pool-(\d+)-", threading.current_thread().name)
    return int(name[1]) if name else threading.get_ident()


def _mask(record: logging.LogRecord, secrets: frozenset[str]) -> None:
    """Mask secrets in a record, for all handlers; one without secrets stays as it is."""
    message = record.getMessage()
    masked = redact(message, secrets)
    if masked != message:
        record.msg, record.args = masked, None
    if record.exc_info and not record.exc_text:
        record.exc_text = _PLAIN.formatException(record.exc_info)
    if record.exc_text:
        masked = redact(record.exc_text, secrets)
        if masked != record.exc_text:
            # Without the error itself, no handler can write its text anew.
            record.exc_text, record.exc_info = masked, None
    if record.stack_info:
        record.stack_info = redact(record.stack_info, secrets)


def _give_dlt_a_handler(dlts: logging.Logger) -> None:
    prefects = [handler for handler in dlts.handlers if isinstance(handler, APILogHandler)]
    taken = [handler for handler in prefects if _is_dlts(handler.formatter)]
    if prefects and not _others(dlts) and (taken or not dlt_logger.is_logging()):
        console = _add_console(dlts)
        if taken:
            console.setFormatter(taken[0].formatter)
    # dlt's JSON format is given to the handlers of all loggers.
    for name in (dlts.name, "prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, APILogHandler) and _is_dlts(handler.formatter):
                handler.setFormatter(_PLAIN)


def _add_console(dlts: logging.Logger) -> logging.Handler:
    """Add the handler that dlt makes for itself when it finds none, before Prefect's."""
    console = logging.StreamHandler()
    first = [handler for handler in dlts.handlers if handler is _forwarder]
    dlts.handlers = [*first, console, *(handler for handler in dlts.handlers if handler is not _forwarder)]
    return console


def _others(dlts: logging.Logger) -> list[logging.Handler]:
    """Return the handlers of a logger that are neither Prefect's nor ours."""
    return [handler for handler in dlts.handlers if not isinstance(handler, APILogHandler)]


def _is_dlts(formatter: logging.Formatter | None) -> bool:
    return type(formatter).__module__.startswith("dlt.")
