"""A wide source, and a pipeline for it: what processes of a pool import, and build anew."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import dlt
from dlt.pipeline.pipeline import Pipeline
from prefect.task_runners import ProcessPoolTaskRunner

from prefect_dlt import CallbackCollector

DATASET = "wide_data"
ROWS = 40
COLUMNS = 60
KINDS = ("plain", "broad", "nested", "arrow")

# Beside the root table, which has ROWS: nested tables, with their rows.
NESTED_ROWS = {"lines": 2 * ROWS, "lines__parts": 6 * ROWS}

PRELOADED = ("dlt.destinations.impl.postgres.factory", "prefect.engine", "psycopg2", "pyarrow.parquet", __name__)
"""What each process would import by itself before it loads its first component."""


def table_name(number: int) -> str:
    """Return the name of the resource with a number, and of its table."""
    return f"{KINDS[number % len(KINDS)]}_{number:02}"


def expected_rows(width: int) -> dict[str, int]:
    """Return the rows of each table after one load."""
    names = [table_name(number) for number in range(width)]
    nested = {f"{name}__{table}": rows for name in names if "nested" in name for table, rows in NESTED_ROWS.items()}
    return {**dict.fromkeys(names, ROWS), **nested}


@dlt.source(name="wide")
def wide(width: int) -> Any:
    """Return so many resources: plain rows, rows with many columns, nested rows and Arrow tables in turn."""
    return [dlt.resource(rows_of, name=table_name(number))(KINDS[number % len(KINDS)]) for number in range(width)]


def rows_of(kind: str) -> Iterator[Any]:
    """Yield the rows of a resource in two pages."""
    for page in (range(ROWS // 2), range(ROWS // 2, ROWS)):
        rows = [_ROWS[kind](number) for number in page]
        if kind != "arrow":
            yield rows
            continue
        # Imported when it is needed, as a source of the user's may.
        import pyarrow as pa

        yield pa.Table.from_pylist(rows)


def _plain(number: int) -> dict[str, Any]:
    return {"id": number, "name": f"name {number}", "amount": number * 0.5}


def _broad(number: int) -> dict[str, Any]:
    day = date(2026, 1, 1 + number % 28)
    values = [number, f"text {number}", number * 0.25, number % 2 == 0, day, datetime(2026, 1, 1, tzinfo=timezone.utc)]
    values += [Decimal(number), {"nested": number}, None]
    return {"id": number, **{f"column_{each:02}": values[each % len(values)] for each in range(COLUMNS)}}


def _nested(number: int) -> dict[str, Any]:
    parts = [{"part": part, "day": date(2026, 1, 1 + part)} for part in range(3)]
    return {"id": number, "lines": [{"line": line, "parts": parts} for line in range(2)]}


def _arrow(number: int) -> dict[str, Any]:
    return {**_plain(number), "day": date(2026, 1, 1 + number % 28), "price": Decimal(number)}


_ROWS = {"plain": _plain, "broad": _broad, "nested": _nested, "arrow": _arrow}


def wide_pipeline(folder: Path, destination: str, address: str) -> Pipeline:
    """Return the pipeline that those of the components derive from."""
    # dlt's own default would be to say nothing, and then each component gets a collector that talks to Prefect.
    return dlt.pipeline(
        "wide",
        pipelines_dir=str(folder / "pipelines"),
        destination=getattr(dlt.destinations, destination)(address),
        dataset_name=DATASET,
        progress=CallbackCollector(3600.0),
    )


class ForkServerTaskRunner(ProcessPoolTaskRunner):
    """A pool whose processes are copies of one that has imported everything.

    Those of Prefect's import for seconds each: 32 of them take minutes, and hardly two begin at the same time.
    """

    def __enter__(self) -> Any:
        original = multiprocessing.get_context
        context: Any = original("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        multiprocessing.get_context = lambda method=None: context  # type: ignore[assignment]
        try:
            return super().__enter__()
        finally:
            multiprocessing.get_context = original
