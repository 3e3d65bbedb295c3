"""What is loaded while it is killed, and what a dataset must hold in the end: each row once, in its latest state."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dlt
from dlt.destinations.exceptions import DatabaseUndefinedRelation
from dlt.pipeline.pipeline import Pipeline

DESTINATIONS = ("duckdb", "postgres")
DISPOSITIONS = ("append", "merge", "replace")
LOADS = ("first", "shared", "later")

# What is there before, what the run that is killed brings, and what each run after it brings; how many make a file.
OLD_ROWS, NEW_ROWS, LATE_ROWS = 60, 180, 20
KEYS = 150
ROWS_PER_FILE = 30

# Read by dlt in the children only: each of them sets its own environment.
SETTINGS = {
    "SOURCES__DATA_WRITER__BUFFER_MAX_ITEMS": str(ROWS_PER_FILE),
    "SOURCES__DATA_WRITER__FILE_MAX_ITEMS": str(ROWS_PER_FILE),
    "NORMALIZE__DATA_WRITER__BUFFER_MAX_ITEMS": str(ROWS_PER_FILE),
    "NORMALIZE__DATA_WRITER__FILE_MAX_ITEMS": str(ROWS_PER_FILE),
    "NORMALIZE__PARQUET_NORMALIZER__ADD_DLT_LOAD_ID": "true",
    "RUNTIME__DLTHUB_TELEMETRY": "false",
    "RUNTIME__LOG_LEVEL": "WARNING",
}

DATASET = "shop_data"


@dataclass(frozen=True)
class Case:
    """One way to load.

    Attributes:
        destination: "duckdb" or "postgres".
        disposition: "append", "merge" or "replace".
        load: "first", into a dataset that does not exist; "shared", first into a dataset of another pipeline; "later".
        variant: "rows", as INSERT statements; "files", as Parquet for DuckDB and CSV for PostgreSQL; "arrow", Arrow
            tables; or else a strategy of merge or replace, with rows.
    """

    destination: str
    disposition: str
    load: str
    variant: str

    @property
    def combination(self) -> str:
        """What the case is counted as."""
        return f"{self.destination} {self.disposition} {self.load}"

    def changes(self, turn: int) -> int:
        """Return how many changes the source has had when it is read: 0, before the run that is killed; 1, by it."""
        old = OLD_ROWS if self.load == "later" else 0
        return old + (NEW_ROWS + LATE_ROWS * (turn - 1) if turn else 0)


STAGED = ("insert-from-staging", "staging-optimized")
VARIANTS = {
    ("append", "duckdb"): ("rows", "files", "arrow"),
    ("append", "postgres"): ("rows", "files", "arrow"),
    ("merge", "duckdb"): ("rows", "arrow", "files", "upsert"),
    ("merge", "postgres"): ("rows", "arrow", "files", "upsert"),
    ("replace", "duckdb"): ("rows", "insert-from-staging", "arrow", "files"),
    # DuckDB has no faster way by staging than the plain one.
    ("replace", "postgres"): ("rows", "staging-optimized", "arrow", "insert-from-staging"),
}


def all_cases(turn: int) -> list[Case]:
    """Return all cases so that any number of the first ones is spread evenly over all combinations.

    Args:
        turn: With which of its variants each combination begins.
    """
    combinations = list(itertools.product(LOADS, DISPOSITIONS, DESTINATIONS))
    cases: list[Case] = []
    for each in range(max(map(len, VARIANTS.values()))):
        for at, (load, disposition, destination) in enumerate(combinations):
            variants = VARIANTS[disposition, destination]
            cases.append(Case(destination, disposition, load, variants[(turn + each + at) % len(variants)]))
    return cases


def current_rows(case: Case, changes: int) -> dict[int, int]:
    """Return what the source holds after so many changes, value by id; the value is the number of the last change."""
    if case.disposition == "append":
        return {change: change for change in range(changes)}
    if case.disposition == "merge":
        return {change % KEYS: change for change in range(changes)}
    # All rows change at a time, and there are fewer of them in the end.
    size = LATE_ROWS if changes > case.changes(1) else changes - case.changes(0) or changes
    return {number: changes + number for number in range(size)}


def make_row(number: int, value: int) -> dict[str, Any]:
    """Return a row with one or two lines, some of which have a part; later rows have one more column."""
    lines = [
        {"line": value * 10 + line, "parts": [{"part": value * 100 + line}] if value % 3 == 0 else []}
        for line in range(1 + value % 2)
    ]
    return {"id": number, "value": value, "lines": lines, **({"note": "new"} if value >= NEW_ROWS else {})}


def source(case: Case, changes: int) -> Any:
    """Return a resource that reads what is new since the last run; all of it to replace."""
    rows = current_rows(case, changes)
    disposition: Any = case.disposition
    if case.variant == "upsert":
        disposition = {"disposition": "merge", "strategy": "upsert"}

    def pages(last: int | None) -> Iterator[Any]:
        new = sorted((value, number) for number, value in rows.items() if last is None or value > last)
        for start in range(0, len(new), ROWS_PER_FILE):
            page = [make_row(number, value) for value, number in new[start : start + ROWS_PER_FILE]]
            if case.variant != "arrow":
                yield page
                continue
            import pyarrow as pa

            yield pa.Table.from_pylist([{key: value for key, value in row.items() if key != "lines"} for row in page])

    if case.disposition == "replace":
        return dlt.resource(pages(None), name="events", write_disposition=disposition)

    @dlt.resource(
        name="events", write_disposition=disposition, primary_key="id" if case.disposition == "merge" else None
    )
    def events(cursor: Any = dlt.sources.incremental("value")) -> Iterator[Any]:  # noqa: B008 - dlt's way
        yield from pages(cursor.last_value)

    return events


def run_options(case: Case) -> dict[str, Any]:
    """Return what `run` is given besides the source."""
    if case.variant == "files":
        return {"loader_file_format": "parquet" if case.destination == "duckdb" else "csv"}
    return {}


def make_pipeline(case: Case, folder: Path, address: str, name: str = "shop", **options: Any) -> Pipeline:
    """Return the pipeline of a case.

    Args:
        case: What is loaded.
        folder: Where the pipeline works.
        address: Where the database is: a path for DuckDB, a URL for PostgreSQL.
        name: The name of the pipeline.
        **options: What `dlt.pipeline` takes besides.
    """
    make = getattr(dlt.destinations, case.destination)
    strategy = {"replace_strategy": case.variant} if case.variant in STAGED else {}
    return dlt.pipeline(
        name, pipelines_dir=str(folder), destination=make(address, **strategy), dataset_name=DATASET, **options
    )


@dataclass
class Difference:
    """What a dataset holds, against what it should.

    Attributes:
        lost: Rows that are missing, or not in their latest state.
        surplus: Rows that are there twice, or should not be there any more.
    """

    lost: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    surplus: Counter[tuple[Any, ...]] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.lost or self.surplus)

    @property
    def size(self) -> int:
        """How many rows differ."""
        return self.lost.total() + self.surplus.total()

    def __str__(self) -> str:
        return "; ".join(
            f"{name} {dict(Counter(row[0] for row in rows.elements()))}, for example {sorted(rows, key=str)[:3]}"
            for name, rows in (("lost", self.lost), ("surplus", self.surplus))
            if rows
        )


def expected_rows(case: Case, changes: int) -> Counter[tuple[Any, ...]]:
    """Return the rows of all tables, nested ones with what identifies their parent."""
    expected: Counter[tuple[Any, ...]] = Counter()
    for number, value in current_rows(case, changes).items():
        expected["events", number, value] += 1
        for line in make_row(number, value)["lines"] if case.variant != "arrow" else ():
            expected["events__lines", number, line["line"]] += 1
            for part in line["parts"]:
                expected["events__lines__parts", line["line"], part["part"]] += 1
    return expected


# The parents are joined from outside, so that a row without one is seen, and one with two is seen twice.
QUERIES = {
    "events": "SELECT id, value FROM {events}",
    "events__lines": "SELECT p.id, c.line FROM {events__lines} c LEFT JOIN {events} p ON p._dlt_id = c._dlt_parent_id",
    "events__lines__parts": (
        "SELECT p.line, c.part FROM {events__lines__parts} c"
        " LEFT JOIN {events__lines} p ON p._dlt_id = c._dlt_parent_id"
    ),
}
# Each of these rows exists once.
BOOKS = {
    "_dlt_loads": "SELECT load_id FROM {_dlt_loads}",
    "_dlt_pipeline_state": "SELECT pipeline_name, version FROM {_dlt_pipeline_state}",
    "_dlt_version": "SELECT schema_name, version_hash FROM {_dlt_version}",
}


@dataclass(frozen=True)
class Holdings:
    """What a dataset holds.

    Attributes:
        rows: The rows of all tables, as `expected_rows` has them.
        books: What dlt notes in tables of its own.
        unfinished: Loads that rows are of, and that dlt has not noted as done.
    """

    rows: Counter[tuple[Any, ...]]
    books: Counter[tuple[Any, ...]]
    unfinished: Counter[tuple[Any, ...]]

    def compare(self, case: Case, changes: int) -> Difference:
        """Return how this differs from what the source held after so many changes."""
        expected = expected_rows(case, changes)
        return Difference(
            expected - self.rows + self.unfinished, self.rows - expected + self.books - Counter(set(self.books))
        )


def look(pipeline: Pipeline, case: Case) -> Holdings:
    """Return what a dataset holds; a table that does not exist holds nothing."""
    with pipeline.sql_client() as client:
        tables = {name: client.make_qualified_table_name(name) for name in (*QUERIES, *BOOKS)}

        def read(query: str) -> list[tuple[Any, ...]]:
            try:
                return [tuple(row) for row in client.execute_sql(query.format(**tables)) or ()]
            except DatabaseUndefinedRelation:
                return []

        nested = case.variant != "arrow"
        queries = {table: query for table, query in QUERIES.items() if nested or table == "events"}
        loaded = read("SELECT load_id FROM {_dlt_loads} WHERE status = 0")
        used = read("SELECT DISTINCT _dlt_load_id FROM {events}")
        return Holdings(
            Counter((table, *row) for table, query in queries.items() for row in read(query)),
            Counter((table, *row) for table, query in BOOKS.items() for row in read(query)),
            Counter(("_dlt_loads", *row) for row in {*used} - {*loaded}),
        )
