"""What changed between two states of the schemas of a pipeline: tables and columns, added or different."""

from __future__ import annotations

from collections.abc import Mapping

from dlt.common.schema.typing import TColumnSchema, TTableSchema

SchemaChanges = dict[str, dict[str, TColumnSchema]]
"""Table name to the columns that are new or differ, each by name and as dlt describes it."""

_TYPE_HINTS = ("data_type", "nullable", "precision", "scale", "timezone", "variant")


def compare_schemas(
    before: Mapping[str, Mapping[str, TTableSchema]], after: Mapping[str, Mapping[str, TTableSchema]]
) -> dict[str, SchemaChanges]:
    """Return schema name to its changes; schemas without changes are left out.

    dlt's own `schema_update` says too little for arrow data on some destinations, so whole schemas are compared.

    Args:
        before: Schema name to table name to table, before a step.
        after: The same after it.
    """
    changes = {
        schema: {
            name: columns
            for name, table in tables.items()
            if (columns := _changed_columns(before.get(schema, {}).get(name), table))
        }
        for schema, tables in after.items()
    }
    return {schema: tables for schema, tables in changes.items() if tables}


def _changed_columns(before: TTableSchema | None, after: TTableSchema) -> dict[str, TColumnSchema]:
    known = before.get("columns", {}) if before else {}
    return {
        name: column
        for name, column in after.get("columns", {}).items()
        if name not in known or any(known[name].get(hint) != column.get(hint) for hint in _TYPE_HINTS)
    }
