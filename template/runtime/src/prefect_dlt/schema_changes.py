"""What changed between two states of the schemas of a pipeline: tables and columns, added or different."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from dlt.common.schema.typing import TColumnSchema, TTableSchema

TYPE_HINTS = ("data_type", "nullable", "precision", "scale", "timezone", "variant")
"""What makes the type of a column, in dlt's words; other hints do not change what the destination has."""

ColumnKind = Literal["new", "changed", "variant"]


@dataclass(frozen=True)
class ColumnChange:
    """One column that is new or differs.

    Attributes:
        column: Name of the column.
        kind: "new"; "changed", where its type did; or "variant", a new column that dlt made for values that do not fit
            the column `variant_of`.
        type: Its type as text, for example "decimal(38, 9) not null".
        was: Its type before, as text; None unless it changed.
        variant_of: The column whose values it takes; None unless it is a variant.
        definition: The column as dlt describes it.
    """

    column: str
    kind: ColumnKind
    type: str
    was: str | None
    variant_of: str | None
    definition: TColumnSchema

    @property
    def data_type(self) -> str:
        """The type in dlt's words, such as "bigint"."""
        return str(self.definition.get("data_type"))


@dataclass(frozen=True)
class TableChange:
    """One table that is new or differs.

    Attributes:
        schema: Name of the dlt schema, mostly that of the source.
        table: Name of the table.
        is_new: Whether the schema did not have the table before; `columns` is then the whole of it.
        columns: The columns that are new or differ, by name.
    """

    schema: str
    table: str
    is_new: bool
    columns: dict[str, ColumnChange]

    def then(self, later: TableChange) -> TableChange:
        """Return this change and one that a later step made, as one."""
        columns = dict(self.columns)
        for name, change in later.columns.items():
            known = columns.get(name)
            # Seen from before both, what was new stays new, and what was changed twice has its first type behind it.
            columns[name] = change if known is None else _column_change(name, change.definition, known.was)
        return TableChange(self.schema, self.table, self.is_new, columns)


SchemaChanges = dict[str, TableChange]
"""Table name to what is new or different in it."""

Columns = dict[str, dict[str, TColumnSchema]]
"""Table name to its columns, by name."""


def columns_of(tables: Iterable[TTableSchema]) -> Columns:
    """Return a copy of the columns of tables, to compare with later.

    A column of which dlt has seen no value yet has no type, and the destination has no such column: it is left out.
    """
    return {
        str(table.get("name")): {
            name: column.copy() for name, column in table.get("columns", {}).items() if column.get("data_type")
        }
        for table in tables
    }


def compare_schemas(before: Mapping[str, Columns], after: Mapping[str, Columns]) -> dict[str, SchemaChanges]:
    """Return schema name to its changes; schemas without changes are left out.

    dlt's own `schema_update` says too little for arrow data on some destinations, so whole schemas are compared.

    Args:
        before: Schema name to the columns of its tables, before a step.
        after: The same after it.
    """
    changes = {
        schema: {
            name: change
            for name, columns in tables.items()
            if (change := _table_change(schema, name, before.get(schema, {}).get(name), columns)) is not None
        }
        for schema, tables in after.items()
    }
    return {schema: tables for schema, tables in changes.items() if tables}


def type_text(column: TColumnSchema) -> str:
    """Return the type of a column as text: "bigint", "decimal(38, 9) not null", "timestamp without timezone"."""
    sizes = [str(size) for size in (column.get("precision"), column.get("scale")) if size is not None]
    text = f"{column.get('data_type')}({', '.join(sizes)})" if sizes else str(column.get("data_type"))
    if column.get("timezone") is False:
        text += " without timezone"
    return text if column.get("nullable", True) else f"{text} not null"


def _table_change(
    schema: str, name: str, before: Mapping[str, TColumnSchema] | None, after: Mapping[str, TColumnSchema]
) -> TableChange | None:
    known = before or {}
    columns = {
        column: _column_change(column, definition, type_text(known[column]) if column in known else None)
        for column, definition in after.items()
        if column not in known or any(known[column].get(hint) != definition.get(hint) for hint in TYPE_HINTS)
    }
    return TableChange(schema, name, before is None, columns) if columns else None


def _column_change(name: str, after: TColumnSchema, was: str | None) -> ColumnChange:
    if was is not None:
        return ColumnChange(name, "changed", type_text(after), was, None, after)
    if after.get("variant"):
        # dlt names them <column>__v_<type>.
        return ColumnChange(name, "variant", type_text(after), None, name.rpartition("__v_")[0] or None, after)
    return ColumnChange(name, "new", type_text(after), None, None, after)
