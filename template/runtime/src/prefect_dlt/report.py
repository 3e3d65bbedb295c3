"""What a run did, as data, and what a report says about it, as text; no Prefect, no input or output."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from dlt.common.pipeline import ExtractInfo, LoadInfo, NormalizeInfo, SupportsPipeline
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.trace import PipelineStepTrace, PipelineTrace

from prefect_dlt.progress import STAGES
from prefect_dlt.redact import redact, redacted_traceback
from prefect_dlt.schema_changes import SchemaChanges

LONGEST_TABLE = 50
"""Rows of a table in a report; a longer one is cut and says so."""

LONGEST_ERROR = 20_000
"""Characters of a traceback in a report; of a longer one the beginning and the end are shown."""

LONGEST_MESSAGE = 1_000
"""Characters of the error that a report begins with; the whole of it is in the traceback."""

LONGEST_LINE = 300
"""Characters of an error in a table."""

# Half characters and control characters; databases and APIs refuse some of them.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class TableRow:
    """One destination table of a run.

    Attributes:
        name: Name of the table in the destination.
        rows: Rows that were normalised into it by this run.
        seconds: Time spent on it, writing it in extract and normalize and loading it; stages of other tables that ran
            meanwhile are not counted.
        with_earlier: Whether rows were loaded besides that an earlier run had normalised, and not lived to load. They
            are not in `rows`.
    """

    name: str
    rows: int
    seconds: float
    with_earlier: bool = False

    @property
    def rows_text(self) -> str:
        """The rows as text: "336,776", "earlier" for an earlier run's alone, or "16 + earlier"."""
        if not self.with_earlier:
            return f"{self.rows:,}"
        return f"{self.rows:,} + earlier" if self.rows else "earlier"


@dataclass(frozen=True)
class StageRow:
    """One stage of a run: its name, how often it was tried, its state, and its time in seconds."""

    name: str
    tries: int
    state: str
    seconds: float


@dataclass
class RunRecord:
    """What is known of one run, from its beginning until its report.

    Attributes:
        pipeline_name: Name of the pipeline.
        destination: Name of the destination, and its type where that differs.
        dataset_name: Where the tables are.
        settings: How it runs, under the runner: names and values as text.
        started_at: When it began.
        finished_at: When it ended; None while it runs.
        error: What ended it, if something did.
        failures: What ended each attempt that was followed by another.
        schema_changes: Schema name to the tables and columns that appeared or changed.
        secrets: Values that no report may hold.
    """

    pipeline_name: str
    destination: str
    dataset_name: str
    settings: Mapping[str, str]
    started_at: datetime
    finished_at: datetime | None = None
    error: BaseException | None = None
    failures: list[BaseException] = field(default_factory=list[BaseException])
    schema_changes: dict[str, SchemaChanges] = field(default_factory=dict[str, SchemaChanges])
    secrets: set[str] = field(default_factory=set[str], repr=False)
    _steps: dict[str, PipelineStepTrace] = field(default_factory=dict[str, PipelineStepTrace], repr=False)

    @classmethod
    def of(cls, pipeline: SupportsPipeline, settings: Mapping[str, str]) -> RunRecord:
        """Begin the record of a run of this pipeline."""
        destination = pipeline.destination
        named = destination.destination_name if destination else "none"
        kind = destination.destination_type.rpartition(".")[2] if destination else named
        return cls(
            pipeline_name=pipeline.pipeline_name,
            destination=named if named == kind else f"{named} ({kind})",
            dataset_name=pipeline.dataset_name or "",
            settings=settings,
            started_at=_now(),
        )

    def add_trace(self, trace: PipelineTrace | None) -> None:
        """Take the steps of a trace.

        dlt merges traces, so steps that are known, or older than the run, are passed over.
        """
        for step in trace.steps if trace else ():
            if step.started_at >= self.started_at:
                self._steps.setdefault(step.span_id, step)

    def note_schema_changes(self, schema_name: str, changes: SchemaChanges) -> None:
        """Add what a step changed in a schema."""
        known = self.schema_changes.setdefault(schema_name, {})
        for table, columns in changes.items():
            known.setdefault(table, {}).update(columns)

    def finish(self, error: BaseException | None) -> None:
        """End the record."""
        self.error = error
        self.finished_at = _now()

    @contextmanager
    def until_finished(self) -> Generator[None]:
        """End the record with what happens inside, well or with an error."""
        try:
            yield
        except BaseException as error:
            self.finish(error)
            raise
        self.finish(None)

    @property
    def seconds(self) -> float:
        """How long the run took, or has taken so far, in seconds."""
        return ((self.finished_at or _now()) - self.started_at).total_seconds()

    @property
    def attempts(self) -> int:
        """Attempts made, the last one included."""
        return len(self.failures) + 1

    @property
    def load_ids(self) -> list[str]:
        """Load packages that were loaded."""
        infos = [step.step_info for step in self._steps.values()]
        ids = (load_id for info in infos if isinstance(info, LoadInfo) for load_id in info.loads_ids)
        return list(dict.fromkeys(ids))

    def stages(self) -> list[StageRow]:
        """Return extract, normalize and load as far as they ran, in this order."""
        rows: list[StageRow] = []
        for stage in STAGES:
            steps = [step for step in self._steps.values() if step.step == stage]
            if steps:
                state = "failed" if steps[-1].step_exception else "done"
                rows.append(StageRow(stage, len(steps), state, sum(_seconds(step) for step in steps)))
        return rows

    def tables(self) -> list[TableRow]:
        """Return the tables that the run wrote, dlt's own left out, most rows first."""
        rows: dict[str, int] = {}
        seconds: dict[str, float] = {}
        # A repeated extract or normalize tells of its package again, and knows better; each load tells what it did.
        latest: dict[tuple[str, ...], tuple[bool, Sequence[Mapping[str, Any]]]] = {}
        for step in self._steps.values():
            info = step.step_info
            if isinstance(info, ExtractInfo | NormalizeInfo | LoadInfo):
                for load_id, metrics in info.metrics.items():
                    which = (step.step, load_id, step.span_id if isinstance(info, LoadInfo) else "")
                    latest[which] = isinstance(info, NormalizeInfo), metrics
        for is_normalize, metrics in latest.values():
            for metric in metrics:
                _count(metric, is_normalize, rows, seconds)
        earlier = self._tables_of_earlier_runs()
        tables = [
            TableRow(name, rows.get(name, 0), seconds.get(name, 0.0), name in earlier)
            for name in rows.keys() | earlier
            if not name.startswith("_dlt")
        ]
        return most_rows_first(tables)

    def _tables_of_earlier_runs(self) -> set[str]:
        """Return the tables in packages that this run has loaded but not normalised."""
        infos = [step.step_info for step in self._steps.values()]
        normalized = {load_id for info in infos if isinstance(info, NormalizeInfo) for load_id in info.loads_ids}
        return {
            job.table_name
            for info in infos
            if isinstance(info, LoadInfo)
            for load_id, metrics in info.metrics.items()
            if load_id not in normalized
            for metric in metrics
            for job in metric["job_metrics"].values()
        }


def summary(record: RunRecord) -> str:
    """Return the page about a run that people open, as Markdown without any secret."""

    def safe(text: str) -> str:
        return redact(text, record.secrets)

    parts = [f"# {_span(safe(record.pipeline_name))}: {_outcome(record)}"]
    if record.error is not None:
        parts += ["## Error", _span(safe(_one_line(record.error))[:LONGEST_MESSAGE])]
    if stages := record.stages():
        rows = [(row.name, row.state, str(row.tries), f"{row.seconds:,.1f}") for row in stages]
        parts += ["## Stages", _table(("Stage", "State", "Tries", "Seconds"), rows, right=(2, 3))]
    if tables := record.tables():
        rows = [(_code(safe(row.name)), row.rows_text, f"{row.seconds:,.1f}") for row in tables]
        parts += ["## Tables", _table(("Table", "Rows", "Seconds"), rows, right=(1, 2))]
    if record.failures:
        failures = record.failures + ([record.error] if record.error is not None else [])
        errors = [safe(_one_line(error))[:LONGEST_LINE] for error in failures]
        rows = [(str(number), _code(error)) for number, error in enumerate(errors, 1)]
        parts += ["## Failed attempts", _table(("Attempt", "Error"), rows, right=(0,))]
    facts = {
        "Destination": record.destination,
        "Dataset": record.dataset_name,
        "Load packages": ", ".join(record.load_ids),
        **record.settings,
    }
    rows = [(name, _code(safe(value))) for name, value in facts.items() if value]
    parts += ["## Run", _table(("Setting", "Value"), rows)]
    if record.schema_changes:
        rows = [
            (_code(safe(table)), _code(safe(column)), str(hints.get("data_type") or "not known yet"))
            for changes in record.schema_changes.values()
            for table, columns in changes.items()
            for column, hints in columns.items()
        ]
        parts += ["## Schema changes", _table(("Table", "Column", "Type"), rows)]
    if record.error is not None:
        parts += ["## Traceback", _fence(_cut(redacted_traceback(record.error, record.secrets)))]
    return "\n\n".join(parts) + "\n"


def most_rows_first(tables: Iterable[TableRow]) -> list[TableRow]:
    """Return the tables in the order in which people look for them."""
    return sorted(tables, key=lambda row: (-row.rows, row.name))


def headline(record: RunRecord) -> str:
    """Return what a run did in one plain line."""
    seconds = f"{record.seconds:,.1f} s"
    attempts = [f"{record.attempts} attempts"] if record.failures else []
    if record.error is not None:
        where = f" in {record.error.step}" if isinstance(record.error, PipelineStepFailed) else ""
        return " · ".join([f"Failed{where}", *attempts, seconds])
    tables = record.tables()
    rows = sum(row.rows for row in tables)
    loaded = [_number(rows, "row"), _number(len(tables), "table"), seconds]
    return " · ".join([_outcome(record).capitalize(), *loaded, *attempts])


def text_table(tables: Sequence[TableRow]) -> str:
    """Return the tables of a run as plain text for a terminal: table, rows, seconds."""
    rows = [("table", "rows", "seconds")]
    rows += [(row.name, row.rows_text, f"{row.seconds:,.1f}") for row in tables]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{name:<{widths[0]}}  {count:>{widths[1]}}  {seconds:>{widths[2]}}" for name, count, seconds in rows]
    return "\n".join(lines)


def _one_line(error: BaseException) -> str:
    """Say what went wrong, without what dlt says around it: the step, the error behind it, and its message."""
    if isinstance(error, PipelineStepFailed):
        return f"{error.step}: {_one_line(error.exception)}"
    return f"{type(error).__name__}: {error}"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _outcome(record: RunRecord) -> str:
    if record.finished_at is None:
        return "running"
    return "loaded" if record.error is None else "failed"


def _count(metric: Mapping[str, Any], is_normalize: bool, rows: dict[str, int], seconds: dict[str, float]) -> None:
    for name, written in metric.get("table_metrics", {}).items():
        seconds[name] = seconds.get(name, 0.0) + max(0.0, written.last_modified - written.created)
        if is_normalize:
            rows[name] = rows.get(name, 0) + written.items_count
    for job in metric.get("job_metrics", {}).values():
        if getattr(job, "finished_at", None) and getattr(job, "started_at", None):
            took = (job.finished_at - job.started_at).total_seconds()
            seconds[job.table_name] = seconds.get(job.table_name, 0.0) + took


def _seconds(step: PipelineStepTrace) -> float:
    return (step.finished_at - step.started_at).total_seconds() if step.finished_at else 0.0


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    lines = [" | ".join(cells) for cells in (header, rule, *rows[:LONGEST_TABLE])]
    table = "\n".join(f"| {line} |" for line in lines)
    if (more := len(rows) - LONGEST_TABLE) > 0:
        table += f"\n\n… and {more:,} more."
    return table


def _span(text: str) -> str:
    """Return text as code on one line; code ends at a backtick."""
    line = _UNPRINTABLE.sub("?", " ".join(text.split())).replace("`", "'")
    return f"`{line}`" if line else ""


def _code(text: str) -> str:
    """Return text as code, fit for a cell: a cell ends at a bar."""
    # A backslash is an ordinary character in code, but not before a bar.
    return re.sub(r"(\\*)\|", r"\1\1\\|", _span(text))


def _fence(text: str) -> str:
    lines = _UNPRINTABLE.sub("?", "\n".join(text.splitlines()))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return f"{fence}text\n{lines}\n{fence}"


def _cut(text: str) -> str:
    half = LONGEST_ERROR // 2
    if len(text) <= LONGEST_ERROR:
        return text
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"


def _now() -> datetime:
    return datetime.now(timezone.utc)
