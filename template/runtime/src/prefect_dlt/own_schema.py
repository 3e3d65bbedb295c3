"""Have a pipeline restore the schema that it has stored itself, where others store theirs under the same name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any, cast

from dlt.common.destination.client import StorageSchemaInfo
from dlt.common.json import json
from dlt.common.schema import Schema
from dlt.common.schema.utils import get_root_table
from dlt.destinations.job_client_impl import SqlJobClientBase


def with_own_schema(destination: Any, resources: Collection[str]) -> Any:
    """Return a copy of a destination that restores the newest schema with tables of these resources.

    The parts of a source have one schema name, that of the source, and dlt takes the newest schema of that name: on a
    machine that has not loaded a part before, that of any other part. Without its own, dlt does not know what it has
    loaded: it takes 2.5 for a column that holds whole numbers without a word, and a refresh drops nothing. For the same
    reason a refresh deletes only the stored schemas of its own part.

    Only where the destination can be asked with SQL; elsewhere it stays as it is.

    Args:
        destination: What the pipeline loads to.
        resources: All resources of the part, those that are not selected too.
    """
    kind: Any = cast("Any", type(destination))

    def client(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = kind.client(self, *args, **kwargs)
        return _restoring_own(made, resources) if isinstance(made, SqlJobClientBase) else made

    own = copy.copy(destination)
    # By its class, so that what is changed in a copy of it later counts as well. dlt names destinations by their class.
    own.__class__ = type(kind.__name__, (kind,), {"client": client, "__module__": kind.__module__})
    return own


def _restoring_own(made: Any, resources: Collection[str]) -> Any:
    newest = cast("Callable[[Any], StorageSchemaInfo | None]", made.get_stored_schema)

    def get_stored_schema(schema_name: Any = None) -> StorageSchemaInfo | None:
        stored: StorageSchemaInfo | None = newest(schema_name)
        if stored is None or schema_name is None or _has_tables_of(stored, resources):
            return stored
        return next(_versions_with(made, schema_name, resources), None)

    def delete_own(schema: Schema) -> None:
        # dlt deletes all that is stored under the name of a schema when it drops tables.
        for own_version in list(_versions_with(made, schema.name, resources)):
            table, columns = _version_table(made)
            query = f"DELETE FROM {table} WHERE {columns['version_hash']} = %s"  # noqa: S608 - dlt's identifiers
            made.sql_client.execute_sql(query, own_version.version_hash)

    # Nothing public comes between the drop of the tables and this, and both are one transaction.
    made._delete_schema_in_storage = delete_own  # noqa: SLF001
    made.get_stored_schema = get_stored_schema
    return made


def _versions_with(client: Any, schema_name: str, resources: Collection[str]) -> Iterator[StorageSchemaInfo]:
    """Yield the stored versions of a schema that have tables of these resources, the newest first."""
    table, columns = _version_table(client)
    query = (
        f"SELECT {columns['version_hash']} FROM {table} WHERE {columns['schema_name']} = %s "  # noqa: S608 - as above
        f"ORDER BY {columns['inserted_at']} DESC"
    )
    for (version_hash,) in client.sql_client.execute_sql(query, schema_name) or ():
        stored: StorageSchemaInfo | None = client.get_stored_schema_by_hash(version_hash)
        if stored is not None and _has_tables_of(stored, resources):
            yield stored


def _version_table(client: Any) -> tuple[str, dict[str, str]]:
    """Return the table that dlt stores schemas in, and columns of it, as they are written in SQL."""
    normalized = client.schema.naming.normalize_identifier
    columns = {
        name: str(client.sql_client.escape_column_name(normalized(name)))
        for name in ("version_hash", "schema_name", "inserted_at")
    }
    return str(client.sql_client.make_qualified_table_name(client.schema.version_table_name)), columns


def _has_tables_of(stored: StorageSchemaInfo, resources: Collection[str]) -> bool:
    tables: dict[str, Any] = json.loads(stored.schema)["tables"]
    return any(get_root_table(tables, name).get("resource") in resources for name in tables)
