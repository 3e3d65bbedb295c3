"""What of a pipeline waits in its working directory, and what becomes of it."""

from __future__ import annotations

from dlt.common.pipeline import SupportsPipeline
from dlt.pipeline.pipeline import Pipeline

MOST_PACKAGES = 20
"""Load packages that are named."""


def pending_lines(pipeline: SupportsPipeline) -> list[str]:
    """Say which load packages of a pipeline wait to be normalised or loaded, one line each; empty when none does."""
    if not isinstance(pipeline, Pipeline):
        return []
    lines = [f"load package {load_id}: extracted" for load_id in pipeline.list_extracted_load_packages()]
    for load_id in pipeline.list_normalized_load_packages():
        jobs = pipeline.get_load_package_info(load_id).jobs
        done, total = len(jobs["completed_jobs"]), sum(map(len, jobs.values()))
        lines.append(f"load package {load_id}: normalised, {done:,} of {total:,} jobs loaded")
    if (more := len(lines) - MOST_PACKAGES) > 0:
        lines[MOST_PACKAGES:] = [f"and {more:,} more load packages"]
    return lines


def resumes_with(pipeline: Pipeline) -> str:
    """Say which step the next attempt begins with, and what it keeps."""
    if pipeline.list_extracted_load_packages():
        return "normalize: what was extracted is kept"
    if pipeline.list_normalized_load_packages():
        return "load: what was extracted and normalised is kept, and so are the jobs that were loaded"
    return "extract, since nothing was kept"
