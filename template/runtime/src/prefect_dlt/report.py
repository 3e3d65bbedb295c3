"""What the reports about a run say, as Markdown and as rows of tables; pure text, without any secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlt.common.pipeline import ExtractInfo, LoadInfo, NormalizeInfo
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.trace import PipelineStepTrace

from prefect_dlt.diagrams import lineage, timeline
from prefect_dlt.keys import artifact_key
from prefect_dlt.markdown import LONGEST_TABLE, cell, fence, shortened, span, table
from prefect_dlt.record import FailedAttempt, Job, RunRecord, TableRow, Written, extracted, jobs, normalized, seconds_of
from prefect_dlt.redact import redact, redacted_traceback
from prefect_dlt.schema_changes import ColumnChange, TableChange

LONGEST_MESSAGE = 1_000
"""Characters of the error that a report begins with; the whole of it is in the traceback."""

LARGEST_LIST = 400_000
"""Bytes of a table artifact; a longer list goes to several. Prefect takes no more than 500 kB well."""

MOST_NEW_TABLES = 10
"""Tables whose columns are written out on the page about schema changes; all are in the list."""

Row = Mapping[str, str | int | float]


@dataclass(frozen=True)
class LongList:
    """A list that is too long for a page.

    Attributes:
        name: What it is called among the artifacts of the pipeline.
        headline: What it holds, in one plain line.
        rows: Its rows, each from column to value.
    """

    name: str
    headline: str
    rows: Sequence[Row]

    def parts(self) -> Iterator[tuple[str, str]]:
        """Yield name and rows, as JSON, of each table artifact that the list needs; one, mostly."""
        lines, size, number = list[str](), 0, 1
        for line in map(json.dumps, self.rows):
            if lines and size + len(line) > LARGEST_LIST:
                yield self._part(number), f"[{', '.join(lines)}]"
                lines, size, number = [], 0, number + 1
            lines.append(line)
            size += len(line) + 2
        yield self._part(number), f"[{', '.join(lines)}]"

    def _part(self, number: int) -> str:
        return self.name if number == 1 else f"{self.name}_{number}"


@dataclass(frozen=True)
class Report:
    """A page about a run or a part of it.

    Attributes:
        name: What it is called among the artifacts of the pipeline.
        headline: What it says, in one plain line.
        page: The page, as Markdown.
        lists: What is too long for the page.
    """

    name: str
    headline: str
    page: str
    lists: tuple[LongList, ...] = ()


def summary(record: RunRecord) -> Report:
    """Return the page about a run that people open."""
    safe = _redaction(record)
    tables = _Table(
        record,
        "summary_tables",
        "Tables that were loaded",
        {"Table": cell, "Rows": _as_it_is, "Seconds": _decimal},
        [{"Table": safe(row.name), "Rows": row.rows_text, "Seconds": round(row.seconds, 1)} for row in record.tables()],
    )
    parts = [f"# {span(safe(record.pipeline_name))}: {outcome(record)}", headline(record)]
    if record.error is not None:
        parts += ["## Error", span(safe(one_line(record.error))[:LONGEST_MESSAGE])]
        parts += [record.failed_attempts[-1].next] if record.failed_attempts else []
    if stages := record.stages():
        rows = [(row.name, row.state, str(row.tries), f"{row.seconds:,.1f}") for row in stages]
        parts += ["## Stages", table(("Stage", "State", "Tries", "Seconds"), rows, right=(2, 3))]
        parts += [fence(timeline(record), "mermaid")]
    if tables.rows:
        parts += ["## Tables", tables.text()]
        if graph := lineage(record, {row.name: f"{safe(row.name)} · {row.rows_text}" for row in record.tables()}):
            parts += [fence(graph, "mermaid")]
    if changed := _changes(record):
        parts += ["## Schema changes", _schema_overview(record, changed)]
    if record.failed_attempts:
        rows = [
            (str(each.number), each.step, cell(safe(one_line(each.error))), f"{_seconds(each):,.1f}")
            for each in record.failed_attempts
        ]
        parts += ["## Failed attempts", table(("Attempt", "Step", "Error", "Seconds"), rows, right=(0, 3))]
    parts += _about(record, safe, record.load_ids)
    if record.error is not None:
        parts += ["## Traceback", fence(redacted_traceback(record.error, record.secrets))]
    return Report("summary", headline(record), _page(parts), tables.long_list())


def stage_report(record: RunRecord, step: PipelineStepTrace) -> Report:
    """Return the page about one stage that has ended, well or not."""
    safe = _redaction(record)
    info, took = step.step_info, seconds_of(step)
    details = list[_Table]()
    parts = list[str]()
    figures = "nothing to do"
    if isinstance(info, ExtractInfo):
        rows = extracted(info)
        figures = _rates(rows, "resource", took)
        details = [_written(record, "extract_resources", "Rows per resource", "Resource", rows, safe)]
    elif isinstance(info, NormalizeInfo):
        rows = normalized(info)
        figures = _rates(rows, "table", took)
        details = [_written(record, "normalize_tables", "Rows and files per table", "Table", rows, safe)]
    elif isinstance(info, LoadInfo):
        found = jobs(info)
        figures = _job_rates(found, took)
        details = [_loaded(record, found, safe), _failed_jobs(record, found, safe)]
    ended = "failed" if step.step_exception else "done"
    line = f"{step.step} {ended} · {figures} · {took:,.1f} s"
    parts = [f"# {span(safe(record.pipeline_name))}: {step.step} {ended}", f"{figures} · {took:,.1f} s"]
    if step.step_exception:
        parts += ["## Error", fence(safe(step.step_exception))]
    for detail in details:
        parts += [f"## {detail.headline}", detail.text()] if detail.rows else []
    parts += _about(record, safe, info.loads_ids if info else ())
    lists = tuple(long for detail in details for long in detail.long_list())
    return Report(f"{step.step}_report", line, _page(parts), lists)


def failure_report(record: RunRecord, attempt: FailedAttempt) -> Report:
    """Return the page about one attempt that failed."""
    safe = _redaction(record)
    title = f"{span(safe(record.pipeline_name))}: {attempt.name} failed in {attempt.step}"
    pending = "\n".join(f"- {span(safe(line))}" for line in attempt.pending)
    parts = [
        f"# {title}",
        span(safe(one_line(attempt.error))[:LONGEST_MESSAGE]),
        "## What happens next",
        safe(attempt.next),
        "## What is pending",
        pending or "Nothing: no data of this run waits in the working directory.",
        "## Traceback",
        fence(redacted_traceback(attempt.error, record.secrets)),
        *_about(record, safe, ()),
    ]
    error = shortened(" ".join(safe(one_line(attempt.error)).split()), LONGEST_HEADLINE)
    line = f"{attempt.name.capitalize()} failed in {attempt.step} · {error}"
    return Report(f"failed_attempt_{attempt.number}", line, _page(parts))


def schema_report(record: RunRecord) -> Report:
    """Return the page about what changed in the schemas during a run."""
    safe = _redaction(record)
    changed = _changes(record)
    new, differing = [each for each in changed if each.is_new], [each for each in changed if not each.is_new]
    columns = sum(len(each.columns) for each in differing)
    figures = [_number(len(new), "new table")] if new else []
    if differing:
        figures.append(f"{_number(columns, 'column')} of {_number(len(differing), 'known table')}")
    line = "Schema changed · " + " · ".join(figures)
    listed = _Table(
        record,
        "schema_columns",
        "Columns that are new or changed",
        {"Table": cell, "Column": cell, "Change": _as_it_is, "Type": cell, "Was": cell},
        [
            {"Table": safe(each.table), "Column": safe(column.column), "Change": _kind(each, column, safe)}
            | {"Type": safe(column.type), "Was": safe(column.was or "")}
            for each in [*differing, *new]
            for column in each.columns.values()
        ],
    )
    parts = [f"# {span(safe(record.pipeline_name))}: schema changed", " · ".join(figures)]
    if differing:
        rows = [
            (cell(safe(each.table)), cell(safe(column.column)), _kind(each, column, safe), cell(safe(column.type)))
            + (cell(safe(column.was or "")),)
            for each in differing
            for column in each.columns.values()
        ]
        header = ("Table", "Column", "Change", "Type", "Was")
        parts += ["## Changed tables", table(header, rows, more=listed.where())]
    for each in new[:MOST_NEW_TABLES]:
        rows = [(cell(safe(column.column)), cell(safe(column.type)), _hints(column)) for column in each.columns.values()]
        parts += [f"## New table {span(safe(each.table))}", f"From schema {span(safe(each.schema))}."]
        parts += [table(("Column", "Type", "Hints"), rows, more=listed.where())]
    if others := new[MOST_NEW_TABLES:]:
        rows = [(cell(safe(each.table)), f"{len(each.columns):,}") for each in others]
        parts += ["## More new tables", table(("Table", "Columns"), rows, right=(1,), more=listed.where())]
    parts += _about(record, safe, ())
    is_long = len(listed.rows) > LONGEST_TABLE
    return Report("schema_changes", line, _page(parts), listed.long_list() if is_long else ())


def headline(record: RunRecord) -> str:
    """Return what a run did in one plain line."""
    seconds = f"{record.seconds:,.1f} s"
    attempts = [f"{record.attempts} attempts"] if record.attempts > 1 else []
    if record.error is not None:
        where = f" in {record.error.step}" if isinstance(record.error, PipelineStepFailed) else ""
        return " · ".join([f"Failed{where}", *attempts, seconds])
    tables = record.tables()
    rows = sum(row.rows for row in tables)
    loaded = [_number(rows, "row"), _number(len(tables), "table"), seconds]
    return " · ".join([outcome(record).capitalize(), *loaded, *attempts])


def text_table(tables: Sequence[TableRow]) -> str:
    """Return the tables of a run as plain text for a terminal: table, rows, seconds."""
    rows = [("table", "rows", "seconds")]
    rows += [(row.name, row.rows_text, f"{row.seconds:,.1f}") for row in tables]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{name:<{widths[0]}}  {count:>{widths[1]}}  {seconds:>{widths[2]}}" for name, count, seconds in rows]
    return "\n".join(lines)


def one_line(error: BaseException) -> str:
    """Say what went wrong, without what dlt says around it: the step, the error behind it, and its message."""
    if isinstance(error, PipelineStepFailed):
        return f"{error.step}: {one_line(error.exception)}"
    return f"{type(error).__name__}: {error}"


def outcome(record: RunRecord) -> str:
    """Return "running", "loaded" or "failed"."""
    if record.finished_at is None:
        return "running"
    return "loaded" if record.error is None else "failed"
