"""What is stored of an attempt: the same few tables and columns whatever the source, without config and secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, cast

from dlt.common.data_types.typing import TDataType
from dlt.common.pipeline import ExtractInfo, LoadInfo, NormalizeInfo
from dlt.common.schema.typing import TColumnSchema
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.trace import PipelineStepTrace

from prefect_dlt.markdown import shortened
from prefect_dlt.progress import STAGES
from prefect_dlt.reasons import reason, reason_in_trace, without_tracebacks
from prefect_dlt.retry import chain, is_stop_request
from prefect_dlt.steps import Job, Written, extracted, jobs, normalized, seconds_of

Phase: TypeAlias = Literal["clean", "pending", "run"]
"""What an attempt was made for: to clean the folder, to load what an earlier run left, or to load what it was given."""

MOST_ROWS = 10_000
"""Rows that one attempt has in one table, at most; failed jobs and tables with many rows come first."""

LONGEST_MESSAGE = 10_000
"""Characters of a message that are stored."""

_Columns: TypeAlias = Mapping[str, tuple[TDataType, bool]]

_KEY: _Columns = {"transaction_id": ("text", False), "attempt": ("bigint", False)}
_PLACE: _Columns = {**_KEY, "position": ("bigint", False)}

# Name to type, and whether it may be null.
_ATTEMPT: _Columns = {
    **_KEY,
    "run_id": ("text", False),
    "pipeline_name": ("text", False),
    "phase": ("text", False),
    "outcome": ("text", False),
    "error_type": ("text", True),
    "error_message": ("text", True),
    "failed_step": ("text", True),
    "started_at": ("timestamp", False),
    "finished_at": ("timestamp", False),
    "seconds": ("double", False),
    "destination_name": ("text", True),
    "destination_type": ("text", True),
    "dataset_name": ("text", True),
    "row_count": ("bigint", False),
    "jobs_loaded": ("bigint", False),
    "jobs_failed": ("bigint", False),
    "jobs_waiting": ("bigint", False),
    "flow_run_id": ("text", True),
    "host": ("text", True),
    "system": ("text", True),
    "python_version": ("text", True),
    "dlt_version": ("text", True),
    "prefect_version": ("text", True),
    "prefect_dlt_version": ("text", True),
}
_STEPS: _Columns = {
    **_PLACE,
    "step": ("text", False),
    "state": ("text", False),
    "started_at": ("timestamp", False),
    "finished_at": ("timestamp", True),
    "seconds": ("double", False),
    "load_ids": ("text", True),
    "error_message": ("text", True),
}
_TABLES: _Columns = {
    **_PLACE,
    "step": ("text", False),
    "name": ("text", False),
    "row_count": ("bigint", False),
    "file_count": ("bigint", True),
    "seconds": ("double", False),
}
_JOBS: _Columns = {
    **_PLACE,
    "load_id": ("text", False),
    "table_name": ("text", False),
    "file_name": ("text", False),
    "state": ("text", False),
    "seconds": ("double", True),
    "file_bytes": ("bigint", False),
    "message": ("text", True),
}

COLUMNS: Mapping[str, _Columns] = {"": _ATTEMPT, "steps": _STEPS, "tables": _TABLES, "jobs": _JOBS}
"""The columns of each table, by what follows the name of the first one: their types, and whether they may be null."""

_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "text": (str,),
    "timestamp": (str,),
    "bigint": (int,),
    "double": (int, float),
}

Record: TypeAlias = dict[str, Any]
"""An attempt as JSON holds it: the columns of its row, and under "steps", "tables" and "jobs" lists of theirs."""


@dataclass(frozen=True)
class Attempt:
    """One attempt of a run.

    Attributes:
        transaction_id: dlt's name for what was done in it; a transaction is never part of two runs.
        number: Which attempt of the run, from 1, whatever it was made for.
        run_id: Tells the run from others.
        phase: What it was made for.
        pipeline_name: Name of the pipeline.
        destination_name: Name of the destination; None where there was none yet.
        destination_type: Its type.
        dataset_name: Where it loads to.
        started_at: When it began.
        finished_at: When it ended.
        error: What it failed with, if it did.
        steps: dlt's steps of this attempt alone, in the order in which they ended.
        flow_run_id: The Prefect flow run of this process, where a worker has started it for one.
        environment: What the process runs on, by the names that `environment.environment` uses.
    """

    transaction_id: str
    number: int
    run_id: str
    phase: Phase
    pipeline_name: str
    destination_name: str | None
    destination_type: str | None
    dataset_name: str | None
    started_at: datetime
    finished_at: datetime
    error: BaseException | None
    steps: Sequence[PipelineStepTrace]
    flow_run_id: str | None
    environment: Mapping[str, str]

    @property
    def is_stopped(self) -> bool:
        """Whether it ended because the program was asked to."""
        return self.error is not None and any(map(is_stop_request, chain(self.error, explicit=True)))


def attempt_record(attempt: Attempt, safe: Callable[[str], str]) -> Record:
    """Return all that is stored of an attempt.

    Args:
        attempt: The attempt.
        safe: Takes the secrets out of a text.
    """
    key = {"transaction_id": attempt.transaction_id, "attempt": attempt.number}
    loaded = [job for step in attempt.steps for job in _jobs(step)]
    # A message is cut last: what is cut may no longer be recognised as a secret.
    error = safe(reason(attempt.error)) if attempt.error is not None else None
    error_type, _, message = error.partition(": ") if error is not None else (None, "", None)
    written = [(step.step, each) for step in attempt.steps for each in _written(step)]
    states = [job.state for _, job in loaded]
    # dlt may be told to go on without what a failed job would have loaded; the runner does not.
    has_failed = attempt.error is not None or "failed" in states
    on = attempt.environment
    return {
        **key,
        "run_id": attempt.run_id,
        "pipeline_name": attempt.pipeline_name,
        "phase": attempt.phase,
        "outcome": "stopped" if attempt.is_stopped else "failed" if has_failed else "completed",
        "error_type": error_type,
        "error_message": _message(message),
        "failed_step": _failed_step(attempt),
        "started_at": attempt.started_at.isoformat(),
        "finished_at": attempt.finished_at.isoformat(),
        "seconds": (attempt.finished_at - attempt.started_at).total_seconds(),
        "destination_name": attempt.destination_name,
        "destination_type": attempt.destination_type,
        "dataset_name": attempt.dataset_name,
        "row_count": sum(each.rows for step, each in written if step == "normalize"),
        "jobs_loaded": states.count("loaded"),
        "jobs_failed": states.count("failed"),
        "jobs_waiting": states.count("waiting"),
        "flow_run_id": attempt.flow_run_id,
        "host": on.get("Host"),
        "system": on.get("System"),
        "python_version": on.get("Python"),
        "dlt_version": on.get("dlt"),
        "prefect_version": on.get("prefect"),
        "prefect_dlt_version": on.get("prefect-dlt"),
        "steps": _rows(key, (_step(step, attempt, safe) for step in attempt.steps)),
        "tables": _rows(key, (_table(step, each) for step, each in written)),
        "jobs": _rows(key, (_job(load_id, job, safe) for load_id, job in loaded)),
    }


def checked_record(record: Any) -> Record:
    """Return what was read from a file as a record, with the columns of this version.

    Raises:
        ValueError: If it is none, or a column is missing or has another type.
    """
    if not isinstance(record, dict):
        raise ValueError(f"no attempt, but {type(record).__name__}")  # noqa: TRY004 - one error for all
    read = cast("Record", record)
    checked: Record = _checked(read, COLUMNS[""])
    for name in ("steps", "tables", "jobs"):
        if not isinstance(rows := read.get(name), list):
            raise ValueError(f"no list {name!r}")  # noqa: TRY004
        checked[name] = [_checked(row, COLUMNS[name]) for row in cast("list[Any]", rows)]
    datetime.fromisoformat(checked["started_at"])
    return checked


def rows_of(record: Record, name: str) -> list[Record]:
    """Return the rows of a record for one of the tables in `COLUMNS`."""
    return record[name] if name else [{column: record[column] for column in COLUMNS[""]}]


def column_hints(name: str) -> dict[str, TColumnSchema]:
    """Return the columns of one of the tables in `COLUMNS` as dlt takes them."""
    return {
        column: {"name": column, "data_type": data_type, "nullable": is_nullable}
        for column, (data_type, is_nullable) in COLUMNS[name].items()
    }


def _checked(row: Any, columns: _Columns) -> Record:
    if not isinstance(row, dict):
        raise ValueError(f"no row, but {type(row).__name__}")  # noqa: TRY004
    of = cast("Record", row)
    for column, (data_type, is_nullable) in columns.items():
        value = of.get(column)
        fits = is_nullable if value is None else isinstance(value, _PYTHON_TYPES[data_type])
        # bool is an int.
        if not fits or isinstance(value, bool):
            raise ValueError(f"{column} is {type(value).__name__}")
    return {column: of.get(column) for column in columns}


def _rows(key: Mapping[str, Any], rows: Iterator[Record]) -> list[Record]:
    return [{**key, "position": position, **row} for position, row in zip(range(1, MOST_ROWS + 1), rows, strict=False)]


def _message(text: str | None) -> str | None:
    return shortened(text, LONGEST_MESSAGE) if text else None


def _failed_step(attempt: Attempt) -> str | None:
    if attempt.error is None:
        return None
    if isinstance(attempt.error, PipelineStepFailed):
        return attempt.error.step
    return next((step.step for step in attempt.steps if step.step_exception and step.step in STAGES), None)


def _step(step: PipelineStepTrace, attempt: Attempt, safe: Callable[[str], str]) -> Record:
    # A request to stop that is no ordinary error passes dlt's trace, which then takes the step for completed.
    was_cut = attempt.is_stopped and step.step_info is None and step.step in (*STAGES, "run")
    message = reason_in_trace(step.exception_traces or (), step.step_exception) if step.step_exception else None
    return {
        "step": step.step,
        "state": "failed" if step.step_exception else "stopped" if was_cut else "completed",
        "started_at": step.started_at.isoformat(),
        "finished_at": step.finished_at.isoformat() if step.finished_at else None,
        "seconds": seconds_of(step),
        "load_ids": ",".join(step.step_info.loads_ids) or None if step.step_info else None,
        "error_message": _message(safe(message)) if message else None,
    }


def _written(step: PipelineStepTrace) -> list[Written]:
    info = step.step_info
    # The step "run" has the information of its load.
    if step.step == "extract" and isinstance(info, ExtractInfo):
        return extracted(info)
    return normalized(info) if step.step == "normalize" and isinstance(info, NormalizeInfo) else []


def _table(step: str, written: Written) -> Record:
    return {
        "step": step,
        "name": written.name,
        "row_count": written.rows,
        # Of an extract dlt does not tell.
        "file_count": written.files if step == "normalize" else None,
        "seconds": written.seconds,
    }


def _jobs(step: PipelineStepTrace) -> list[tuple[str, Job]]:
    """Return the jobs of a load, each with its package; those that an earlier attempt has loaded are left out."""
    info = step.step_info
    if step.step != "load" or not isinstance(info, LoadInfo):
        return []
    # dlt keeps what it knows of a job with the package, for all attempts.
    ended = {
        job_id: job.finished_at
        for of_package in info.metrics.values()
        for metrics in of_package
        for job_id, job in metrics["job_metrics"].items()
    }
    now = {
        job.job_file_info.file_name()
        for package in info.load_packages
        for of_state in package.jobs.values()
        for job in of_state
        if (at := ended.get(job.job_file_info.job_id())) is not None and at >= step.started_at
    }
    return [
        (package.load_id, job)
        for package in info.load_packages
        for job in jobs(info._replace(load_packages=[package]))
        if job.state != "loaded" or job.file in now
    ]


def _job(load_id: str, job: Job, safe: Callable[[str], str]) -> Record:
    return {
        "load_id": load_id,
        "table_name": job.table,
        "file_name": job.file,
        "state": job.state,
        "seconds": job.seconds or None,
        "file_bytes": job.bytes,
        "message": _message(safe(without_tracebacks(job.message))),
    }
