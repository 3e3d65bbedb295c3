"""What the report about changes of schemas says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefect_dlt.keys import artifact_key
from prefect_dlt.markdown import LONGEST_TABLE, cell, span, table
from prefect_dlt.page import (
    PageTable,
    Report,
    Section,
    about,
    as_it_is,
    counted,
    page,
)
from prefect_dlt.record import RunRecord
from prefect_dlt.redact import redaction
from prefect_dlt.schema_changes import ColumnChange, TableChange

SCHEMA_CHANGES = "schema_changes"
"""Name of the report."""

MOST_NEW_TABLES = 10
"""Tables whose columns are written out on the page about schema changes; all are in the list."""


def schema_report(record: RunRecord) -> Report:
    """Return the page about what changed in the schemas during a run."""
    safe = redaction(record.secrets)
    changed = changes_of(record)
    new, differing = [each for each in changed if each.is_new], [each for each in changed if not each.is_new]
    columns = sum(len(each.columns) for each in differing)
    figures = [counted(len(new), "new table")] if new else []
    if differing:
        figures.append(f"{counted(columns, 'column')} of {counted(len(differing), 'known table')}")
    line = "Schema changed · " + " · ".join(figures)
    listed = PageTable(
        record,
        "schema_columns",
        "Columns that are new or changed",
        {"Table": cell, "Column": cell, "Change": as_it_is, "Type": cell, "Was": cell},
        [
            {"Table": safe(each.table), "Column": safe(column.column), "Change": _kind(each, column, safe)}
            | {"Type": safe(column.type), "Was": safe(column.was or "")}
            for each in [*differing, *new]
            for column in each.columns.values()
        ],
    )
    sections = list[Section]()
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
        text = table(header[:wide], [row[:wide] for row in rows], more=listed.where())
        sections += [Section("Changed tables", text)]
    for each in new[:MOST_NEW_TABLES]:
        rows = [
            (cell(safe(column.column)), cell(safe(column.type)), _hints(column)) for column in each.columns.values()
        ]
        text = table(("Column", "Type", "Hints"), rows, more=listed.where())
        whence = f"From schema {span(safe(each.schema))}."
        sections += [Section(f"New table {span(safe(each.table))}", f"{whence}\n\n{text}")]
    if others := new[MOST_NEW_TABLES:]:
        rows = [(cell(safe(each.table)), f"{len(each.columns):,}") for each in others]
        text = table(("Table", "Columns"), rows, right=(1,), more=listed.where())
        sections += [Section("More new tables", text)]
    parts = [f"# {span(safe(record.pipeline_name))}: schema changed", " · ".join(figures)]
    parts += [section.under(2) for section in sections]
    parts += about(record, safe, record.package_ids)
    is_long = len(listed.rows) > LONGEST_TABLE
    lists = listed.long_list() if is_long else ()
    return Report(SCHEMA_CHANGES, line, page(parts), lists, sections=tuple(sections))


def schema_overview(record: RunRecord, changed: Sequence[TableChange]) -> str:
    """Return the changes as a table of their own, a line for each table."""
    safe = redaction(record.secrets)
    rows = [
        (
            cell(safe(each.table)),
            "new table" if each.is_new else "changed",
            counted(len(each.columns), "column")
            if each.is_new
            else cell(safe(", ".join(f"{column.column} {column.type}" for column in _of_the_user(each)))),
        )
        for each in changed
    ]
    where = f"in the artifact `{artifact_key(record.pipeline_name, SCHEMA_CHANGES)}`"
    text = table(("Table", "Change", "Columns"), rows, more=f", {where}")
    return f"{text}\n\nEach column with its type is {where}."


def changes_of(record: RunRecord) -> list[TableChange]:
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


def _of_the_user(change: TableChange) -> list[ColumnChange]:
    """Return the columns without dlt's own, unless there are no others."""
    columns = list(change.columns.values())
    return [column for column in columns if not column.column.startswith("_dlt")] or columns
