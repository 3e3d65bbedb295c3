"""Show a running pipeline in the Prefect UI: live progress, and a summary of the run, as artifacts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dlt.common.pipeline import SupportsPipeline
from dlt.pipeline.trace import PipelineStepTrace
from prefect.events.schemas.events import RelatedResource
from prefect.logging import get_run_logger
from typing_extensions import override

from prefect_dlt.assets import asset_events
from prefect_dlt.callbacks import CallbackCollector, TLogger
from prefect_dlt.deployment import look_up_deployment
from prefect_dlt.emitter import emit, run_resources
from prefect_dlt.environment import environment
from prefect_dlt.events import schema_events
from prefect_dlt.keys import artifact_key
from prefect_dlt.logs import current_run_ids, keep_console, start_forwarding, stop_forwarding
from prefect_dlt.progress import StageProgress
from prefect_dlt.publisher import Draft, Place, Run, publisher
from prefect_dlt.record import FailedAttempt, RunRecord
from prefect_dlt.report import Report, failure_report, schema_report, stage_report, summary
from prefect_dlt.schema_changes import SchemaChanges
from prefect_dlt.usage import UsageMeter

logger = logging.getLogger("prefect_dlt")

CLOSE_TIMEOUT = 5.0
"""Longest wait at the end of a run for Prefect's API to take the last reports, in seconds."""


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
        clock: Returns the time in seconds; for tests.
    """

    def __init__(
        self,
        log_period: float = 1.0,
        logger: TLogger | None = None,
        log_level: int = logging.INFO,
        *,
        close_timeout: float = CLOSE_TIMEOUT,
        assets: bool = True,
        **kwargs: Callable[[], float],
    ) -> None:
        super().__init__(log_period, logger, log_level, **kwargs)
        self._close_timeout = close_timeout
        self._assets = assets
        self._takes_run_logger = logger is None
        keep_console()  # most collectors are made just before dlt makes its logger

    @override
    def run_started(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        self._forwarding = start_forwarding()
        self._run_ids = current_run_ids()
        if self._takes_run_logger:
            self.logger = self._run_logger()
        if self._run_ids is None:
            return
        self._meter = UsageMeter(self._now)
        self._resources = run_resources()
        record.environment |= environment()
        flow_run_id, _ = self._run_ids
        if flow_run_id is not None:
            publisher().ask(partial(look_up_deployment, flow_run_id, record.environment), self._run_ids)

    @override
    def stage_started(self, pipeline: SupportsPipeline, progress: StageProgress) -> None:
        self._key = artifact_key(pipeline.pipeline_name, progress.stage)
        self._put_progress(progress)

    @override
    def stage_moved(self, progress: StageProgress) -> None:
        if self._now() - self._last_put >= self.log_period:
            self._put_progress(progress, live=True)
            if self._meter is not None:
                self._meter.measure_if_due()

    @override
    def stage_ended(
        self, pipeline: SupportsPipeline, record: RunRecord, progress: StageProgress, step: PipelineStepTrace
    ) -> None:
        if self._run_ids is None:
            return
        self._put_progress(progress, failed=step.step_exception is not None)
        self._measure(record)
        self._put(record, stage_report(record, step))

    @override
    def schema_changed(
        self, pipeline: SupportsPipeline, record: RunRecord, changed: Mapping[str, SchemaChanges]
    ) -> None:
        if self._run_ids is None:
            return
        self._put(record, schema_report(record))
        for schema, changes in changed.items():
            self._changed[schema] = {**self._changed.get(schema, {}), **changes}

    @override
    def attempt_failed(self, pipeline: SupportsPipeline, record: RunRecord, attempt: FailedAttempt) -> None:
        if self._run_ids is None:
            return
        self._measure(record)
        self._put(record, failure_report(record, attempt))

    @override
    def run_ended(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        stop_forwarding(self._forwarding)
        if self._run_ids is None:
            return
        self._measure(record)
        self._put(record, summary(record))
        self._guard(self._emit_events, record, self._run_ids)
        sender = publisher()
        unsent = sender.flush(self._close_timeout, self._run_ids)
        if record is not self._by_steps:
            # Steps that are called one by one go on with the same artifacts.
            sender.forget(self._run_ids)
        if unsent:
            logger.warning(
                "Not shown in Prefect: %s (%s). The run is not affected, and it is sent again while this process lives",
                ", ".join(unsent),
                sender.trouble or "no answer",
            )
        self._run_ids = None

    def _emit_events(self, record: RunRecord, run: Run) -> None:
        # Changes come last, when the tables are there to be looked at; of too many events, the first are dropped.
        events = [*(asset_events(record) if self._assets else ()), *schema_events(record, self._changed)]
        self._changed = {}
        emit(events, self._resources, run)

    def _measure(self, record: RunRecord) -> None:
        if self._meter is not None:
            record.usage = self._meter.measure()

    def _put(self, record: RunRecord, report: Report) -> None:
        self._put_draft(
            artifact_key(record.pipeline_name, report.name), Draft("markdown", report.headline, report.page)
        )
        for long in report.lists:
            for name, rows in long.parts():
                self._put_draft(artifact_key(record.pipeline_name, name), Draft("table", long.headline, rows))

    def _put_progress(self, progress: StageProgress, *, failed: bool = False, live: bool = False) -> None:
        if self._run_ids is None:
            return
        now = self._last_put = self._now()
        line = progress.line(now) + (" · failed" if failed else "")
        self._put_draft(self._key, Draft("progress", line, round(progress.percent, 1)), live=live)

    def _put_draft(self, key: str, draft: Draft, *, live: bool = False) -> None:
        if self._run_ids is not None:
            publisher().put(Place(key, *self._run_ids), draft, live=live)

    def _run_logger(self) -> Any:
        if self._run_ids is None:
            return logging.getLogger("prefect_dlt")
        # Prefect keeps the logs of flow runs; for a task outside of one it would warn that it cannot.
        flow_run_id, _ = self._run_ids
        return get_run_logger(send_to_api=flow_run_id is not None)

    @override
    def _reset(self) -> None:
        super()._reset()
        self._forwarding: int | None = None
        self._run_ids: Run | None = None
        self._meter: UsageMeter | None = None
        self._resources: list[RelatedResource] = []
        self._changed: dict[str, SchemaChanges] = {}
        self._key = ""
        self._last_put = float("-inf")
