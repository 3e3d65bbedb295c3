"""Show a running pipeline in the Prefect UI: live progress, and a summary of the run, as artifacts."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from uuid import UUID

from dlt.common.pipeline import SupportsPipeline
from dlt.pipeline.trace import PipelineStepTrace
from prefect.logging import get_run_logger
from typing_extensions import override

from prefect_dlt.callbacks import CallbackCollector, TLogger
from prefect_dlt.logs import current_run_ids, keep_console, start_forwarding, stop_forwarding
from prefect_dlt.progress import StageProgress
from prefect_dlt.publisher import Draft, Place, publisher
from prefect_dlt.report import RunRecord, headline, summary

LONGEST_KEY = 59
"""Characters of an artifact's key."""

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
        clock: Returns the time in seconds; for tests.
    """

    def __init__(
        self,
        log_period: float = 1.0,
        logger: TLogger | None = None,
        log_level: int = logging.INFO,
        *,
        close_timeout: float = CLOSE_TIMEOUT,
        **kwargs: Callable[[], float],
    ) -> None:
        super().__init__(log_period, logger, log_level, **kwargs)
        self._close_timeout = close_timeout
        self._takes_run_logger = logger is None
        keep_console()  # most collectors are made just before dlt makes its logger

    @override
    def run_started(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        self._forwarding = start_forwarding(secrets=record.secrets)
        self._run_ids = current_run_ids()
        if not self._takes_run_logger:
            return
        if self._run_ids is None:
            self.logger = logging.getLogger("prefect_dlt")
        else:
            # Prefect keeps the logs of flow runs; for a task outside of one it would warn that it cannot.
            flow_run_id, _ = self._run_ids
            self.logger = get_run_logger(send_to_api=flow_run_id is not None)  # type: ignore[assignment]

    @override
    def stage_started(self, pipeline: SupportsPipeline, progress: StageProgress) -> None:
        self._key = artifact_key(pipeline.pipeline_name, progress.stage)
        self._put_progress(progress)

    @override
    def stage_moved(self, progress: StageProgress) -> None:
        now = self._now()
        if now - self._last_put >= self.log_period:
            self._put_progress(progress)

    @override
    def stage_ended(self, pipeline: SupportsPipeline, progress: StageProgress, step: PipelineStepTrace) -> None:
        self._put_progress(progress, failed=step.step_exception is not None)

    @override
    def run_ended(self, pipeline: SupportsPipeline, record: RunRecord) -> None:
        stop_forwarding(self._forwarding)
        if self._run_ids is None:
            return
        place = Place(artifact_key(pipeline.pipeline_name, "summary"), *self._run_ids)
        draft = Draft("markdown", headline(record), summary(record))
        sender = publisher()
        sender.put(place, draft)
        if sender.flush(self._close_timeout):
            sender.forget(*self._run_ids)
        self._run_ids = None

    def _put_progress(self, progress: StageProgress, failed: bool = False) -> None:
        if self._run_ids is None:
            return
        now = self._last_put = self._now()
        line = progress.line(now) + (" · failed" if failed else "")
        publisher().put(Place(self._key, *self._run_ids), Draft("progress", line, round(progress.percent, 1)))

    @override
    def _reset(self) -> None:
        super()._reset()
        self._forwarding: int | None = None
        self._run_ids: tuple[UUID | None, UUID | None] | None = None
        self._key = ""
        self._last_put = float("-inf")


def artifact_key(*names: str) -> str:
    """Join names into a key that Prefect accepts: lower-case letters, digits and dashes, below 60 characters.

    Underscores become dashes. A name that holds anything but small letters, digits and underscores, a dash for example,
    gets a digest of the original besides, so that no two names share a key; so does one that is too long.
    """
    joined = "_".join(names)
    key = re.sub(r"[^a-z0-9]", "-", joined.lower())
    if re.fullmatch(r"[a-z0-9][a-z0-9_]*[a-z0-9]", joined) and len(key) <= LONGEST_KEY:
        return key
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:8]
    return f"{key[: LONGEST_KEY - 9].strip('-')}-{digest}".strip("-")
