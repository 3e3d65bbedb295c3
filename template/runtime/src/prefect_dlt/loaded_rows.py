"""What a table of a destination holds of one load, and how to take it back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from dlt.common.schema.utils import get_first_column_name_with_prop, is_nested_table
from dlt.destinations.exceptions import DatabaseException, DatabaseUndefinedRelation
from dlt.destinations.job_client_impl import SqlJobClientBase, SqlJobClientWithStagingDataset

BATCH = 1000
"""Row ids that one statement names."""

LOCK_TIMEOUT = 10
"""Seconds that a transaction of a client that is gone may take to end."""


class LoadedRows:
    """The rows of one table, in the dataset or in its staging dataset.

    Args:
        client: A client of the destination, connected.
        name: The table.
        staging: Whether the table of the staging dataset is meant.
    """

    def __init__(self, client: SqlJobClientBase, name: str, *, staging: bool = False) -> None:
        self._client = client
        self._sql: Any = client.sql_client  # pyright: ignore[reportUnknownMemberType]
        self.name = name
        self._staging = staging

    def exists(self) -> bool:
        """Tell whether there is such a table."""
        try:
            self._query("SELECT 1 FROM {table} WHERE 1 = 0")
        except DatabaseUndefinedRelation:
            return False
        return True

    def settle(self) -> None:
        """Wait for what a client that was killed still had under way in this table.

        PostgreSQL finishes a COMMIT whose client is gone, and rolls everything else back. Who holds a lock that no
        writer can share has seen all of them end. DuckDB ends with its process.
        """
        if not self._client.config.destination_type.endswith("postgres"):
            return
        # Without the right to lock, or behind somebody else's long transaction, what can be seen now has to do.
        with contextlib.suppress(DatabaseException), self._dataset(), self._sql.begin_transaction():
            self._sql.execute_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'")
            self._sql.execute_sql(f"LOCK TABLE {self._sql.make_qualified_table_name(self.name)} IN SHARE MODE")

    def count(self, column: str | None = None, value: str | None = None) -> int:
        """Return how many rows there are, all or those with this value in a column."""
        where, values = self._where(column, value)
        return int(self._query("SELECT count(*) FROM {table}" + where, *values)[0][0])

    def count_without(self, columns: Sequence[str]) -> int:
        """Return how many rows have a value in none of these columns."""
        if not columns:
            return self.count()
        where = " AND ".join(f"{self._column(column)} IS NULL" for column in columns)
        return int(self._query("SELECT count(*) FROM {table} WHERE " + where)[0][0])

    def found(self, column: str, ids: Sequence[str], also: tuple[str, str] | None = None) -> set[str]:
        """Return which of some ids, at most `BATCH`, the table holds.

        Args:
            column: The column of the ids.
            ids: The ids.
            also: A column and its value, which the rows must have as well.
        """
        where, values = self._among(column, ids, also)
        return {str(row[0]) for row in self._query(f"SELECT {self._column(column)} FROM {{table}}{where}", *values)}

    def are_of_others(self, column: str, ids: Sequence[str] | LoadedRows, load: str, load_id: str) -> bool:
        """Tell whether a row with one of some ids, or the row that it is nested in, was there before a load.

        Args:
            column: The column of the ids.
            ids: The ids, at most `BATCH`, or the table that holds them.
            load: The column of root tables that says which load a row is of.
            load_id: The load.
        """
        condition = self._of_others(load)
        if condition is None:
            return False
        where, values = self._in(ids, column) if isinstance(ids, LoadedRows) else self._among(column, ids)
        return bool(self._query(f"SELECT 1 FROM {{table}}{where} AND {condition} LIMIT 1", *values, load_id))

    def _of_others(self, load: str) -> str | None:
        """Return the condition that a row is of another load than the one given; None where nothing tells."""
        tables: Any = self._client.schema.tables
        name, parents = self.name, list[tuple[str | None, str | None, str]]()
        while is_nested_table(tables[name]):
            parent = tables[name]["parent"]
            parent_key = get_first_column_name_with_prop(tables[name], "parent_key")
            parents.append((parent_key, get_first_column_name_with_prop(tables[parent], "row_key"), parent))
            name = parent
        condition = f"{self._column(load)} <> %s" if load in tables[name]["columns"] else None
        for parent_key, row_key, parent in reversed(parents):
            if condition is None or parent_key is None or row_key is None:
                return None
            table = self._sql.make_qualified_table_name(parent)
            condition = f"{self._column(parent_key)} IN (SELECT {self._column(row_key)} FROM {table} WHERE {condition})"
        return condition

    def delete_ids(self, column: str, ids: Iterable[str], also: tuple[str, str] | None = None) -> None:
        """Delete the rows with these ids, and with the value `also` names as well."""
        for batch in batches(ids):
            where, values = self._among(column, batch, also)
            self._query("DELETE FROM {table}" + where, *values)

    def delete(self, column: str, value: str) -> None:
        """Delete the rows that have a value in a column."""
        where, values = self._where(column, value)
        self._query("DELETE FROM {table}" + where, *values)

    def delete_all(self) -> None:
        """Delete all rows."""
        with self._dataset():
            self._sql.truncate_tables(self.name)

    def delete_those_of(self, other: LoadedRows, column: str, without: str | None = None) -> None:
        """Delete the rows whose value in a column is one of another table's, and that have none in a second column."""
        alone = f" AND {self._column(without)} IS NULL" if without else ""
        where, values = self._in(other, column)
        self._query(f"DELETE FROM {{table}}{where}{alone}", *values)

    def _in(self, other: LoadedRows, column: str) -> tuple[str, list[str]]:
        column = self._column(column)
        with other._dataset():
            others = self._sql.make_qualified_table_name(other.name)
        return f" WHERE {column} IN (SELECT {column} FROM {others} WHERE {column} IS NOT NULL)", []

    def _where(self, column: str | None, value: str | None) -> tuple[str, list[str | None]]:
        return (f" WHERE {self._column(column)} = %s", [value]) if column else ("", [])

    def _among(self, column: str, ids: Sequence[str], also: tuple[str, str] | None = None) -> tuple[str, list[str]]:
        where = f" WHERE {self._column(column)} IN ({', '.join(['%s'] * len(ids))})"
        if also is None:
            return where, [*ids]
        return f"{where} AND {self._column(also[0])} = %s", [*ids, also[1]]

    def _column(self, name: str) -> str:
        return self._sql.escape_column_name(name)

    def _query(self, statement: str, *values: Any) -> list[Any]:
        with self._dataset():
            table = self._sql.make_qualified_table_name(self.name)
            return self._sql.execute_sql(statement.replace("{table}", table), *values) or []

    def _dataset(self) -> AbstractContextManager[Any]:
        if self._staging and isinstance(self._client, SqlJobClientWithStagingDataset):
            return self._client.with_staging_dataset()
        return contextlib.nullcontext()


def batches(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield ids in lists of at most `BATCH`."""
    waiting = iter(ids)
    while batch := list(islice(waiting, BATCH)):
        yield batch
