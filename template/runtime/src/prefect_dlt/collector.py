"""Show a running pipeline in the Prefect UI: live progress, and a summary of the run, as artifacts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dlt.common.pipeline import SupportsPipeline
from dlt.pipeline.trace import PipelineStepTrace
from prefect.events.schemas.events import RelatedResource
from prefect.logging import get_run_logger
from typing_extensions import override

from prefect_dlt.assets import asset_events
from prefect_dlt.callbacks import CallbackCollector, TLogger
from prefect_dlt.deployment import note_names
from prefect_dlt.emitter import emit, run_resources
from prefect_dlt.environment import environment
from prefect_dlt.errors import ConfigurationError
from prefect_dlt.events import schema_events
from prefect_dlt.keys import artifact_key
from prefect_dlt.last_reports import wait_for_last
from prefect_dlt.logs import current_run_ids, keep_console, start_forwarding, stop_forwarding
from prefect_dlt.page import Report
from prefect_dlt.progress import StageProgress
from prefect_dlt.publisher import Draft, Place, Rank, Run, publisher, wait_until_sent
from prefect_dlt.record import FailedAttempt, RunRecord
from prefect_dlt.report import failure_report, summary
from prefect_dlt.schema_changes import SchemaChanges
from prefect_dlt.schema_report import schema_report
from prefect_dlt.stage_report import stage_report
from prefect_dlt.usage import UsageMeter

logger = logging.getLogger("prefect_dlt")

BRIEF_PART = 5.0
"""Seconds that a part of a source takes at most to be told on one page, unless its collector says otherwise.

A page takes Prefect's server some 10 ms of CPU, eight of them as much as a small load."""

CLOSE_TIMEOUT = 5.0
"""Longest wait at the end of a run for Prefect's API to take the last reports, in seconds."""


@dataclass
class _Reporting:
    """What a collector knows of the run that it reports; that of no run, by default.

    Attributes:
        run: Flow run, task run, and which run of a pipeline in them; None outside of Prefect.
        forwarding: What to stop forwarding dlt's log records with.
        meter: Measures CPU and memory.
        resources: The run, as events name it.
        changed: Changes of schemas that no event tells of yet.
        key: Key of the progress artifact of the stage that is under way.
        last_put: When its last state was put, in seconds of the collector's clock.
        held_until: When it is no longer brief, in seconds of the collector's clock; at once by default.
        held: Reports that its summary takes the place of when it is, by key.
    """

    run: Run | None = None
    forwarding: int | None = None
    meter: UsageMeter | None = None
    resources: list[RelatedResource] = field(default_factory=list[RelatedResource])
    changed: dict[str, SchemaChanges] = field(default_factory=dict[str, SchemaChanges])
    key: str = ""
    last_put: float = float("-inf")
    held_until: float = float("-inf")
    held: dict[str, Report] = field(default_factory=dict[str, Report])


class PrefectCollector(CallbackCollector):
    """A `CallbackCollector` that also writes Prefect artifacts.

    In a flow or task run, it keeps one progress artifact per stage up to date while `pipeline.run` or the runner works,
    and ends with a summary of the run. Outside of one it is a quiet log collector. Sending happens on a thread of its
    own: a load neither waits for Prefect's API nor fails with it, but for at most `close_timeout` seconds at the end.

    Args:
        log_period: Shortest time between two lines of progress, and two states of a progress artifact, in seconds.
        logger: Where progress goes; by default the run's logger in a Prefect run, else the logger `prefect_dlt`.
        log_level: Level of the lines of progress.
        close_timeout: Longest wait at the end of a run for the API to take the last reports, in seconds.
        assets: Whether to tell Prefect of each table that was loaded, as an asset that was materialized.
        brief: How long a brief run takes at most, in seconds: one that went well at the first attempt is told on its
            summary alone, which then has what the reports about its stages and its schema say; nothing else of it is
            shown until it is over, or takes longer. By default none is brief, but for the parts of a source that is
            taken apart, of which those up to `BRIEF_PART` seconds are.
        clock: Returns the time in seconds; for tests.

    Raises:
        ConfigurationError: If `brief` is no number of seconds.
    """

    def __init__(
        self,
        log_period: float = 1.0,
        logger: TLogger | None = None,
        log_level: int = logging.INFO,
        *,
        close_timeout: float = CLOSE_TIMEOUT,
        assets: bool = True,
        brief: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(log_period, logger, log_level, clock=clock)
        given: Any = brief
        if given is not None and not (isinstance(given, int | float) and given >= 0):
            raise ConfigurationError("brief", brief, "it is a number of seconds, 0 or more, or None")
        self.brief = brief
        self.__close_timeout = close_timeout
        self.__assets = assets
        self.__takes_run_logger = logger is None
        # By a name that no subclass takes by accident.
        self.__run = _Reporting()
        keep_console()  # most collectors are made just before dlt makes its logger

    @override
    def belongs_to(self) -> Hashable:
        return current_run_ids()

    @override
    def run_started(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        run_ids = current_run_ids()
        # By the record's id, steps that are called one by one are one run.
        run = Run(*run_ids, record.id) if run_ids is not None else None
        self.__run = _Reporting(run, start_forwarding())
        if self.__takes_run_logger:
            self.logger = self._run_logger()
        if run is None:
            return
        if self.brief and not record.is_by_steps:
            self.__run.held_until = self._now() + self.brief
        self.__run.meter = UsageMeter(self._now)
        self.__run.resources = run_resources()
        record.environment = {**record.environment, **environment()}
        if run.flow_run_id is not None and (look_up := note_names(record, run.flow_run_id)) is not None:
            publisher().ask(look_up)

    @override
    def stage_started(self, pipeline: SupportsPipeline, progress: StageProgress) -> None:
        self.__run.key = artifact_key(pipeline.pipeline_name, progress.stage)
        self._put_progress(progress)

    @override
    def stage_moved(self, progress: StageProgress) -> None:
        if self._now() - self.__run.last_put >= self.log_period:
            self._put_progress(progress, live=True)
            if self.__run.meter is not None:
                self.__run.meter.measure_if_due()

    @override
    def stage_ended(
        self, pipeline: SupportsPipeline, record: RunRecord, progress: StageProgress, step: PipelineStepTrace
    ) -> None:
        if self.__run.run is None:
            return
        is_failure = step.step_exception is not None
        # Once it is over, its report says more than a progress of which nobody has seen anything.
        if is_failure or not self._take_back(self.__run.key):
            self._put_progress(progress, failed=is_failure)
        # To look for child processes takes some milliseconds, and the summary of a brief run tells what it used.
        self._measure(record, if_due=self._hold() > 0)
        self._put(record, stage_report(record, step))

    @override
    def schema_changed(
        self, pipeline: SupportsPipeline, record: RunRecord, changed: Mapping[str, SchemaChanges]
    ) -> None:
        if self.__run.run is None:
            return
        self._put(record, schema_report(record))
        for schema, changes in changed.items():
            self.__run.changed[schema] = {**self.__run.changed.get(schema, {}), **changes}

    @override
    def attempt_failed(self, pipeline: SupportsPipeline, record: RunRecord, attempt: FailedAttempt) -> None:
        if self.__run.run is None:
            return
        self._measure(record)
        self._put(record, failure_report(record, attempt))

    @override
    def run_ended(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        stop_forwarding(self.__run.forwarding)
        try:
            if self.__run.run is not None:
                self._send_last(record, self.__run.run)
        finally:
            self.__run = _Reporting()

    def _send_last(self, record: RunRecord, run: Run) -> None:
        self._measure(record)
        is_well = record.error is None and not record.failed_attempts
        told_here = [report for key, report in self.__run.held.items() if is_well and self._take_back(key)]
        self._put(record, summary(record, told_here))
        self._guard(self._emit_events, record, run)
        # Steps that are called one by one go on with the same artifacts.
        wait_for_last(partial(wait_until_sent, publisher(), run, goes_on=record.is_by_steps), self.__close_timeout)

    def _emit_events(self, record: RunRecord, run: Run) -> None:
        # Changes come last, when the tables are there to be looked at; of too many events, the first are dropped.
        events = [*(asset_events(record) if self.__assets else ()), *schema_events(record, self.__run.changed)]
        self.__run.changed = {}
        emit(events, self.__run.resources, run)

    def _measure(self, record: RunRecord, *, if_due: bool = False) -> None:
        if self.__run.meter is not None:
            record.usage = self.__run.meter.measure_if_due() if if_due else self.__run.meter.measure()

    def _hold(self) -> float:
        """Return how many seconds from now the run is brief."""
        return max(0.0, self.__run.held_until - self._now())

    def _take_back(self, key: str) -> bool:
        """Take back what is held under a key; tell whether nothing of it was sent."""
        run = self.__run
        return run.run is not None and self._hold() > 0 and publisher().withdraw(Place(key, run.run))

    def _put(self, record: RunRecord, report: Report) -> None:
        draft = Draft("markdown", report.headline, report.page, report.rank)
        key = artifact_key(record.pipeline_name, report.name)
        self._put_draft(key, draft)
        # The one before, of the same stage, is no longer what waits there.
        self.__run.held.pop(key, None)
        if report.rank is Rank.REPORT and not report.lists:
            self.__run.held[key] = report
        for long in report.lists:
            for name, rows in long.parts():
                self._put_draft(artifact_key(record.pipeline_name, name), Draft("table", long.headline, rows))

    def _put_progress(self, progress: StageProgress, *, failed: bool = False, live: bool = False) -> None:
        if self.__run.run is None:
            return
        now = self.__run.last_put = self._now()
        line = progress.line(now) + (" · failed" if failed else "")
        self._put_draft(self.__run.key, Draft("progress", line, round(progress.percent, 1), Rank.PROGRESS), live=live)

    def _put_draft(self, key: str, draft: Draft, *, live: bool = False) -> None:
        if self.__run.run is not None:
            hold = self._hold() if draft.rank in (Rank.REPORT, Rank.PROGRESS) else 0.0
            publisher().put(Place(key, self.__run.run), draft, live=live, hold=hold)

    def _run_logger(self) -> Any:
        if self.__run.run is None:
            return logging.getLogger("prefect_dlt")
        # Prefect keeps the logs of flow runs; for a task outside of one it would warn that it cannot.
        return get_run_logger(send_to_api=self.__run.run.flow_run_id is not None)

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_PrefectCollector__run": _Reporting()}
