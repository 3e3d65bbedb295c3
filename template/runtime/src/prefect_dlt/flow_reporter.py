"""Tell what became of a whole flow: a page in Prefect, and a few lines in the flow's log."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.task_runners import TaskRunner

from prefect_dlt.collector import CLOSE_TIMEOUT
from prefect_dlt.flow_record import FlowRecord
from prefect_dlt.flow_report import flow_report, outcome, short_text
from prefect_dlt.keys import artifact_key
from prefect_dlt.known_secrets import known_secrets
from prefect_dlt.publisher import Draft, Place, Run, publisher, wait_until_sent
from prefect_dlt.redact import redaction

logger = logging.getLogger("prefect_dlt")


@contextmanager
def reported(record: FlowRecord) -> Generator[None]:
    """Tell, when the block has ended in whichever way, what the record knows of the flow run then.

    Nothing that goes wrong with the report costs the flow run anything but the wait for the API, some seconds at most.
    """
    context = FlowRunContext.get()
    if context is not None:
        record.most_at_once = _most_at_once(context.task_runner)
    try:
        yield
    except BaseException as error:
        _tell(record, error)
        raise
    _tell(record, None)


def _most_at_once(task_runner: TaskRunner[Any]) -> int | None:
    """Return how many tasks a task runner runs at a time at most; None where it does not say."""
    # Threads and processes know it; a Dask or Ray cluster may grow.
    most = getattr(task_runner, "_max_workers", None)
    return most if isinstance(most, int) else None


def _tell(record: FlowRecord, error: BaseException | None) -> None:
    try:
        record.finish(error)
        _publish(record)
    except Exception:
        logger.warning("The report about the flow was not written", exc_info=True)


def _publish(record: FlowRecord) -> None:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    safe = redaction(known_secrets())
    level = logging.ERROR if outcome(record) == "failed" else logging.INFO
    get_run_logger().log(level, short_text(record, safe))
    report = flow_report(record, safe, _summaries())
    run, sender, name = Run(context.flow_run.id, None), publisher(), record.pipeline_name or record.flow_name
    sender.put(
        Place(artifact_key(name, report.name), run), Draft("markdown", report.headline, report.page, report.rank)
    )
    for long in report.lists:
        for part, rows in long.parts():
            sender.put(Place(artifact_key(name, part), run), Draft("table", long.headline, rows))
    # Before the parts' own, which are waited for afterwards: it is looked at first.
    wait_until_sent(sender, run, CLOSE_TIMEOUT)


def _summaries() -> str:
    """Return the address in the UI that the key of an artifact is added to; empty where there is no UI."""
    address = get_current_settings().ui_url
    return f"{address.rstrip('/')}/artifacts/key/" if address else ""
