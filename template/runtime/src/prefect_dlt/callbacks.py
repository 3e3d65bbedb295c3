"""A collector that logs progress in plain lines and calls back at each point of a run; it knows no Prefect."""

from __future__ import annotations

import copy
import logging
import sys
import threading
import time
from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TextIO, TypeAlias

from dlt.common import logger as dlt_logger
from dlt.common.pipeline import SupportsPipeline
from dlt.common.runtime.collector import LogCollector
from dlt.common.schema import Schema
from dlt.pipeline.trace import PipelineStepTrace, PipelineTrace
from dlt.pipeline.typing import TPipelineStep
from typing_extensions import override

from prefect_dlt.known_secrets import forgotten_afterwards, known_secrets, learn_secrets
from prefect_dlt.pending import pending_lines
from prefect_dlt.progress import STAGES, StageProgress
from prefect_dlt.record import FailedAttempt, RunRecord, Table
from prefect_dlt.redact import redacted_traceback
from prefect_dlt.schema_changes import Columns, SchemaChanges, columns_of, compare_schemas
from prefect_dlt.stop import raise_if_asked_to_stop

logger = logging.getLogger("prefect_dlt")

# Of no collector: dlt copies them, and a lock cannot be copied.
_claiming = threading.Lock()

# Quoted: on Python 3.10 a LoggerAdapter takes no type argument when the program runs.
TLogger: TypeAlias = 'logging.Logger | logging.LoggerAdapter[Any] | TextIO | Literal["stdout", "dlt_logger"]'


@dataclass
class _Run:
    """What a collector knows of the run that it serves; that of no run, by default.

    Attributes:
        pipeline: The pipeline that runs; the lock above guards it.
        record: What is known of the run.
        is_managed: Whether a runner says when it begins and ends.
        alone_with: What was called, where no runner is.
        progress: Counters of the stage that is under way.
        last_trace: dlt's last trace.
        logged_at: When the last line of progress was written, in seconds of the collector's clock.
        error_before: What was being handled when the run began; it is not the run's.
        columns: The columns of all tables when they were last looked at; None before the first stage.
        untold: What has changed since, and nobody was told of.
    """

    pipeline: SupportsPipeline | None = None
    record: RunRecord | None = None
    is_managed: bool = False
    alone_with: TPipelineStep = "run"
    progress: StageProgress | None = None
    last_trace: PipelineTrace | None = None
    logged_at: float = float("-inf")
    error_before: BaseException | None = None
    columns: dict[str, Columns] | None = None
    untold: dict[str, SchemaChanges] = field(default_factory=dict[str, SchemaChanges])


@dataclass
class _Steps:
    """What a collector keeps between steps of a pipeline that are called one by one.

    Attributes:
        pipeline: The pipeline.
        belongs_to: Where the steps run, as `belongs_to` tells.
        record: What is known of all of them.
        columns: The columns of all tables after the last of them.
    """

    pipeline: SupportsPipeline
    belongs_to: Hashable
    record: RunRecord
    columns: dict[str, Columns] | None = None


class CallbackCollector(LogCollector):
    """Log the progress of a pipeline, and call back at each point of its run.

    Pass it as `progress=` to `dlt.pipeline`, and override the callbacks you need. A callback that raises is logged
    with its traceback and costs neither the run nor the next callback. One collector serves one pipeline at a time; a
    pipeline that begins to run while it serves another one gets a copy of it, and reports through that from then on.

    Args:
        log_period: Shortest time between two lines of progress, in seconds.
        logger: Where progress goes: a logger, a text stream, "stdout", or "dlt_logger" for dlt's own; the logger
            `prefect_dlt` by default.
        log_level: Level of the lines of progress.
        clock: Returns the time in seconds; for tests.
    """

    def __init__(
        self,
        log_period: float = 1.0,
        logger: TLogger | None = None,
        log_level: int = logging.INFO,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            log_period,
            logger=logging.getLogger("prefect_dlt") if logger is None else logger,  # type: ignore[arg-type]
            log_level=log_level,
            dump_system_stats=False,
        )
        learn_secrets()  # what was resolved before is forgotten at the end of the next trace
        self._now = clock
        # By names that no subclass takes by accident.
        self.__run = _Run()
        self.__steps: dict[str, _Steps] = {}

    # -- callbacks: override these ------------------------------------------------------------------------------------

    def on_before(self, pipeline: SupportsPipeline) -> None:
        """Called once before a run: before `pipeline.run`, or before all that `runner(...).run` does."""

    def on_after(
        self, pipeline: SupportsPipeline, trace: PipelineTrace | None, exception: BaseException | None
    ) -> None:
        """Called once after a run, with dlt's last trace and the error that ended it, if one did."""

    def on_retry(
        self,
        pipeline: SupportsPipeline,
        trace: PipelineTrace | None,
        retry_attempt: int,
        last_attempt: bool,
        exception: BaseException,
    ) -> None:
        """Called by the runner between two attempts.

        Args:
            pipeline: The pipeline that runs.
            trace: dlt's trace of the attempt that failed.
            retry_attempt: Which retry comes next, counted from 1.
            last_attempt: Whether the retry policy makes no further attempt after that one.
            exception: What the failed attempt raised.
        """

    def before_extract(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None:
        """Called before extract."""

    def after_extract(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None:
        """Called after extract, failed or not; the step is the last one in the trace."""

    def before_normalize(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None:
        """Called before normalize."""

    def after_normalize(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None:
        """Called after normalize, failed or not; the step is the last one in the trace."""

    def before_load(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None:
        """Called before load."""

    def after_load(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None:
        """Called after load, failed or not; the step is the last one in the trace."""

    def on_schema_change(
        self, pipeline: SupportsPipeline, trace: PipelineTrace, schema_name: str, changes: SchemaChanges
    ) -> None:
        """Called after normalize when tables or columns appeared or changed since the run began.

        Called at the end of a run instead for what extract changed when normalize did not get to it.

        Args:
            pipeline: The pipeline that runs.
            trace: dlt's trace of the run so far.
            schema_name: The schema that changed.
            changes: Table name to what is new or different in it: `is_new`, and `columns` by name, each with its `kind`
                ("new", "changed" or "variant"), its `type`, and the type that it `was`.
        """

    @override
    def on_log(self) -> None:
        """Called when a counter moves, at most once a log period, and when a stage ends. Logs the line of progress."""
        if self.__run.progress is not None:
            self.write_line(self.__run.progress.line(self._now()), self.log_level)

    # -- what the runner uses -----------------------------------------------------------------------------------------

    @contextmanager
    def whole_run(self, pipeline: SupportsPipeline, record: RunRecord) -> Generator[None]:
        """Treat all that happens inside as one run: one `on_before`, one `on_after`, one record.

        Args:
            pipeline: The pipeline that runs.
            record: Of the run; whoever calls this keeps it.
        """
        collector = self._claimed_by(pipeline)
        collector.__run.is_managed = True  # noqa: SLF001 - it is one of us
        try:
            with record.until_finished():
                collector._begin(pipeline, record)  # noqa: SLF001
                yield
        finally:
            collector._end(pipeline)  # noqa: SLF001

    def write_line(self, message: str, level: int = logging.INFO) -> None:
        """Write a line to where progress goes; a failure to do so is logged and costs nothing."""
        self._guard(self._write_line, message, level)

    def _write_line(self, message: str, level: int) -> None:
        if self.logger == "dlt_logger":
            # dlt makes its logger when it first reads its configuration.
            self.logger = dlt_logger.LOGGER or "stdout"
        self._log(level, message)

    def report_retry(
        self, pipeline: SupportsPipeline, retry_attempt: int, last_attempt: bool, exception: BaseException
    ) -> None:
        """Call `on_retry` after a failed attempt that is followed by another."""
        self._call(self.on_retry, pipeline, self.__run.last_trace, retry_attempt, last_attempt, exception)

    def report_failure(self, pipeline: SupportsPipeline, attempt: FailedAttempt) -> None:
        """Report an attempt that has failed, the last one too."""
        if self.__run.record is not None:
            self._guard(self.attempt_failed, pipeline, self.__run.record, attempt)

    # -- for collectors built on this one -----------------------------------------------------------------------------

    def belongs_to(self) -> Hashable:
        """Return what a run belongs to; steps called one by one are told in one report while it is the same."""
        return None

    def run_started(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        """A run begins; `record` fills while it goes on."""

    def stage_started(self, pipeline: SupportsPipeline, progress: StageProgress) -> None:
        """A stage begins."""

    def stage_moved(self, progress: StageProgress) -> None:
        """A counter of the stage moved. Called on dlt's own threads, for every batch of rows: it has to be cheap."""

    def stage_ended(
        self, pipeline: SupportsPipeline, record: RunRecord, progress: StageProgress, step: PipelineStepTrace
    ) -> None:
        """A stage ended, well or with an error; the record knows of it already, and of what it changed in schemas."""

    def schema_changed(
        self, pipeline: SupportsPipeline, record: RunRecord, changed: Mapping[str, SchemaChanges]
    ) -> None:
        """Schemas changed; `changed` is what has not been told before, the record has all changes of the run."""

    def attempt_failed(self, pipeline: SupportsPipeline, record: RunRecord, attempt: FailedAttempt) -> None:
        """An attempt failed; another one may follow."""

    def run_ended(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        """A run ended, well or with an error."""

    # -- dlt's side ---------------------------------------------------------------------------------------------------

    @override
    def on_start_trace(self, trace: PipelineTrace, step: TPipelineStep, pipeline: SupportsPipeline) -> None:
        if step not in ("run", *STAGES):
            return
        learn_secrets(pipeline)
        collector = self._claimed_by(pipeline)
        if not collector.__run.is_managed:  # noqa: SLF001 - it is one of us
            collector._begin_alone(pipeline, step)  # noqa: SLF001

    @override
    def on_start_trace_step(self, trace: PipelineTrace, step: TPipelineStep, pipeline: SupportsPipeline) -> None:
        if step not in STAGES:
            return
        if self.__run.record is not None:
            # Known only now: pipeline.run() may be given both.
            self._guard(self.__run.record.describe, pipeline)
        if self.__run.columns is None:
            # Not earlier: a new working directory has no schemas until dlt has fetched them from the destination.
            self.__run.columns = _columns_in(_schemas_of(pipeline))
        self.__run.progress = StageProgress(step, started=self._now())
        self.__run.logged_at = float("-inf")
        self._guard(self.stage_started, pipeline, self.__run.progress)
        self._call(getattr(self, f"before_{step}"), pipeline, trace)

    @override
    def on_end_trace_step(
        self,
        trace: PipelineTrace,
        step: PipelineStepTrace,
        pipeline: SupportsPipeline,
        step_info: Any,
        send_state: bool,
    ) -> None:
        self.__run.last_trace = trace
        record = self.__run.record
        if record is not None:
            record.secrets |= learn_secrets(pipeline)
            record.add_step(step)
        if step.step not in STAGES:
            return
        progress = self.__run.progress or StageProgress(step.step, started=self._now())
        if not step.step_exception:
            progress.finish()
        self._call(self.on_log)
        if record is not None:
            self._guard(self._note_schemas, pipeline, record, step)
            self._guard(self.stage_ended, pipeline, record, progress, step)
            if step.step == "normalize" and not step.step_exception:
                self._tell_schema_changes(pipeline, record)
        self._call(getattr(self, f"after_{step.step}"), pipeline, trace)
        self.__run.progress = None

    @override
    @forgotten_afterwards()  # dlt clears its list next; with this, nobody holds the old one
    def on_end_trace(self, trace: PipelineTrace, pipeline: SupportsPipeline, send_state: bool) -> None:
        self.__run.last_trace = trace
        if self.__run.record is not None:
            self.__run.record.add_trace(trace)
        if self.__run.is_managed or not trace.steps or trace.steps[-1].step != self.__run.alone_with:
            return
        # dlt calls this while the error is on its way out. A signal leaves no mark in the trace, and a run inside an
        # `except` block of the user's finds that block's error here as well, so compare with what was before.
        error = sys.exc_info()[1]
        if self.__run.record is not None:
            self.__run.record.finish(None if error is self.__run.error_before else error)
            self._guard(self._note_only_failure, pipeline, self.__run.record)
        self._end(pipeline)

    @override
    def update(
        self,
        name: str,
        inc: int = 1,
        total: int | None = None,
        inc_total: int | None = None,
        message: str | None = None,
        label: str | None = None,
    ) -> None:
        if self.__run.progress is not None and self.__run.progress.stage == "normalize":
            raise_if_asked_to_stop()
        # dlt shields its trace hooks but not this method: an error here would fail the load.
        try:
            if self.__run.progress is None:
                return
            self.__run.progress.update(name, inc, total, inc_total, label)
            self.stage_moved(self.__run.progress)
            now = self._now()
            if now - self.__run.logged_at >= self.log_period:
                self.__run.logged_at = now
                self._call(self.on_log)
        except Exception as error:  # noqa: BLE001 - no report is worth a load
            logger.warning("Progress of %r could not be counted\n%s", name, self._traceback(error))

    @override
    def _start(self, step: str) -> None:
        if self.__run.progress is None or self.__run.progress.stage == "extract":
            learn_secrets()  # only now does dlt tell which source it extracts
        if self.__run.progress is not None:
            self._guard(self.__run.progress.open)

    @override
    def _stop(self) -> None:
        # dlt opens and closes a stage several times; its last line is logged once, when the step has ended.
        pass

    # -- inside -------------------------------------------------------------------------------------------------------

    def _claimed_by(self, pipeline: SupportsPipeline) -> CallbackCollector:
        """Return the collector that serves this pipeline: this one, or a copy while this one serves another."""
        with _claiming:
            if self.__run.pipeline is None or self.__run.pipeline is pipeline:
                self.__run.pipeline = pipeline
                return self
            twin = copy.deepcopy(self)
            twin.__run.pipeline = pipeline  # noqa: SLF001 - it is one of us
        # dlt asks the pipeline for its collector each time, so from here on all it tells goes to the copy.
        pipeline.collector = twin  # type: ignore[attr-defined]
        return twin

    def _begin(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        self.__run = _Run(pipeline, record, is_managed=self.__run.is_managed, error_before=self.__run.error_before)
        self.__steps.pop(pipeline.pipeline_name, None)
        self._guard(self.run_started, pipeline, record)
        self._call(self.on_before, pipeline)

    def _begin_alone(self, pipeline: SupportsPipeline, step: TPipelineStep) -> None:
        """Begin a run that no runner manages: `pipeline.run`, or one of its steps by itself."""
        self.__run.error_before = sys.exc_info()[1]
        if step == "run":
            self._begin(pipeline, RunRecord.of(pipeline, {}))
            return
        # Steps that are called one by one are told in one report: from extract on, until all is loaded.
        name, belongs_to = pipeline.pipeline_name, self.belongs_to()
        steps = self.__steps.get(name)
        if step == "extract" or steps is None or (steps.pipeline, steps.belongs_to) != (pipeline, belongs_to):
            steps = self.__steps[name] = _Steps(pipeline, belongs_to, RunRecord.of(pipeline, {}))
            steps.record.is_by_steps = True
        self.__run = _Run(
            pipeline, steps.record, alone_with=step, error_before=self.__run.error_before, columns=steps.columns
        )
        steps.record.finished_at = None
        self._guard(self.run_started, pipeline, steps.record)

    def _end(self, pipeline: SupportsPipeline) -> None:
        record, last_trace = self.__run.record, self.__run.last_trace
        try:
            if record is not None:
                self._tell_schema_changes(pipeline, record)
                self._guard(record.describe, pipeline)
                self._guard(self.run_ended, pipeline, record)
                steps = self.__steps.get(pipeline.pipeline_name)
                if steps is not None and steps.record is record:
                    steps.columns = self.__run.columns
                    if self.__run.alone_with == "load" and record.error is None:
                        del self.__steps[pipeline.pipeline_name]
                else:
                    self._call(self.on_after, pipeline, last_trace, record.error)
        finally:
            # Whatever it was, even Ctrl-C in the middle of a report: the next run finds nothing of this one.
            self.__run = _Run()

    def _note_only_failure(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        if record.error is None:
            return
        pending = pending_lines(pipeline)
        step = self.__run.alone_with
        following = f"No further attempt: pipeline.{step}() makes one."
        if pending:
            following += (
                " The next pipeline.run() loads what is pending, and nothing else; prefect_dlt.runner loads that first"
                " and then what it is given."
            )
        of = 1 if step == "run" else None
        self.report_failure(pipeline, record.note_failure(record.error, of, pending, following))

    def _note_schemas(self, pipeline: SupportsPipeline, record: RunRecord, step: PipelineStepTrace) -> None:
        if step.step == "load" and record.tables_known:
            return  # What normalize has left; to load makes no other.
        schemas = _schemas_of(pipeline)
        record.tables_known = _tables_in(schemas)
        if step.step_exception:
            return  # dlt takes back what a failed step did to the schemas.
        before, self.__run.columns = self.__run.columns or {}, _columns_in(schemas)
        for schema_name, changes in compare_schemas(before, self.__run.columns).items():
            record.note_schema_changes(schema_name, changes)
            untold = self.__run.untold.setdefault(schema_name, {})
            for table, change in changes.items():
                # As it is seen from before the run: what normalize adds to a table that extract found is new as well.
                seen = replace(change, is_new=record.schema_changes[schema_name][table].is_new)
                untold[table] = untold[table].then(seen) if table in untold else seen

    def _tell_schema_changes(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        untold, self.__run.untold = self.__run.untold, {}
        if untold:
            self._guard(self.schema_changed, pipeline, record, untold)
        for schema_name, changes in untold.items():
            self._call(self.on_schema_change, pipeline, self.__run.last_trace, schema_name, changes)

    def _call(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            callback(*args)
        except Exception as error:  # noqa: BLE001 - no report is worth a load
            where = f"{type(self).__name__}.{callback.__name__}"
            logger.error("%s raised; the run goes on\n%s", where, self._traceback(error))  # noqa: TRY400 - it is redacted

    def _guard(self, observe: Callable[..., None], *args: Any) -> None:
        try:
            observe(*args)
        except Exception as error:  # noqa: BLE001 - no report is worth a load
            logger.warning("%s could not report; the run goes on\n%s", type(self).__name__, self._traceback(error))

    def _traceback(self, error: Exception) -> str:
        secrets = self.__run.record.secrets if self.__run.record is not None else set[str]()
        return redacted_traceback(error, secrets | known_secrets())

    def __getstate__(self) -> dict[str, Any]:
        # For copies, and for tasks in other processes: settings go along, and neither the state of a run, its secrets
        # among it, nor what only this process has.
        return {**vars(self), "_CallbackCollector__run": _Run(), "_CallbackCollector__steps": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> CallbackCollector:
        # dlt copies the collector with a pipeline. Loggers are shared, and whatever else a subclass has.
        twin = memo[id(self)] = copy.copy(self)
        return twin


def _schemas_of(pipeline: SupportsPipeline) -> dict[str, Schema]:
    """Return the schemas of a pipeline by name; dlt reads each from its file whenever it is asked for one."""
    schemas = getattr(pipeline, "schemas", {})
    return {name: schemas[name] for name in schemas}


def _columns_in(schemas: Mapping[str, Schema]) -> dict[str, Columns]:
    """Return the columns of each schema, dlt's own tables left out."""
    return {name: columns_of(schema.data_tables()) for name, schema in schemas.items()}


def _tables_in(schemas: Mapping[str, Schema]) -> dict[str, Table]:
    """Return the tables of all schemas by name, dlt's own left out."""
    return {
        str(table.get("name")): Table(
            str(table.get("name")), name, table.get("resource"), table.get("parent"), table.get("columns", {})
        )
        for name, schema in schemas.items()
        for table in schema.data_tables()
    }
