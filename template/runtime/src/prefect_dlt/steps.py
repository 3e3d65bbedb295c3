"""What dlt tells of a step that has ended, as rows: resources, tables, files, jobs, tries and seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from dlt.common.metrics import DataWriterMetrics, LoadJobMetrics
from dlt.common.pipeline import ExtractInfo, LoadInfo, NormalizeInfo
from dlt.common.storages.load_package import LoadJobInfo, ParsedLoadJobFileName
from dlt.pipeline.trace import PipelineStepTrace


@dataclass(frozen=True)
class Written:
    """What a stage wrote for one resource or table: rows, files, and the seconds it took to."""

    name: str
    rows: int
    files: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """One job of a load: a file that is loaded into a table.

    Attributes:
        table: The table.
        file: Name of the file.
        state: "loaded", "failed" or "waiting".
        bytes: Size of the file.
        seconds: Time that loading it took; 0 when it is not known.
        message: What a failed job failed with; empty for any other.
    """

    table: str
    file: str
    state: Literal["loaded", "failed", "waiting"]
    bytes: int
    seconds: float
    message: str


def extracted(info: ExtractInfo) -> list[Written]:
    """Return what an extract wrote per resource, dlt's own left out, most rows first."""
    metrics = [each for of_package in info.metrics.values() for each in of_package]
    return _written((each["resource_metrics"] for each in metrics), ())


def normalized(info: NormalizeInfo) -> list[Written]:
    """Return what a normalize wrote per table, dlt's own left out, most rows first."""
    metrics = [each for of_package in info.metrics.values() for each in of_package]
    files = (file.file_path for each in metrics for file in each["job_metrics"].values())
    return _written((each["table_metrics"] for each in metrics), files)


def jobs(info: LoadInfo) -> list[Job]:
    """Return the jobs of a load, dlt's own left out: failed ones first, then by table."""
    metrics = {
        job_id: job for of in info.metrics.values() for each in of for job_id, job in each["job_metrics"].items()
    }
    found = [
        _job(state, job, metrics.get(job.job_file_info.job_id()))
        for package in info.load_packages
        for state, of_state in package.jobs.items()
        for job in of_state
        if not job.job_file_info.table_name.startswith("_dlt")
    ]
    return sorted(found, key=lambda job: (job.state != "failed", job.table, job.file))


def tries(steps: Iterable[PipelineStepTrace]) -> list[int]:
    """Return of each step of a stage which try of the same data it was, from 1.

    A stage that is made again after it went well has other data: first what an earlier run left, for example.
    """
    numbers: list[int] = []
    number = 0
    for step in steps:
        number += 1
        numbers.append(number)
        number = number if step.step_exception else 0
    return numbers


def seconds_of(step: PipelineStepTrace) -> float:
    """Return how long a step took, in seconds."""
    return (step.finished_at - step.started_at).total_seconds() if step.finished_at else 0.0


def _written(of_parts: Iterable[Mapping[str, DataWriterMetrics]], files: Iterable[str]) -> list[Written]:
    written: dict[str, DataWriterMetrics] = {}
    for part in of_parts:
        for name, metrics in part.items():
            written[name] = written[name] + metrics if name in written else metrics
    count = Counter(ParsedLoadJobFileName.parse(file).table_name for file in files)
    rows = [
        Written(name, metrics.items_count, count[name], max(0.0, metrics.last_modified - metrics.created))
        for name, metrics in written.items()
        if not name.startswith("_dlt")
    ]
    return sorted(rows, key=lambda row: (-row.rows, row.name))


def _job(state: str, job: LoadJobInfo, metrics: LoadJobMetrics | None) -> Job:
    # A job that failed for good stays or goes back to the new ones, to be tried again, and keeps its message.
    is_failed = state == "failed_jobs" or bool(job.failed_message)
    ended = metrics.finished_at if metrics is not None else None
    took = (ended - metrics.started_at).total_seconds() if metrics is not None and ended is not None else 0.0
    return Job(
        job.job_file_info.table_name,
        job.job_file_info.file_name(),
        "failed" if is_failed else "loaded" if state == "completed_jobs" else "waiting",
        job.file_size,
        took,
        job.failed_message or "",
    )
