"""What the reports about a run say, as Markdown and as rows of tables; pure text, without any secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlt.common.pipeline import ExtractInfo, LoadInfo, NormalizeInfo
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.trace import PipelineStepTrace

from prefect_dlt.diagrams import GRAPH_STYLE, TIMELINE_STYLE, lineage, timeline
from prefect_dlt.errors import VerificationError
from prefect_dlt.keys import artifact_key
from prefect_dlt.markdown import LONGEST_TABLE, cell, fence, plain, shortened, span, table
from prefect_dlt.outbox import Rank
from prefect_dlt.progress import SHORTEST_RATE, rate_text
from prefect_dlt.reasons import reason, reason_in_trace, reason_line, text_of, without_tracebacks
from prefect_dlt.record import FailedAttempt, Job, RunRecord, TableRow, Written, extracted, jobs, normalized, seconds_of
from prefect_dlt.redact import redacted_traceback, redaction
from prefect_dlt.retry import chain, is_stop_request
from prefect_dlt.schema_changes import ColumnChange, TableChange
from prefect_dlt.verification import Verification, named

LONGEST_MESSAGE = 1_000
"""Characters of the error that a report begins with; the whole of it is in the traceback."""

LARGEST_LIST = 400_000
"""Bytes of a table artifact; a longer list goes to several. Prefect takes no more than 500 kB well."""

MOST_NEW_TABLES = 10
"""Tables whose columns are written out on the page about schema changes; all are in the list."""

KIBIBYTE = 1024
"""Bytes."""

NOT_ALL_LOADED = "{}: these rows were prepared, and not all of them are loaded."
"""What is said of the tables of a run that failed, or went on without jobs that did."""

UNTRACED = "rows and tables are not known: dlt is told not to trace its runs"
"""What is said of a run that left no steps (runtime.enable_runtime_trace, which is on by default)."""

LONGEST_LISTED = 1_000
"""Characters of a text in a list."""

LARGEST_PAGE = 450_000
"""Bytes of a page; a part that makes it larger is left out, and said to be."""

ALL_STAGES = "Seconds in all stages"
"""Name of the column with the time spent on a table: tables take theirs at the same time."""

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
        rank: How soon it has to be shown.
    """

    name: str
    headline: str
    page: str
    lists: tuple[LongList, ...] = ()
    rank: Rank = Rank.REPORT


def summary(record: RunRecord) -> Report:
    """Return the page about a run that people open."""
    safe = redaction(record.secrets)
    tables = _Table(
        record,
        "summary_tables",
        "Tables that were loaded",
        {"Table": cell, "Rows": _as_it_is, ALL_STAGES: _decimal},
        [
            {"Table": safe(row.name), "Rows": row.rows_text, ALL_STAGES: round(row.seconds, 1)}
            for row in record.tables()
        ],
    )
    parts = [f"# {span(safe(record.pipeline_name))}: {outcome(record)}", _figures(record)]
    parts += [plain(safe(f"{each.text}.")) for each in record.recovered]
    if record.error is not None:
        parts += ["## Error", *_error(record.error, safe)]
        parts += [plain(safe(record.failed_attempts[-1].next))] if record.failed_attempts else []
    if record.discarded:
        parts += ["## Put aside", "\n".join(f"- {span(safe(line))}" for line in record.discarded)]
    if stages := record.stages():
        rows = [(row.name, row.state, str(row.tries), f"{row.seconds:,.1f}") for row in stages]
        parts += ["## Stages", table(("Stage", "State", "Tries", "Seconds"), rows, right=(2, 3))]
        parts += [_drawing(timeline(record), TIMELINE_STYLE)]
    if tables.rows:
        parts += ["## Tables", _doubt(record), tables.text()]
        if graph := lineage(record, {row.name: _with_rows(row, safe) for row in record.tables()}, safe):
            parts += [_drawing(graph, GRAPH_STYLE)]
    if record.verification is not None and record.verification.load_ids:
        parts += ["## Verified", *_verified(record.verification, safe)]
    if changed := _changes(record):
        parts += ["## Schema changes", _schema_overview(record, changed)]
    if record.failed_attempts:
        rows = [
            (str(each.number), each.step, f"{_seconds(each):,.1f}", cell(safe(reason(each.error))))
            for each in record.failed_attempts
        ]
        parts += ["## Failed attempts", table(("Attempt", "Step", "Seconds", "Error"), rows, right=(0, 2))]
    parts += _about(record, safe, record.load_ids)
    if record.error is not None:
        parts += ["## Traceback", fence(redacted_traceback(record.error, record.secrets))]
    return Report("summary", headline(record), _page(parts), tables.long_list(), Rank.SUMMARY)


def stage_report(record: RunRecord, step: PipelineStepTrace) -> Report:
    """Return the page about one stage that has ended, well or not."""
    safe = redaction(record.secrets)
    info, took = step.step_info, seconds_of(step)
    details = list[_Table]()
    parts = list[str]()
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
    parts = [f"# {span(safe(record.pipeline_name))}: {step.step} {ended}", known]
    if step.step_exception:
        parts += ["## Error", span(safe(reason_in_trace(step.exception_traces or (), step.step_exception)))]
    for detail in details:
        parts += [f"## {detail.headline}", detail.text()] if detail.rows else []
    parts += _about(record, safe, info.loads_ids if info else ())
    lists = tuple(long for detail in details for long in detail.long_list())
    return Report(f"{step.step}_report", line, _page(parts), lists)


def failure_report(record: RunRecord, attempt: FailedAttempt) -> Report:
    """Return the page about one attempt that failed."""
    safe = redaction(record.secrets)
    title = f"{span(safe(record.pipeline_name))}: {attempt.name} failed in {attempt.step}"
    pending = "\n".join(f"- {span(safe(line))}" for line in attempt.pending)
    parts = [
        f"# {title}",
        *_error(attempt.error, safe),
        "## What happens next",
        plain(safe(attempt.next)),
        "## What is pending",
        pending or "Nothing: no data of this run waits in the working directory.",
        "## Traceback",
        fence(redacted_traceback(attempt.error, record.secrets)),
        *_about(record, safe, record.package_ids),
    ]
    line = f"{attempt.name.capitalize()} failed in {attempt.step} · {reason_line(attempt.error, safe)}"
    return Report(f"failed_attempt_{attempt.number}", line, _page(parts), rank=Rank.FAILURE)


def schema_report(record: RunRecord) -> Report:
    """Return the page about what changed in the schemas during a run."""
    safe = redaction(record.secrets)
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
            (
                cell(safe(each.table)),
                cell(safe(column.column)),
                _kind(each, column, safe),
                cell(safe(column.type)),
                cell(safe(column.was or "")),
            )
            for each in differing
            for column in each.columns.values()
        ]
        header = ("Table", "Column", "Change", "Type", "Was")
        wide = len(header) if any(row[-1] for row in rows) else len(header) - 1
        parts += ["## Changed tables", table(header[:wide], [row[:wide] for row in rows], more=listed.where())]
    for each in new[:MOST_NEW_TABLES]:
        rows = [
            (cell(safe(column.column)), cell(safe(column.type)), _hints(column)) for column in each.columns.values()
        ]
        parts += [f"## New table {span(safe(each.table))}", f"From schema {span(safe(each.schema))}."]
        parts += [table(("Column", "Type", "Hints"), rows, more=listed.where())]
    if others := new[MOST_NEW_TABLES:]:
        rows = [(cell(safe(each.table)), f"{len(each.columns):,}") for each in others]
        parts += ["## More new tables", table(("Table", "Columns"), rows, right=(1,), more=listed.where())]
    parts += _about(record, safe, record.package_ids)
    is_long = len(listed.rows) > LONGEST_TABLE
    return Report("schema_changes", line, _page(parts), listed.long_list() if is_long else ())


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
    failed = [f"{_number(record.failed_jobs, 'job')} failed"] if record.failed_jobs else []
    done = [_number(rows, "row"), _number(len(tables), "table"), *failed, seconds]
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


_OUTCOMES = (("load", "loaded"), ("normalize", "normalized"), ("extract", "extracted"))


def _doubt(record: RunRecord) -> str:
    # What differs has a section of its own.
    if _differs(record):
        return ""
    if record.error is not None:
        return NOT_ALL_LOADED.format(f"The run {'was stopped' if outcome(record) == 'stopped' else 'failed'}")
    return NOT_ALL_LOADED.format(f"{_number(record.failed_jobs, 'job')} failed") if record.failed_jobs else ""


@dataclass(frozen=True)
class _Table:
    """Rows that a page shows as a table as far as they fit, and a list holds when they do not.

    Attributes:
        record: Of the run.
        name: What the list is called among the artifacts of the pipeline.
        headline: What it holds.
        columns: How each column's values are written as Markdown.
        rows: The rows, without secrets.
    """

    record: RunRecord
    name: str
    headline: str
    columns: Mapping[str, Callable[[Any], str]]
    rows: Sequence[Row]

    def text(self) -> str:
        shown = self.rows[: LONGEST_TABLE + 1]
        cells = [[write(row[column]) for column, write in self.columns.items()] for row in shown]
        right = [place for place, write in enumerate(self.columns.values()) if write is not cell]
        more = len(self.rows) - LONGEST_TABLE
        text = table(list(self.columns), cells[:LONGEST_TABLE], right)
        return text if more <= 0 else f"{text}\n\n… and {more:,} more{self.where()}."

    def where(self) -> str:
        """Say where the rows are that do not fit."""
        return f", in the artifact `{artifact_key(self.record.pipeline_name, self.name)}`"

    def long_list(self) -> tuple[LongList, ...]:
        """Return the list, if the page does not hold all of it."""
        if len(self.rows) <= LONGEST_TABLE:
            return ()
        rows = [
            {
                column: shortened(value, LONGEST_LISTED) if isinstance(value, str) else value
                for column, value in row.items()
            }
            for row in self.rows
        ]
        return (LongList(self.name, f"{self.headline} · {len(rows):,}", rows),)


def _written(record: RunRecord, name: str, headline: str, what: str, rows: Sequence[Written]) -> _Table:
    safe = redaction(record.secrets)
    has_files = any(row.files for row in rows)
    columns: dict[str, Callable[[Any], str]] = {what: cell, "Rows": _whole, "Files": _whole, "Seconds": _decimal}
    found = [
        {what: safe(row.name), "Rows": row.rows, "Files": row.files, "Seconds": round(row.seconds, 1)} for row in rows
    ]
    if not has_files:
        del columns["Files"]
        found = [{column: value for column, value in row.items() if column != "Files"} for row in found]
    return _Table(record, name, headline, columns, found)


def _loaded(record: RunRecord, found: Sequence[Job], safe: Callable[[str], str]) -> _Table:
    by_table: dict[str, list[Job]] = {}
    for job in found:
        by_table.setdefault(job.table, []).append(job)
    rows: list[Row] = [
        {
            "Table": safe(name),
            "Jobs": len(of),
            "Failed": sum(job.state == "failed" for job in of),
            "Waiting": sum(job.state == "waiting" for job in of),
            "Size": _size(sum(job.bytes for job in of)),
            "Seconds": round(sum(job.seconds for job in of), 1),
        }
        for name, of in sorted(by_table.items(), key=lambda each: (-sum(job.bytes for job in each[1]), each[0]))
    ]
    columns = {
        "Table": cell,
        "Jobs": _whole,
        "Failed": _whole,
        "Waiting": _whole,
        "Size": _as_it_is,
        "Seconds": _decimal,
    }
    return _Table(record, "load_tables", "Jobs per table", columns, rows)


def _failed_jobs(record: RunRecord, found: Sequence[Job], safe: Callable[[str], str]) -> _Table:
    rows: list[Row] = [
        {"Table": safe(job.table), "Message": safe(without_tracebacks(job.message)), "File": safe(job.file)}
        for job in found
        if job.state == "failed"
    ]
    return _Table(record, "failed_jobs", "Failed jobs", {"Table": cell, "Message": cell, "File": cell}, rows)


def _about(record: RunRecord, safe: Callable[[str], str], load_ids: Sequence[str]) -> list[str]:
    """Return what every report ends with: which run it is, how and where it runs, and what it uses."""
    facts = {
        "Pipeline": record.pipeline_name,
        "Destination": record.destination,
        "Dataset": record.dataset_name,
        "Load package" if len(load_ids) == 1 else "Load packages": ", ".join(load_ids),
        "Began": f"{record.started_at:%Y-%m-%d %H:%M:%S} UTC",
    }
    parts = ["## Run", _facts(facts, safe)]
    waited = f"{record.waited:,.1f} s" if record.waited else ""
    if settings := {
        name: value for name, value in {**record.settings, "Waited for another run": waited}.items() if value
    }:
        parts += ["## Run configuration", _facts(settings, safe)]
    if record.environment:
        parts += ["## Environment", _facts(record.environment, safe)]
    if (usage := record.usage) is not None:
        rows = [
            ("CPU, % of one core", f"{usage.cpu:,.0f}", f"{usage.cpu_peak:,.0f}"),
            ("Memory, MiB", f"{usage.memory:,.0f}", f"{usage.memory_peak:,.0f}"),
        ]
        parts += ["## CPU and memory", table(("This process and its children", "Now", "Peak"), rows, right=(1, 2))]
        parts += [f"{usage.cpu_seconds:,.1f} s of CPU time since the run began."]
    return parts


def _facts(facts: Mapping[str, str], safe: Callable[[str], str]) -> str:
    rows = [(name, cell(safe(value))) for name, value in facts.items() if value]
    return table(("Setting", "Value"), rows)


def _schema_overview(record: RunRecord, changed: Sequence[TableChange]) -> str:
    safe = redaction(record.secrets)
    rows = [
        (
            cell(safe(each.table)),
            "new table" if each.is_new else "changed",
            _number(len(each.columns), "column")
            if each.is_new
            else cell(safe(", ".join(f"{column.column} {column.type}" for column in _of_the_user(each)))),
        )
        for each in changed
    ]
    where = f"in the artifact `{artifact_key(record.pipeline_name, 'schema_changes')}`"
    text = table(("Table", "Change", "Columns"), rows, more=f", {where}")
    return f"{text}\n\nEach column with its type is {where}."


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


def _drawing(text: str, style: str) -> str:
    # Behind the drawing, the style does not come first where the drawing is shown as text.
    return fence(f"{text}\n{style}", "mermaid")


def _changes(record: RunRecord) -> list[TableChange]:
    """Return what changed, tables that were known first."""
    changes = [change for of_schema in record.schema_changes.values() for change in of_schema.values()]
    return sorted(changes, key=lambda change: (change.is_new, change.table))


def _kind(of: TableChange, column: ColumnChange, safe: Callable[[str], str]) -> str:
    if of.is_new:
        return "new table"
    if column.kind == "variant" and column.variant_of:
        return f"variant of {cell(safe(column.variant_of))}"
    return "new column" if column.kind == "new" else "type changed"


def _hints(column: ColumnChange) -> str:
    names = ("primary_key", "merge_key", "unique", "sort", "partition", "cluster", "root_key", "parent_key", "row_key")
    hints: Mapping[str, Any] = column.definition  # type: ignore[assignment]
    return ", ".join(name.replace("_", " ") for name in names if hints.get(name))


def _rates(rows: Sequence[Written], what: str, seconds: float) -> str:
    count = sum(row.rows for row in rows)
    figures = [_number(count, "row"), _number(len(rows), what)]
    if files := sum(row.files for row in rows):
        figures.append(_number(files, "file"))
    if count and seconds >= SHORTEST_RATE:
        figures.append(f"{rate_text(count / seconds)} rows/s")
    return " · ".join(figures)


def _job_rates(found: Sequence[Job], seconds: float) -> str:
    loaded = [job for job in found if job.state == "loaded"]
    size = sum(job.bytes for job in loaded)
    figures = [f"{len(loaded):,} of {_number(len(found), 'job')}"]
    # Prefect's cards show the beginning only.
    if failed := sum(job.state == "failed" for job in found):
        figures.append(f"{failed:,} failed")
    figures.append(_size(size))
    if size and seconds >= SHORTEST_RATE:
        figures.append(f"{_size(size / seconds)}/s")
    return " · ".join(figures)


def _size(count: float) -> str:
    """Return a number of bytes as text, in units of 1,024."""
    if count < KIBIBYTE:
        return f"{count:,.0f} bytes"
    for unit in ("KiB", "MiB"):
        count /= KIBIBYTE
        if count < KIBIBYTE:
            return f"{count:,.1f} {unit}"
    return f"{count / KIBIBYTE:,.1f} GiB"


def _of_the_user(change: TableChange) -> list[ColumnChange]:
    """Return the columns without dlt's own, unless there are no others."""
    columns = list(change.columns.values())
    return [column for column in columns if not column.column.startswith("_dlt")] or columns


def _with_rows(row: TableRow, safe: Callable[[str], str]) -> str:
    return f"{safe(row.name)} · {row.rows_text} {'row' if row.rows_text == '1' else 'rows'}"


def _error(error: BaseException, safe: Callable[[str], str]) -> list[str]:
    """Return what went wrong, and what dlt says around it where that is more."""
    inner = error.exception if isinstance(error, PipelineStepFailed) else error
    texts = dict.fromkeys((reason(error), text_of(inner)))
    return [span(shortened(safe(text), LONGEST_MESSAGE)) for text in texts]


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _whole(count: int) -> str:
    return f"{count:,}"


def _decimal(count: float) -> str:
    return f"{count:,.1f}"


def _as_it_is(text: str) -> str:
    return text


def _seconds(attempt: FailedAttempt) -> float:
    return (attempt.finished_at - attempt.started_at).total_seconds()


def _page(parts: Sequence[str]) -> str:
    taken, size = list[str](), 0
    for part in filter(None, parts):
        length = len(part.encode(errors="replace")) + 2
        is_too_large = size + length > LARGEST_PAGE
        taken.append("… left out: the page would be too large." if is_too_large else part)
        size += 0 if is_too_large else length
    return "\n\n".join(taken) + "\n"
