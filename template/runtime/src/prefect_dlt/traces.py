"""Store what each attempt of a run did, by a pipeline of its own; as JSON files until that works."""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import dlt
from dlt.common.configuration import inject_section
from dlt.common.configuration.container import Container
from dlt.common.configuration.specs.config_section_context import ConfigSectionContext
from dlt.common.pipeline import PipelineContext
from dlt.common.schema import Schema
from dlt.destinations.exceptions import DatabaseTerminalException
from dlt.destinations.job_client_impl import SqlJobClientBase
from dlt.destinations.sql_client import SqlClientBase
from dlt.extract.source import DltSource
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import trace_files
from prefect_dlt.environment import environment
from prefect_dlt.known_secrets import known_secrets, learn_secrets
from prefect_dlt.lock import one_run_at_a_time
from prefect_dlt.reasons import reason_line
from prefect_dlt.record import RunRecord
from prefect_dlt.redact import redaction
from prefect_dlt.retry import chain, is_stop_request
from prefect_dlt.trace_tables import COLUMNS, Attempt, Phase, Record, attempt_record, column_hints, rows_of

logger = logging.getLogger("prefect_dlt")

SCHEMA_NAME = "prefect_dlt_traces"
"""Name of the dlt schema that the tables are in."""

LONGEST_WAIT = 60.0
"""Seconds to wait at most for other traces to be stored."""

MOST_AT_ONCE = 100
"""Files that are stored by one load."""

# Parts of a source run at the same time, and may make the same tables, or write into the same DuckDB file.
_one_at_a_time = threading.Lock()


def _start_anew() -> None:
    """In a forked child: another thread of the parent's may hold the lock."""
    global _one_at_a_time  # noqa: PLW0603 - a lock that was held while the process was forked stays held in the child
    _one_at_a_time = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


class Traces:
    """Follows the attempts of a pipeline, and stores a trace of each where that is asked for.

    Attributes:
        pipeline: The pipeline.
        folder: Where a trace is kept as a file as long as it is not stored.
    """

    def __init__(self, pipeline: Pipeline, store: bool | Pipeline) -> None:
        self.pipeline = pipeline
        self.folder = trace_files.folder_of(pipeline.working_dir)
        # Only where they go is taken from a pipeline that is given: what it has pending, its state and its collector
        # are not for this.
        self._target = None if store is False else pipeline if store is True else store
        self._own_name = f"_trace_{pipeline.pipeline_name}"
        self._store: tuple[tuple[Any, ...], Pipeline] | None = None
        self._run: UUID | None = None
        self._number = 0
        self._seen: set[str] = set()
        self._has_warned = False

    @property
    def pipeline_name(self) -> str | None:
        """Name of the pipeline that stores the traces; None where they are not stored."""
        return self._own_name if self._target is not None else None

    @property
    def table_name(self) -> str:
        """Name of the table with a row for each attempt."""
        return f"{self.pipeline.pipeline_name}_trace"

    @contextmanager
    def attempt(self, record: RunRecord | None, phase: Phase) -> Generator[None]:
        """Take what happens inside as an attempt: add its steps to the record, and store a trace.

        A failure to store it is a warning, never an error; a request to stop meanwhile is passed on.

        Args:
            record: The record of the run; without one, nothing is noted.
            phase: What the attempt is made for.
        """
        if record is None:
            yield
            return
        if record.id != self._run:
            self._run, self._number, self._has_warned = record.id, 0, False
            self._seen.clear()
        began, failed = datetime.now(timezone.utc), None
        try:
            with trace_files.moved_through(self.pipeline.working_dir):
                yield
        except BaseException as error:
            failed = error
            raise
        finally:
            attempt = self._ended(record, phase, began, failed)
            # A run without data does nothing once the pending data is loaded. And who tells dlt not to trace does not
            # want its traces stored.
            is_told = bool(attempt.steps) or failed is not None
            if self._target is not None and is_told and self.pipeline.config.enable_runtime_trace:
                self._number = attempt.number
                self._tell(attempt, record.secrets)

    def _ended(self, record: RunRecord, phase: Phase, began: datetime, error: BaseException | None) -> Attempt:
        """Return the attempt that has just ended, and add its steps to the record."""
        trace = self.pipeline.last_trace
        # Where no step was made, or none is traced, dlt still hands out the trace of an earlier run. It also adds what
        # normalize() and load() do on their own to the trace before, under its name.
        record.add_trace(trace)
        steps = [
            step
            for step in (trace.steps if trace is not None else ())
            if step.span_id not in self._seen and step.started_at >= record.started_at
        ]
        self._seen |= {step.span_id for step in steps}
        is_of_run = trace is not None and bool(steps) and trace.started_at >= record.started_at
        destination = self.pipeline.destination
        return Attempt(
            transaction_id=trace.transaction_id if trace is not None and is_of_run else record.id.hex,
            number=self._number + 1,
            run_id=str(record.id),
            phase=phase,
            pipeline_name=self.pipeline.pipeline_name,
            destination_name=destination.destination_name if destination else None,
            destination_type=destination.destination_type.rpartition(".")[2] if destination else None,
            dataset_name=self.pipeline.dataset_name,
            started_at=began,
            finished_at=datetime.now(timezone.utc),
            error=error,
            steps=steps,
            # It is set for the process of a run that a worker starts.
            flow_run_id=os.environ.get("PREFECT__FLOW_RUN_ID"),
            environment=environment(),
        )

    def _tell(self, attempt: Attempt, secrets: set[str]) -> None:
        try:
            told = attempt_record(attempt, redaction(secrets | learn_secrets(self.pipeline)))
        except Exception as problem:  # noqa: BLE001 - a loaded run does not fail because of what is told of it
            self._warn(problem, "could not be put together, and is lost")
        else:
            self.store(told, is_stopped=attempt.is_stopped)

    def store(self, record: Record, *, is_stopped: bool = False) -> None:
        """Store an attempt, and what could not be stored before; keep it as a file if that fails.

        Args:
            record: The attempt.
            is_stopped: Whether the program was asked to stop. It is not to wait for a destination then, so the attempt
                is kept as a file, which the next run stores.
        """
        # The file comes first: whatever happens to the process from here on, the attempt is stored at last.
        try:
            path = trace_files.write(self.folder, record)
        except OSError as problem:
            path, where = None, f"could not be kept in {self.folder} either ({problem.strerror or problem})"
        else:
            where = f"is kept in {path}, which the next run stores"
        if is_stopped and path is not None:
            logger.info("The trace of attempt %s %s", record["attempt"], where)
            return
        try:
            with (
                _only_warnings_of_dlt(),
                _same_pipeline_active(),
                _exclusive(Path(self.pipeline.pipelines_dir) / self._own_name),
            ):
                # Whoever had the turn before may have stored it with the other files.
                if path is None or path.exists():
                    self._load([record])
                    if path is not None:
                        trace_files.remove(path)
                where = f"it waits with others in {self.folder}"
                self._load_waiting()
        except BaseException as error:  # noqa: BLE001 - a request to stop may be behind any
            # Whatever state it is in.
            self._store = None
            stop = next(filter(is_stop_request, chain(error, explicit=True)), None)
            if stop is None:
                self._warn(error, where)
                return
            # dlt wraps a request to stop in an ordinary error.
            raise stop from None

    def _warn(self, error: BaseException, where: str) -> None:
        # A destination that is down is so for all attempts of a run, mostly: it is said once.
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        logger.log(
            level,
            "A trace of pipeline %r could not be stored, and %s: %s",
            self.pipeline.pipeline_name,
            where,
            reason_line(error, redaction(known_secrets())),
        )

    # -- by a pipeline of its own ------------------------------------------------------------------------------------

    def own_pipeline(self) -> Pipeline:
        """Return the pipeline that stores the traces; it is then the active one."""
        target = self._target or self.pipeline
        # pipeline.run() may be given another destination or dataset than before.
        key = (target.destination, target.staging, target.dataset_name)
        if self._store is None or self._store[0] != key:
            store = dlt.pipeline(
                pipeline_name=self._own_name,
                pipelines_dir=self.pipeline.pipelines_dir,
                destination=_configured_for(target.pipeline_name, target.destination),
                staging=_configured_for(target.pipeline_name, target.staging),
                dev_mode=False,
            )
            # The layout has made the name already.
            store.config.dataset_name_layout = None
            self._store = key, store
        return self._store[1]

    def _load(self, records: Sequence[Record]) -> None:
        store = self.own_pipeline()
        if store.has_pending_data:
            # It was interrupted, or cannot be loaded. All of it is in files, too.
            store.drop()
            self._store = None
            store = self.own_pipeline()
        # Not run(): it asks the destination for state and schemas first, of which the tables have no need.
        store.extract(self._source(records))
        store.normalize(workers=1)
        dataset_name = (self._target or self.pipeline).dataset_name
        info = store.load(dataset_name=dataset_name, workers=1, raise_on_failed_jobs=True)
        info.raise_on_failed_jobs()

    def _source(self, records: Sequence[Record]) -> DltSource:
        resources = [
            dlt.resource(
                _items(records, name),
                name=self._table(name),
                columns=column_hints(name),
                write_disposition="append",
                max_table_nesting=0,
            )
            for name in COLUMNS
        ]
        return DltSource(Schema(SCHEMA_NAME), SCHEMA_NAME, resources)

    def _table(self, name: str) -> str:
        return f"{self.table_name}__{name}" if name else self.table_name

    def _load_waiting(self) -> None:
        """Store what is in files, oldest first."""
        files = dict[Path, Record]()
        for path in trace_files.waiting(self.folder)[:MOST_AT_ONCE]:
            if (record := _readable(path)) is not None:
                files[path] = record
        if not files:
            return
        records = list(files.values())
        self._take_back(records)
        self._load(records)
        for path in files:
            trace_files.remove(path)
        logger.info(
            "%s traces of pipeline %r that were kept as files are stored", len(files), records[0]["pipeline_name"]
        )

    def _take_back(self, records: Sequence[Record]) -> None:
        """Delete what an interrupted load may have stored of these attempts already."""
        with self.own_pipeline().destination_client() as client:
            if not isinstance(client, SqlJobClientBase):
                # Rows cannot be deleted from files.
                return
            sql, naming = cast("SqlClientBase[Any]", cast("Any", client).sql_client), client.schema.naming
            transaction_id, attempt = (sql.escape_column_name(name) for name in ("transaction_id", "attempt"))
            keys = [f"({transaction_id} = %s AND {attempt} = %s)"] * len(records)
            values = [record[name] for record in records for name in ("transaction_id", "attempt")]
            for name in COLUMNS:
                table = sql.make_qualified_table_name(naming.normalize_tables_path(self._table(name)))
                try:
                    sql.execute_sql(f"DELETE FROM {table} WHERE {' OR '.join(keys)}", *values)  # noqa: S608 - own names
                except DatabaseTerminalException as problem:
                    # Not every destination can delete.
                    logger.debug("Nothing can be deleted from %s (%s)", table, type(problem).__name__)


def _readable(path: Path) -> Record | None:
    try:
        return trace_files.read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        with suppress(OSError):
            aside = trace_files.set_aside(path)
            logger.warning("The trace in %s cannot be read, and is not stored: %s", aside, problem)
        return None


def _items(records: Sequence[Record], name: str) -> Iterator[Any]:
    # The table is made also when there is nothing to put into it.
    yield dlt.mark.materialize_table_schema()
    for record in records:
        yield rows_of(record, name)


def _configured_for(pipeline_name: str, destination: Any) -> Any:
    """Return a destination that finds its configuration where that of this pipeline is, under its name for example."""
    if destination is None:
        return None
    own = copy.copy(destination)
    resolve = own.configuration

    def configuration(initial_config: Any, accept_partial: bool = False) -> Any:
        with inject_section(ConfigSectionContext(pipeline_name=pipeline_name)):
            return resolve(initial_config, accept_partial)

    own.configuration = configuration
    return own


@contextmanager
def _only_warnings_of_dlt() -> Generator[None]:
    """Keep what dlt says of storing a trace out of the log of the run: it reads as if it were about the run's data."""
    ident = threading.get_ident()
    # As dlt names the threads of the pools of a thread.
    pools = f"dlt-pool-{ident}-"

    def passes(record: logging.LogRecord) -> bool:
        is_of_trace = record.thread == ident or (record.threadName or "").startswith(pools)
        return record.levelno >= logging.WARNING or not is_of_trace

    of_dlt = logging.getLogger("dlt")
    of_dlt.addFilter(passes)
    try:
        yield
    finally:
        of_dlt.removeFilter(passes)


@contextmanager
def _same_pipeline_active() -> Generator[None]:
    """Have the same pipeline active afterwards as before, or none."""
    context = Container()[PipelineContext]
    active = cast("Pipeline", context.pipeline()) if context.is_active() else None
    try:
        yield
    finally:
        if active is not None:
            active.activate()
        else:
            context.deactivate()


@contextmanager
def _exclusive(working_dir: Path) -> Generator[None]:
    turn = _one_at_a_time
    if not turn.acquire(timeout=LONGEST_WAIT):
        raise TimeoutError(f"other traces have been being stored for {LONGEST_WAIT:g} s")
    try:
        # Other processes may store traces of the same pipeline.
        with one_run_at_a_time(str(working_dir), timeout=LONGEST_WAIT):
            yield
    finally:
        turn.release()
