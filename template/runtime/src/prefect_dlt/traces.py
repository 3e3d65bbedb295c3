"""Store dlt's traces of a pipeline, by a pipeline of their own; as JSON files where that fails."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dlt
from dlt.pipeline.pipeline import Pipeline
from dlt.pipeline.trace import PipelineTrace

from prefect_dlt.known_secrets import known_secrets as known_by_now
from prefect_dlt.redact import redact, redacted_traceback
from prefect_dlt.retry import chain, is_stop_request

logger = logging.getLogger("prefect_dlt")

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class TraceStore:
    """Where the traces of one pipeline go.

    Attributes:
        pipeline: The pipeline that stores them.
        table_name: The table they go to.
        folder: Where a trace is kept as a JSON file when it cannot be stored.
    """

    pipeline: Pipeline
    table_name: str
    folder: Path

    @classmethod
    def of(cls, pipeline: Pipeline, store: bool | Pipeline) -> TraceStore | None:
        """Return the store that the runner's `store_trace_info` asks for."""
        if store is False:
            return None
        if store is True:
            store = dlt.pipeline(
                pipeline_name=f"_trace_{pipeline.pipeline_name}",
                pipelines_dir=pipeline.pipelines_dir,
                destination=pipeline.destination,
                staging=pipeline.staging,
                dataset_name=pipeline.dataset_name,
            )
            # dlt.pipeline() makes the new pipeline the active one.
            pipeline.activate()
        return cls(store, f"{pipeline.pipeline_name}_trace", Path(pipeline.working_dir) / "traces")

    @property
    def pipeline_name(self) -> str:
        """Name of the pipeline that stores the traces."""
        return self.pipeline.pipeline_name

    def store(self, trace: PipelineTrace, attempt: int, known_secrets: Iterable[str] = ()) -> None:
        """Store a trace; a failure to do so is a warning, never an error.

        A trace that dlt has extracted but not loaded is kept as a file, and also loaded before the next one.

        Args:
            trace: dlt's trace of an attempt.
            attempt: Number of the attempt in its run, from 1.
            known_secrets: Values that must not be stored.
        """
        active = dlt.current.pipeline()
        secrets = {*known_secrets, *known_by_now()}
        record = trace_record(trace, attempt, secrets)
        try:
            self._load(record)
        except BaseException as error:
            self._keep(record, error, secrets)
            if any(is_stop_request(cause) for cause in chain(error, explicit=True)):
                raise
        finally:
            active.activate()

    def _load(self, record: dict[str, Any]) -> None:
        # Parts of a source that run at the same time may share the pipeline that stores their traces.
        with _one_at_a_time:
            self._load_alone(record)

    def _load_alone(self, record: dict[str, Any]) -> None:
        if self.pipeline.has_pending_data:
            # Not left to run(): it would load what is pending, and leave out what it is given.
            self.pipeline.activate()
            self.pipeline.normalize()
            self.pipeline.load()
        self.pipeline.run([record], table_name=self.table_name, write_disposition="append")

    def _keep(self, record: dict[str, Any], error: BaseException, secrets: set[str]) -> None:
        path = self.folder / f"{record['transaction_id']}_attempt_{record['attempt']}_trace.json"
        problem = redacted_traceback(error, secrets | known_by_now())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record, default=str), encoding="utf-8")
        except OSError as file_error:
            logger.warning("The trace could neither be stored nor kept in %s (%s)\n%s", path, file_error, problem)
        else:
            logger.warning("The trace could not be stored, and is kept in %s\n%s", path, problem)


def trace_record(trace: PipelineTrace, attempt: int, known_secrets: Iterable[str] = ()) -> dict[str, Any]:
    """Return a trace as a row with a fixed shape: the run, and one child row per step; no config values, no secrets.

    Text that does not apply is empty: a column that has never held a value would not exist yet.
    """
    secrets = set(known_secrets)
    return {
        "transaction_id": trace.transaction_id,
        "pipeline_name": trace.pipeline_name,
        "attempt": attempt,
        "started_at": trace.started_at,
        "finished_at": trace.finished_at,
        "steps": [
            {
                "span_id": step.span_id,
                "step": step.step,
                "started_at": step.started_at,
                "finished_at": step.finished_at,
                "state": "failed" if step.step_exception else "completed",
                "exception": redact(step.step_exception or "", secrets),
                "load_ids": ",".join(step.step_info.loads_ids) if step.step_info else "",
            }
            for step in trace.steps
        ],
    }
