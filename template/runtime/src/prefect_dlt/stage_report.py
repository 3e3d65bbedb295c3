"""What the report about a stage says, well ended or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dlt.common.pipeline import ExtractInfo, LoadInfo, NormalizeInfo
from dlt.pipeline.trace import PipelineStepTrace

from prefect_dlt.markdown import cell, span
from prefect_dlt.page import (
    PageTable,
    Report,
    Row,
    Section,
    about,
    as_it_is,
    counted,
    decimal,
    page,
    size_text,
    whole,
)
from prefect_dlt.progress import SHORTEST_RATE, rate_text
from prefect_dlt.reasons import reason_in_trace, without_tracebacks
from prefect_dlt.record import RunRecord
from prefect_dlt.redact import redaction
from prefect_dlt.steps import Job, Written, extracted, jobs, normalized, seconds_of


def stage_report(record: RunRecord, step: PipelineStepTrace) -> Report:
    """Return the page about one stage that has ended, well or not."""
    safe = redaction(record.secrets)
    info, took = step.step_info, seconds_of(step)
    details = list[PageTable]()
    sections = list[Section]()
    figures = "" if step.step_exception else "nothing to do"
    if isinstance(info, ExtractInfo):
        rows = extracted(info)
        figures = _rates(rows, "resource", took)
        details = [_written(record, "extract_resources", "Rows per resource", "Resource", rows)]
    elif isinstance(info, NormalizeInfo):
        rows = normalized(info)
        figures = _rates(rows, "table", took)
        details = [_written(record, "normalize_tables", "Rows and files per table", "Table", rows)]
    elif isinstance(info, LoadInfo):
        found = jobs(info)
        figures = _job_rates(found, took)
        details = [_loaded(record, found, safe), _failed_jobs(record, found, safe)]
    ended = "failed" if step.step_exception else "done"
    known = " · ".join(filter(None, (figures, f"{took:,.1f} s")))
    line = f"{step.step} {ended} · {known}"
    if step.step_exception:
        error = span(safe(reason_in_trace(step.exception_traces or (), step.step_exception)))
        sections += [Section("Error", error)]
    sections += [Section(detail.headline, detail.text()) for detail in details if detail.rows]
    parts = [f"# {span(safe(record.pipeline_name))}: {step.step} {ended}", known]
    parts += [section.under(2) for section in sections]
    parts += about(record, safe, info.loads_ids if info else ())
    lists = tuple(long for detail in details for long in detail.long_list())
    return Report(f"{step.step}_report", line, page(parts), lists, sections=tuple(sections))


def _written(record: RunRecord, name: str, headline: str, what: str, rows: Sequence[Written]) -> PageTable:
    safe = redaction(record.secrets)
    has_files = any(row.files for row in rows)
    columns: dict[str, Callable[[Any], str]] = {what: cell, "Rows": whole, "Files": whole, "Seconds": decimal}
    found = [
        {what: safe(row.name), "Rows": row.rows, "Files": row.files, "Seconds": round(row.seconds, 1)} for row in rows
    ]
    if not has_files:
        del columns["Files"]
        found = [{column: value for column, value in row.items() if column != "Files"} for row in found]
    return PageTable(record, name, headline, columns, found)


def _loaded(record: RunRecord, found: Sequence[Job], safe: Callable[[str], str]) -> PageTable:
    by_table: dict[str, list[Job]] = {}
    for job in found:
        by_table.setdefault(job.table, []).append(job)
    rows: list[Row] = [
        {
            "Table": safe(name),
            "Jobs": len(of),
            "Failed": sum(job.state == "failed" for job in of),
            "Waiting": sum(job.state == "waiting" for job in of),
            "Size": size_text(sum(job.bytes for job in of)),
            "Seconds": round(sum(job.seconds for job in of), 1),
        }
        for name, of in sorted(by_table.items(), key=lambda each: (-sum(job.bytes for job in each[1]), each[0]))
    ]
    columns = {
        "Table": cell,
        "Jobs": whole,
        "Failed": whole,
        "Waiting": whole,
        "Size": as_it_is,
        "Seconds": decimal,
    }
    return PageTable(record, "load_tables", "Jobs per table", columns, rows)


def _failed_jobs(record: RunRecord, found: Sequence[Job], safe: Callable[[str], str]) -> PageTable:
    rows: list[Row] = [
        {"Table": safe(job.table), "Message": safe(without_tracebacks(job.message)), "File": safe(job.file)}
        for job in found
        if job.state == "failed"
    ]
    return PageTable(record, "failed_jobs", "Failed jobs", {"Table": cell, "Message": cell, "File": cell}, rows)


def _rates(rows: Sequence[Written], what: str, seconds: float) -> str:
    count = sum(row.rows for row in rows)
    figures = [counted(count, "row"), counted(len(rows), what)]
    if files := sum(row.files for row in rows):
        figures.append(counted(files, "file"))
    if count and seconds >= SHORTEST_RATE:
        figures.append(f"{rate_text(count / seconds)} rows/s")
    return " · ".join(figures)


def _job_rates(found: Sequence[Job], seconds: float) -> str:
    loaded = [job for job in found if job.state == "loaded"]
    size = sum(job.bytes for job in loaded)
    figures = [f"{len(loaded):,} of {counted(len(found), 'job')}"]
    # Prefect's cards show the beginning only.
    if failed := sum(job.state == "failed" for job in found):
        figures.append(f"{failed:,} failed")
    figures.append(size_text(size))
    if size and seconds >= SHORTEST_RATE:
        figures.append(f"{size_text(size / seconds)}/s")
    return " · ".join(figures)
