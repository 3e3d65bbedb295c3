"""What the reports about a run and its failed attempts say, as Markdown and as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlt.pipeline.exceptions import PipelineStepFailed

from prefect_dlt.diagrams import GRAPH_STYLE, TIMELINE_STYLE, lineage, timeline
from prefect_dlt.errors import VerificationError
from prefect_dlt.markdown import LONGEST_TABLE, cell, fence, plain, span, table
from prefect_dlt.outbox import Rank
from prefect_dlt.page import (
    PageTable,
    Report,
    about,
    as_it_is,
    counted,
    decimal,
    drawing,
    error_lines,
    page,
)
from prefect_dlt.reasons import reason, reason_line
from prefect_dlt.record import FailedAttempt, RunRecord, TableRow
from prefect_dlt.redact import redacted_traceback, redaction
from prefect_dlt.retry import chain, is_stop_request
from prefect_dlt.schema_report import SCHEMA_CHANGES, changes_of, schema_overview
from prefect_dlt.verification import Verification, named

NOT_ALL_LOADED = "{}: these rows were prepared, and not all of them are loaded."
"""What is said of the tables of a run that failed, or went on without jobs that did."""

UNTRACED = "rows and tables are not known: dlt is told not to trace its runs"
"""What is said of a run that left no steps (runtime.enable_runtime_trace, which is on by default)."""

ALL_STAGES = "Seconds in all stages"
"""Name of the column with the time spent on a table: tables take theirs at the same time."""

_OUTCOMES = (("load", "loaded"), ("normalize", "normalized"), ("extract", "extracted"))


def summary(record: RunRecord, told_here: Sequence[Report] = ()) -> Report:
    """Return the page about a run that people open.

    Args:
        record: Of the run.
        told_here: Reports about its stages and its schema that have no page of their own: this one has what they say.
    """
    safe = redaction(record.secrets)
    tables = PageTable(
        record,
        "summary_tables",
        "Tables that were loaded",
        {"Table": cell, "Rows": as_it_is, ALL_STAGES: decimal},
        [
            {"Table": safe(row.name), "Rows": row.rows_text, ALL_STAGES: round(row.seconds, 1)}
            for row in record.tables()
        ],
    )
    parts = [f"# {span(safe(record.pipeline_name))}: {outcome(record)}", _figures(record)]
    parts += [plain(safe(f"{each.text}.")) for each in record.recovered]
    if record.error is not None:
        parts += ["## Error", *error_lines(record.error, safe)]
        parts += [plain(safe(record.failed_attempts[-1].next))] if record.failed_attempts else []
    if record.discarded:
        parts += ["## Put aside", "\n".join(f"- {span(safe(line))}" for line in record.discarded)]
    parts += _stages(record, [report for report in told_here if report.name != SCHEMA_CHANGES])
    if tables.rows:
        parts += ["## Tables", _doubt(record), tables.text()]
        if graph := lineage(record, {row.name: _with_rows(row, safe) for row in record.tables()}, safe):
            parts += [drawing(graph, GRAPH_STYLE)]
    if record.verification is not None and record.verification.load_ids:
        parts += ["## Verified", *_verified(record.verification, safe)]
    parts += _schema_changes(record, [report for report in told_here if report.name == SCHEMA_CHANGES])
    if record.failed_attempts:
        rows = [
            (str(each.number), each.step, f"{_seconds(each):,.1f}", cell(safe(reason(each.error))))
            for each in record.failed_attempts
        ]
        parts += ["## Failed attempts", table(("Attempt", "Step", "Seconds", "Error"), rows, right=(0, 2))]
    parts += about(record, safe, record.load_ids)
    if record.error is not None:
        parts += ["## Traceback", fence(redacted_traceback(record.error, record.secrets))]
    return Report("summary", headline(record), page(parts), tables.long_list(), Rank.SUMMARY)


def _stages(record: RunRecord, told_here: Sequence[Report]) -> list[str]:
    """Return all stages in a table and a drawing, and the reports about them that are told here."""
    if not (stages := record.stages()):
        return []
    rows = [(row.name, row.state, str(row.tries), f"{row.seconds:,.1f}") for row in stages]
    parts = ["## Stages", table(("Stage", "State", "Tries", "Seconds"), rows, right=(2, 3))]
    parts += [drawing(timeline(record), TIMELINE_STYLE)]
    for report in told_here:
        parts += [
            f"### {report.headline[:1].upper()}{report.headline[1:]}",
            *(section.under(4) for section in report.sections),
        ]
    return parts


def _schema_changes(record: RunRecord, told_here: Sequence[Report]) -> list[str]:
    """Return what changed in schemas: as the report about it says where it is told here, or else in short."""
    if not (changed := changes_of(record)):
        return []
    sections = [section.under(3) for report in told_here for section in report.sections]
    return ["## Schema changes", *(sections or [schema_overview(record, changed)])]


def failure_report(record: RunRecord, attempt: FailedAttempt) -> Report:
    """Return the page about one attempt that failed."""
    safe = redaction(record.secrets)
    title = f"{span(safe(record.pipeline_name))}: {attempt.name} failed in {attempt.step}"
    pending = "\n".join(f"- {span(safe(line))}" for line in attempt.pending)
    parts = [
        f"# {title}",
        *error_lines(attempt.error, safe),
        "## What happens next",
        plain(safe(attempt.next)),
        "## What is pending",
        pending or "Nothing: no data of this run waits in the working directory.",
        "## Traceback",
        fence(redacted_traceback(attempt.error, record.secrets)),
        *about(record, safe, record.package_ids),
    ]
    line = f"{attempt.name.capitalize()} failed in {attempt.step} · {reason_line(attempt.error, safe)}"
    return Report(f"failed_attempt_{attempt.number}", line, page(parts), rank=Rank.FAILURE)


def headline(record: RunRecord) -> str:
    """Return what a run did, or why it failed, in one plain line."""
    if record.error is None:
        return _figures(record)
    return _figures(record, reason_line(record.error, redaction(record.secrets)))


def _figures(record: RunRecord, *why: str) -> str:
    seconds = f"{record.seconds:,.1f} s"
    attempts = [f"{record.attempts} attempts"] if record.attempts > 1 else []
    if record.error is not None:
        where = f" in {record.error.step}" if isinstance(record.error, PipelineStepFailed) else ""
        return " · ".join([f"{outcome(record).capitalize()}{where}", *why, *attempts, seconds])
    if not record.steps() and record.untraced is not None:
        return " · ".join([outcome(record).capitalize(), UNTRACED, seconds])
    tables = record.tables()
    rows = sum(row.rows for row in tables)
    failed = [f"{counted(record.failed_jobs, 'job')} failed"] if record.failed_jobs else []
    done = [counted(rows, "row"), counted(len(tables), "table"), *failed, seconds]
    return " · ".join([outcome(record).capitalize(), *done, *attempts])


def text_table(tables: Sequence[TableRow]) -> str:
    """Return the tables of a run as plain text for a terminal: table, rows, seconds."""
    rows = [("table", "rows", "seconds")]
    rows += [(row.name, row.rows_text, f"{row.seconds:,.1f}") for row in tables]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{name:<{widths[0]}}  {count:>{widths[1]}}  {seconds:>{widths[2]}}" for name, count, seconds in rows]
    return "\n".join(lines)


def outcome(record: RunRecord) -> str:
    """Return how far a run came.

    "running", "stopped", "failed", "loaded, and differs", "loaded in part", or after the last stage that was made:
    "loaded", "normalized" or "extracted".
    """
    if record.finished_at is None:
        return "running"
    if _differs(record):
        return "loaded, and differs"
    if record.error is not None and any(map(is_stop_request, chain(record.error, explicit=True))):
        return "stopped"
    if record.error is not None:
        return "failed"
    if record.failed_jobs:
        return "loaded in part"
    stages = {row.name for row in record.stages()}
    return next((word for stage, word in _OUTCOMES if stage in stages), "loaded")


def _differs(record: RunRecord) -> bool:
    """Tell whether a run has loaded all, and the destination does not hold it."""
    is_over_for_it = record.error is None or isinstance(record.error, VerificationError)
    return is_over_for_it and record.verification is not None and bool(record.verification.differences)


def _doubt(record: RunRecord) -> str:
    # What differs has a section of its own.
    if _differs(record):
        return ""
    if record.error is not None:
        return NOT_ALL_LOADED.format(f"The run {'was stopped' if outcome(record) == 'stopped' else 'failed'}")
    return NOT_ALL_LOADED.format(f"{counted(record.failed_jobs, 'job')} failed") if record.failed_jobs else ""


def _verified(verification: Verification, safe: Callable[[str], str]) -> list[str]:
    """Return what was verified: the outcome in a line, each difference, and why the rest could not be."""
    parts = [plain(safe(verification.outcome()))]
    if differences := verification.differences:
        rows = [
            (cell(safe(each.table)), each.what, f"{each.expected:,}", f"{each.found:,}", cell(each.load_id))
            for each in differences[:LONGEST_TABLE]
        ]
        parts += [table(("Table", "Counted", "Expected", "Found", "Load package"), rows, right=(2, 3))]
    if reasons := verification.reasons():
        rows = [(cell(safe(named(tables))), cell(safe(reason))) for reason, tables in reasons.items()]
        parts += [table(("Not verified", "Because"), rows)]
    return parts


def _with_rows(row: TableRow, safe: Callable[[str], str]) -> str:
    return f"{safe(row.name)} · {row.rows_text} {'row' if row.rows_text == '1' else 'rows'}"


def _seconds(attempt: FailedAttempt) -> float:
    return (attempt.finished_at - attempt.started_at).total_seconds()
