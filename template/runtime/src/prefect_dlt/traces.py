"""Store dlt's traces of a pipeline, by a pipeline of their own; as JSON files where that fails."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dlt
from dlt.pipeline.pipeline import Pipeline
from dlt.pipeline.trace import PipelineTrace

from prefect_dlt.redact import redact

logger = logging.getLogger("prefect_dlt")


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
                dataset_name=pipeline.dataset_name,
            )
            # dlt.pipeline() makes the new pipeline the active one.
            pipeline.activate()
        return cls(store, f"{pipeline.pipeline_name}_trace", Path(pipeline.working_dir) / "traces")

    @property
    def pipeline_name(self) -> str:
        """Name of the pipeline that stores the traces."""
        return self.pipeline.pipeline_name

    def store(self, trace: PipelineTrace, attempt: int) -> None:
        """Store a trace; a failure to do so is a warning, never an error.

        Args:
            trace: dlt's trace of an attempt.
            attempt: Number of the attempt in its run, from 1.
        """
        active = dlt.current.pipeline()
        record = trace_record(trace, attempt)
        try:
            self.pipeline.run([record], table_name=self.table_name, write_disposition="append")
        except Exception:
            path = self.folder / f"{trace.transaction_id}_attempt_{attempt}_trace.json"
            logger.warning("The trace could not be stored, and is kept in %s", path, exc_info=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record, default=str), encoding="utf-8")
        finally:
            active.activate()


def trace_record(trace: PipelineTrace, attempt: int) -> dict[str, Any]:
    """Return a trace as a row with a fixed shape: the run, and one child row per step; no config values, no secrets."""
    return {
        "transaction_id": trace.transaction_id,
        "pipeline_name": trace.pipeline_name,
        "attempt": attempt,
        "started_at": trace.started_at,
        "finished_at": trace.finished_at,
        "steps": [
            {
                "step": step.step,
                "started_at": step.started_at,
                "finished_at": step.finished_at,
                "state": "failed" if step.step_exception else "completed",
                "exception": redact(step.step_exception) if step.step_exception else None,
                "load_ids": ",".join(step.step_info.loads_ids) if step.step_info else None,
            }
            for step in trace.steps
        ],
    }
