"""A collector that logs progress in plain lines and calls back at each point of a run; it knows no Prefect."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal, TextIO, TypeAlias

from dlt.common import logger as dlt_logger
from dlt.common.pipeline import SupportsPipeline
from dlt.common.runtime.collector import LogCollector
from dlt.common.schema.typing import TTableSchema
from dlt.pipeline.trace import PipelineStepTrace, PipelineTrace
from dlt.pipeline.typing import TPipelineStep
from typing_extensions import override

from prefect_dlt.progress import STAGES, StageProgress
from prefect_dlt.redact import redacted_traceback, resolved_secrets
from prefect_dlt.report import RunRecord
from prefect_dlt.schema_changes import SchemaChanges, compare_schemas

logger = logging.getLogger("prefect_dlt")

# Quoted: on Python 3.10 a LoggerAdapter takes no type argument when the program runs.
TLogger: TypeAlias = 'logging.Logger | logging.LoggerAdapter[Any] | TextIO | Literal["stdout", "dlt_logger"]'


class CallbackCollector(LogCollector):
    """Log the progress of a pipeline, and call back at each point of its run.

    Pass it as `progress=` to `dlt.pipeline`, and override the callbacks you need. A callback that raises is logged
    with its traceback and costs neither the run nor the next callback. One collector serves one pipeline at a time.

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
        self._now = clock
        self._reset()

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
        """Called after extract or normalize when tables or columns appeared or changed.

        Args:
            pipeline: The pipeline that runs.
            trace: dlt's trace of the run so far.
            schema_name: The schema that changed.
            changes: Table name to the columns that are new or differ, each as dlt describes it.
        """

    @override
    def on_log(self) -> None:
        """Called when a counter moves, at most once a log period, and when a stage ends. Logs the line of progress."""
        if self._progress is not None:
            self.say(self._progress.line(self._now()), self.log_level)

    # -- what the runner uses -----------------------------------------------------------------------------------------

    @contextmanager
    def whole_run(self, pipeline: SupportsPipeline, record: RunRecord) -> Generator[None]:
        """Treat all that happens inside as one run: one `on_before`, one `on_after`, one record.

        Args:
            pipeline: The pipeline that runs.
            record: Of the run; whoever calls this keeps it.
        """
        self._managed = True
        try:
            with record.until_finished():
                self._begin(pipeline, record)
                yield
        finally:
            self._managed = False
            self._end(pipeline)

    def say(self, message: str, level: int = logging.INFO) -> None:
        """Write a line to where progress goes; a failure to do so is logged and costs nothing."""
        self._guard(self._say, message, level)

    def _say(self, message: str, level: int) -> None:
        if self.logger == "dlt_logger":
            # dlt makes its logger when it first reads its configuration.
            self.logger = dlt_logger.LOGGER or "stdout"
        self._log(level, message)

    def retry(
        self, pipeline: SupportsPipeline, retry_attempt: int, last_attempt: bool, exception: BaseException
    ) -> None:
        """Call `on_retry` after a failed attempt that is followed by another."""
        self._call(self.on_retry, pipeline, self._last_trace, retry_attempt, last_attempt, exception)

    # -- for collectors built on this one -----------------------------------------------------------------------------

    def run_started(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        """A run begins; `record` fills while it goes on."""

    def stage_started(self, pipeline: SupportsPipeline, progress: StageProgress) -> None:
        """A stage begins."""

    def stage_moved(self, progress: StageProgress) -> None:
        """A counter of the stage moved. Called on dlt's own threads, for every batch of rows: it has to be cheap."""

    def stage_ended(self, pipeline: SupportsPipeline, progress: StageProgress, step: PipelineStepTrace) -> None:
        """A stage ended, well or with an error."""

    def run_ended(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        """A run ended, well or with an error."""

    # -- dlt's side ---------------------------------------------------------------------------------------------------

    @override
    def on_start_trace(self, trace: PipelineTrace, step: TPipelineStep, pipeline: SupportsPipeline) -> None:
        if step == "run" and not self._managed:
            self._error_before_run = sys.exc_info()[1]
            self._begin(pipeline, RunRecord.of(pipeline, {}))

    @override
    def on_start_trace_step(self, trace: PipelineTrace, step: TPipelineStep, pipeline: SupportsPipeline) -> None:
        if step not in STAGES:
            return
        self._tables_before = _tables_of(pipeline)
        self._progress = StageProgress(step, started=self._now())
        self._logged_at = float("-inf")
        self._guard(self.stage_started, pipeline, self._progress)
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
        self._last_trace = trace
        if self._record is not None:
            self._record.secrets |= resolved_secrets()
        if step.step not in STAGES:
            return
        progress = self._progress or StageProgress(step.step, started=self._now())
        self._call(self.on_log)
        self._guard(self.stage_ended, pipeline, progress, step)
        for schema_name, changes in compare_schemas(self._tables_before, _tables_of(pipeline)).items():
            if self._record is not None:
                self._record.note_schema_changes(schema_name, changes)
            self._call(self.on_schema_change, pipeline, trace, schema_name, changes)
        self._call(getattr(self, f"after_{step.step}"), pipeline, trace)
        self._progress = None

    @override
    def on_end_trace(self, trace: PipelineTrace, pipeline: SupportsPipeline, send_state: bool) -> None:
        self._last_trace = trace
        if self._record is not None:
            self._record.add_trace(trace)
        if trace.steps and trace.steps[-1].step == "run" and not self._managed:
            # dlt calls this while the error is on its way out. A signal leaves no mark in the trace, and a run inside
            # an `except` block of the user's finds that block's error here as well, so compare with what was before.
            error = sys.exc_info()[1]
            if self._record is not None:
                self._record.finish(None if error is self._error_before_run else error)
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
        # dlt shields its trace hooks but not this method: an error here would fail the load.
        try:
            if self._progress is None:
                return
            self._progress.update(name, inc, total, inc_total, label)
            self.stage_moved(self._progress)
            now = self._now()
            if now - self._logged_at >= self.log_period:
                self._logged_at = now
                self._call(self.on_log)
        except Exception as error:  # noqa: BLE001 - no report is worth a load
            logger.warning("Progress of %r could not be counted\n%s", name, self._traceback(error))

    @override
    def _start(self, step: str) -> None:
        if self._progress is not None:
            self._guard(self._progress.open)

    @override
    def _stop(self) -> None:
        # dlt opens and closes a stage several times; its last line is logged once, when the step has ended.
        pass

    # -- inside -------------------------------------------------------------------------------------------------------

    def _begin(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        self._record = record
        self._last_trace = None
        self._guard(self.run_started, pipeline, record)
        self._call(self.on_before, pipeline)

    def _end(self, pipeline: SupportsPipeline) -> None:
        record, self._record = self._record, None
        if record is not None:
            self._guard(self.run_ended, pipeline, record)
            self._call(self.on_after, pipeline, self._last_trace, record.error)

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
        secrets = self._record.secrets if self._record is not None else set[str]()
        return redacted_traceback(error, secrets | resolved_secrets())

    def _reset(self) -> None:
        self._managed = False
        self._record: RunRecord | None = None
        self._progress: StageProgress | None = None
        self._last_trace: PipelineTrace | None = None
        self._logged_at = float("-inf")
        self._error_before_run: BaseException | None = None
        self._tables_before: dict[str, dict[str, TTableSchema]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # For copies, and for tasks in other processes: settings go along, and neither the state of a run, its secrets
        # among it, nor what only this process has.
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin._reset()
        return vars(twin)

    def __deepcopy__(self, memo: dict[int, Any]) -> CallbackCollector:
        # dlt copies the collector with a pipeline. Loggers are shared, and whatever else a subclass has.
        twin = memo[id(self)] = copy.copy(self)
        return twin


def _tables_of(pipeline: SupportsPipeline) -> dict[str, dict[str, TTableSchema]]:
    """Return a copy of the tables of each schema of a pipeline, dlt's own left out."""
    schemas = getattr(pipeline, "schemas", {})
    return {
        name: {table["name"]: copy.deepcopy(table) for table in schemas[name].data_tables(include_incomplete=False)}
        for name in schemas
    }
