"""What is known of one run, as data that fills while it goes on; no Prefect, no input or output."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from uuid import UUID, uuid4

from dlt.common.pipeline import ExtractInfo, LoadInfo, NormalizeInfo, SupportsPipeline
from dlt.common.schema.typing import TColumnSchema
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.trace import PipelineStepTrace, PipelineTrace

from prefect_dlt.progress import STAGES, Stage
from prefect_dlt.schema_changes import SchemaChanges
from prefect_dlt.steps import seconds_of, tries
from prefect_dlt.verification import Verification


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
    """One stage of a run: its name, the most tries on the same data, its state, and its time in seconds."""

    name: str
    tries: int
    state: str
    seconds: float


@dataclass(frozen=True)
class Table:
    """A table of a pipeline's schemas: where its rows come from, and its columns.

    Attributes:
        name: Name of the table in the destination.
        schema: Name of the dlt schema, mostly that of the source.
        resource: The resource that its rows come from; None where dlt does not say.
        parent: The table that it is nested in; None for a root table.
        columns: Its columns by name, as dlt describes them; those without a type are not in the destination.
    """

    name: str
    schema: str
    resource: str | None
    parent: str | None
    columns: Mapping[str, TColumnSchema]


@dataclass(frozen=True)
class Usage:
    """What a run uses of the machine: this process and its children.

    Attributes:
        cpu: Share of one core since the measurement before, in percent; more than 100 on several cores.
        cpu_peak: The highest that was measured.
        memory: Resident memory now, in MiB.
        memory_peak: The most at once, in MiB; children are as measured, and may have had more in between.
        cpu_seconds: CPU time since the run began, in seconds.
    """

    cpu: float
    cpu_peak: float
    memory: float
    memory_peak: float
    cpu_seconds: float


@dataclass(frozen=True)
class FailedAttempt:
    """An attempt of a run that failed.

    Attributes:
        number: Which attempt of the run, from 1.
        of: How many it may make at most; None where the retry policy has no such number.
        started_at: When it began.
        finished_at: When it failed.
        error: What it failed with.
        step: The step that failed, in dlt's words; "run" where none did.
        pending: What waits in the working directory to be loaded, one line each.
        next: What happens next, in one or two sentences.
    """

    number: int
    of: int | None
    started_at: datetime
    finished_at: datetime
    error: BaseException
    step: str
    pending: tuple[str, ...]
    next: str

    @property
    def name(self) -> str:
        """Which one it is: "attempt 2 of 3", or "attempt 2"."""
        return f"attempt {self.number}" + (f" of {self.of}" if self.of is not None else "")


@dataclass
class Recovered:
    """What was found of a load that had been cut in the middle.

    Attributes:
        load_id: The load.
        loaded: Jobs that had been loaded, and are not loaded again.
        taken_back: Jobs that are loaded again, since what they had written could only be taken back.
        unsure: Tables of jobs of which nothing could be found out; dlt loads those again.
        completed: Whether all of it had been loaded.
    """

    load_id: str
    loaded: list[str] = field(default_factory=list[str])
    taken_back: list[str] = field(default_factory=list[str])
    unsure: set[str] = field(default_factory=set[str])
    completed: bool = False

    def __bool__(self) -> bool:
        return bool(self.loaded or self.taken_back or self.unsure or self.completed)

    @property
    def text(self) -> str:
        """What was found, in a line."""
        found: list[str] = []
        if self.completed:
            found.append("it had been loaded before the run was cut; not loaded again")
        if self.loaded:
            found.append(f"{_jobs(self.loaded)} had been loaded before the run was cut; not loaded again")
        if self.taken_back:
            found.append(f"{_jobs(self.taken_back)} loaded anew, after what had been written was taken back")
        if self.unsure:
            tables = ", ".join(sorted(self.unsure))
            found.append(
                f"whether interrupted jobs of {tables} had been loaded cannot be told, so they are loaded again, and "
                "their rows may be there twice; for Arrow tables, normalize.parquet_normalizer.add_dlt_load_id tells it"
            )
        return f"Load {self.load_id}: {'; '.join(found)}"


def _jobs(names: Sequence[str]) -> str:
    return "1 job" if len(names) == 1 else f"{len(names):,} jobs"


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
        failed_attempts: The attempts that failed, the one that ended the run included.
        schema_changes: Schema name to the tables and columns that appeared or changed.
        tables_known: The tables of the pipeline's schemas by name, dlt's own left out, as far as seen.
        environment: Where it runs: names and values as text.
        usage: What it uses of the machine, as last measured; None where it was not.
        secrets: Values that no report may hold.
        id: Tells it from the records of other runs.
        is_by_steps: Whether the steps are called one by one, and more of them may follow.
        recovered: What was found of loads that had been cut in the middle, before they were loaded on.
        verification: What was verified of it; None where nothing was asked for.
        untraced: What was loaded while dlt was told not to trace, so that nothing else is known of it.
        waited: Seconds that it waited for another run of the pipeline to end.
        discarded: What was pending and was put aside, one line each.
    """

    pipeline_name: str
    destination: str
    dataset_name: str
    settings: Mapping[str, str]
    started_at: datetime
    finished_at: datetime | None = None
    error: BaseException | None = None
    failed_attempts: list[FailedAttempt] = field(default_factory=list[FailedAttempt])
    schema_changes: dict[str, SchemaChanges] = field(default_factory=dict[str, SchemaChanges])
    tables_known: dict[str, Table] = field(default_factory=dict[str, Table], repr=False)
    environment: dict[str, str] = field(default_factory=dict[str, str])
    usage: Usage | None = None
    secrets: set[str] = field(default_factory=set[str], repr=False)
    id: UUID = field(default_factory=uuid4, repr=False)
    is_by_steps: bool = False
    recovered: list[Recovered] = field(default_factory=list[Recovered])
    verification: Verification | None = None
    untraced: LoadInfo | None = None
    waited: float = 0.0
    discarded: list[str] = field(default_factory=list[str])
    _steps: dict[str, PipelineStepTrace] = field(default_factory=dict[str, PipelineStepTrace], repr=False)

    @classmethod
    def of(cls, pipeline: SupportsPipeline, settings: Mapping[str, str]) -> RunRecord:
        """Begin the record of a run of this pipeline."""
        record = cls(pipeline.pipeline_name, "", "", settings, started_at=_now())
        record.describe(pipeline)
        return record

    # -- filling it ---------------------------------------------------------------------------------------------------

    def describe(self, pipeline: SupportsPipeline) -> None:
        """Note where the pipeline loads to; `pipeline.run` may be given another destination or dataset."""
        destination = pipeline.destination
        named = destination.destination_name if destination else "none"
        kind = destination.destination_type.rpartition(".")[2] if destination else named
        self.destination = named if named == kind else f"{named} ({kind})"
        self.dataset_name = pipeline.dataset_name or ""

    def add_trace(self, trace: PipelineTrace | None) -> None:
        """Take the steps of a trace."""
        for step in trace.steps if trace else ():
            self.add_step(step)

    def add_step(self, step: PipelineStepTrace) -> None:
        """Take a step.

        dlt merges traces, so a step that is known, or older than the run, is passed over.
        """
        if step.started_at >= self.started_at:
            self._steps.setdefault(step.span_id, step)

    def note_schema_changes(self, schema_name: str, changes: SchemaChanges) -> None:
        """Add what a step changed in a schema."""
        known = self.schema_changes.setdefault(schema_name, {})
        for table, change in changes.items():
            known[table] = known[table].then(change) if table in known else change

    def note_failure(
        self, error: BaseException, of: int | None, pending: Sequence[str], following: str
    ) -> FailedAttempt:
        """Add an attempt that has failed just now.

        Args:
            error: What it failed with.
            of: How many attempts the run may make at most, as far as known.
            pending: What waits to be loaded, one line each.
            following: What happens next.
        """
        began = self.failed_attempts[-1].finished_at if self.failed_attempts else self.started_at
        number = self.attempts_failed + 1
        step = error.step if isinstance(error, PipelineStepFailed) else self._failed_step(began)
        attempt = FailedAttempt(number, of, began, _now(), error, step, tuple(pending), following)
        self.failed_attempts.append(attempt)
        return attempt

    def _failed_step(self, since: datetime) -> str:
        failed = [step for step in self._steps.values() if step.step_exception and step.started_at >= since]
        return next((step.step for step in failed if step.step in STAGES), "run")

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

    # -- reading it ---------------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """How long the run took, or has taken so far, in seconds."""
        return ((self.finished_at or _now()) - self.started_at).total_seconds()

    @property
    def attempts_failed(self) -> int:
        """Attempts that failed."""
        return len(self.failed_attempts)

    @property
    def attempts(self) -> int:
        """Attempts made, the one that is under way included."""
        has_ended_failed = self.finished_at is not None and self.error is not None and bool(self.failed_attempts)
        return self.attempts_failed + (not has_ended_failed)

    @property
    def load_ids(self) -> list[str]:
        """Load packages that were loaded."""
        infos = [*(step.step_info for step in self._steps.values()), self.untraced]
        ids = (load_id for info in infos if isinstance(info, LoadInfo) for load_id in info.loads_ids)
        return list(dict.fromkeys(ids))

    @property
    def package_ids(self) -> list[str]:
        """Load packages that were extracted, normalised or loaded."""
        infos = (step.step_info for step in self.steps())
        return list(dict.fromkeys(load_id for info in infos if info for load_id in info.loads_ids))

    @property
    def failed_jobs(self) -> int:
        """Jobs that failed in the last load of each package; dlt may be told to go on without them."""
        latest: dict[str, int] = {}
        for step in self.steps("load"):
            if isinstance(step.step_info, LoadInfo):
                for package in step.step_info.load_packages:
                    latest[package.load_id] = len(package.jobs.get("failed_jobs", ()))
        return sum(latest.values())

    def steps(self, stage: Stage | None = None) -> list[PipelineStepTrace]:
        """Return the steps of a stage, or all of extract, normalize and load, in the order in which they ended."""
        return [step for step in self._steps.values() if (step.step == stage if stage else step.step in STAGES)]

    def stages(self) -> list[StageRow]:
        """Return extract, normalize and load as far as they ran, in this order."""
        rows: list[StageRow] = []
        for stage in STAGES:
            if steps := self.steps(stage):
                state = "failed" if steps[-1].step_exception else "done"
                rows.append(StageRow(stage, max(tries(steps)), state, sum(seconds_of(step) for step in steps)))
        return rows

    def tables(self) -> list[TableRow]:
        """Return the tables that the run wrote, dlt's own left out, most rows first."""
        rows: dict[str, int] = {}
        seconds: dict[str, float] = {}
        # A repeated extract or normalize tells of its package again, and knows better; each load tells what it did.
        latest: dict[tuple[str, ...], tuple[bool, Sequence[Mapping[str, Any]]]] = {}
        # Not the step "run", which tells once more what the last of them has told.
        for step in self.steps():
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


def most_rows_first(tables: Iterable[TableRow]) -> list[TableRow]:
    """Return the tables in the order in which people look for them."""
    return sorted(tables, key=lambda row: (-row.rows, row.name))


def _count(metric: Mapping[str, Any], is_normalize: bool, rows: dict[str, int], seconds: dict[str, float]) -> None:
    for name, written in metric.get("table_metrics", {}).items():
        seconds[name] = seconds.get(name, 0.0) + max(0.0, written.last_modified - written.created)
        if is_normalize:
            rows[name] = rows.get(name, 0) + written.items_count
    for job in metric.get("job_metrics", {}).values():
        if getattr(job, "finished_at", None) and getattr(job, "started_at", None):
            took = (job.finished_at - job.started_at).total_seconds()
            seconds[job.table_name] = seconds.get(job.table_name, 0.0) + took


def _now() -> datetime:
    return datetime.now(timezone.utc)
