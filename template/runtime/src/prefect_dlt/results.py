"""What a flow that runs a source, whole or taken apart, gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlt.common.pipeline import LoadInfo

from prefect_dlt.errors import ComponentsFailedError
from prefect_dlt.record import TableRow, most_rows_first
from prefect_dlt.report import text_table


@dataclass(frozen=True)
class ComponentResult:
    """What became of one part of a source, or of the whole of it.

    Attributes:
        name: The part: its first resource, or "the whole source".
        pipeline_name: The pipeline that loaded it; None when it failed.
        seconds: How long it took, retries and pauses included; 0 when it failed.
        load_info: dlt's info about the load; None when there was nothing to load, or it failed.
        tables: The tables that were loaded, most rows first.
        error: What it failed with, in one line without secrets; None when it was loaded.
    """

    name: str
    pipeline_name: str | None = None
    seconds: float = 0.0
    load_info: LoadInfo | None = None
    tables: tuple[TableRow, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class FlowResult:
    """What a flow made by `create_run_pipeline_flow` returns; as text, a short table of what was loaded.

    Attributes:
        components: One result per part of the source, in order of the parts' names.
    """

    components: tuple[ComponentResult, ...]

    @property
    def tables(self) -> tuple[TableRow, ...]:
        """All tables that were loaded, most rows first."""
        tables = (table for component in self.components for table in component.tables)
        return tuple(most_rows_first(tables))

    def __str__(self) -> str:
        return text_table(self.tables)


def all_loaded(flow_name: str, results: Sequence[ComponentResult]) -> tuple[ComponentResult, ...]:
    """Return the results of components that are all loaded.

    Raises:
        ComponentsFailedError: If some are not; it names each of them with its error.
    """
    failures = {result.name: result.error for result in results if result.error is not None}
    if failures:
        loaded = tuple(result.name for result in results if result.error is None)
        raise ComponentsFailedError(flow_name, failures, loaded)
    return tuple(results)
