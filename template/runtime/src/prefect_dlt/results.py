"""What a flow that runs a source, whole or taken apart, gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dlt.common.pipeline import LoadInfo

from prefect_dlt.decompose import Mode
from prefect_dlt.errors import ComponentsFailedError
from prefect_dlt.record import TableRow, most_rows_first
from prefect_dlt.report import text_table

Outcome = Literal["loaded", "nothing to load", "failed", "interrupted", "not started"]


@dataclass(frozen=True)
class ComponentResult:
    """What became of one part of a source, or of the whole of it.

    Attributes:
        name: The part: its first resource, or "the whole source".
        pipeline_name: The pipeline that loaded it; None when it failed before there was one.
        seconds: How long it took, retries and pauses included; 0 when it was not started, or that is not known.
        load_info: dlt's info about the load; None when there was nothing to load, or it failed.
        tables: The tables that were loaded, most rows first; those of a failed part may not be loaded, or not wholly.
        error: What it failed with, or why it was not loaded, in one line without secrets; None when it was.
        started_at: When it began, by the clock of the machine that loaded it; None when that is not known.
        finished_at: When it ended.
        attempts: How often it was tried, pending data of earlier runs included; 0 when that is not known.
        summary_key: Key of the artifact with the summary of its pipeline; None where its collector writes none.
        failed_as: What it means that there is an error: "not started" and "interrupted" are those that were not loaded
            because the flow was stopped, or another part had failed.
    """

    name: str
    pipeline_name: str | None = None
    seconds: float = 0.0
    load_info: LoadInfo | None = None
    tables: tuple[TableRow, ...] = ()
    error: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = 0
    summary_key: str | None = None
    failed_as: Literal["failed", "interrupted", "not started"] = "failed"

    @property
    def rows(self) -> int:
        """Rows that were loaded, of all tables."""
        return sum(table.rows for table in self.tables)

    @property
    def outcome(self) -> Outcome:
        """What became of it, in a word or two."""
        if self.error is not None:
            return self.failed_as
        is_loaded = self.tables or (self.load_info is not None and self.load_info.loads_ids)
        return "loaded" if is_loaded else "nothing to load"


@dataclass(frozen=True)
class FlowResult:
    """What a flow made by `create_run_pipeline_flow` returns; as text, a short table of what was loaded.

    Attributes:
        components: One result per part of the source, in order of the parts' names.
        mode: The mode it was loaded in: "none", "sequential" or "parallel".
        reason: Why in this mode.
    """

    components: tuple[ComponentResult, ...]
    mode: Mode = "none"
    reason: str = ""

    @property
    def tables(self) -> tuple[TableRow, ...]:
        """All tables that were loaded, most rows first."""
        tables = (table for each in self.components if each.error is None for table in each.tables)
        return tuple(most_rows_first(tables))

    def __str__(self) -> str:
        return text_table(self.tables)


def all_loaded(flow_name: str, results: Sequence[ComponentResult]) -> tuple[ComponentResult, ...]:
    """Return the results of components that are all loaded.

    Raises:
        ComponentsFailedError: If some are not; it names each of them with its error, and has all results.
    """
    failures = {each.name: each.error for each in results if each.error is not None and each.failed_as == "failed"}
    if any(each.error is not None for each in results):
        loaded = tuple(each.name for each in results if each.error is None)
        not_loaded = {each.name: each.error for each in results if each.error is not None and each.name not in failures}
        raise ComponentsFailedError(flow_name, failures, loaded, not_loaded, tuple(results))
    return tuple(results)


def written_twice(results: Sequence[ComponentResult]) -> dict[str, tuple[str, ...]]:
    """Return the tables that more than one part has loaded, with those parts."""
    writers: dict[str, list[str]] = {}
    for result in results:
        for table in result.tables:
            writers.setdefault(table.name, []).append(result.name)
    return {table: tuple(names) for table, names in sorted(writers.items()) if len(names) > 1}
