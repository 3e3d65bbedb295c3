# ruff: noqa: S608 - names are escaped by dlt's own client of the destination, and values are parameters
"""What to ask a SQL destination about the rows of one load package, as SQL; nothing is asked here.

The names are those of `dlt.destinations.sql_jobs`, whose merges these queries look at from behind: rows are *staged*,
then merged into the destination by *keys*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from dlt.common.destination.capabilities import DestinationCapabilitiesContext
from dlt.common.schema.typing import TSchemaTables, TTableSchema, TTableSchemaColumns
from dlt.common.schema.utils import (
    get_active_record_timestamp,
    get_columns_names_with_prop,
    get_dedup_sort_tuple,
    get_first_column_name_with_prop,
    get_root_table,
    get_validity_column_names,
    is_nested_table,
)
from dlt.destinations.sql_client import SqlClientBase
from dlt.destinations.sql_jobs import SqlMergeFollowupJob

NO_LOAD_ID = "its rows carry no load id (for arrow data, normalize.parquet_normalizer.add_dlt_load_id adds it)"
NO_ROW_KEY = "its rows cannot be told to belong to rows of {}: a row key is missing"
NO_KEY = "it has no key to find its rows by"
FILTERED = "its rows were filtered when they were merged, and carry no root key"

REPLACING = ("delete-insert", "upsert", "cdc")
"""Merge strategies after which each key of a package is in one row; the others leave rows of earlier loads alone."""


class NotCountableError(Exception):
    """The rows of a package cannot be told apart in a table; the message says why."""


@dataclass(frozen=True)
class Query:
    """A query that returns one number, with its parameters."""

    sql: str
    parameters: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Merged:
    """What to ask about a table that a package was merged into.

    Attributes:
        what: What `expected` and `found` count.
        staged: Rows in the staging dataset.
        expected: How many of `what` were staged.
        found: How many of them the destination holds.
        deleted: Keys that were staged as deleted and that the destination still holds; None where dlt may insert such.
        doubled: Keys that are in several rows; None where `found` counts rows. It says something only where each key
            was staged once: these strategies take none out.
        ambiguous: Keys that were staged both with and without a mark as deleted, so that dlt picks one at random.
        without_key: Rows that were staged with a part of their key missing, and cannot be found by it; None where there
            are no such.
        is_deduplicated: Whether rows that were staged twice are merged once.
    """

    what: str
    staged: Query
    expected: Query
    found: Query
    deleted: Query | None = None
    doubled: Query | None = None
    ambiguous: Query | None = None
    without_key: Query | None = None
    is_deduplicated: bool = False


class CountQueries:
    """Makes the queries about one load package.

    Args:
        tables: The tables of the package's schema, prepared for the destination.
        client: Qualifies and escapes names; it is not connected to.
        load_id: The package.
        load_id_column: Name of the column with the load id, in the schema's naming convention.
    """

    def __init__(self, tables: TSchemaTables, client: SqlClientBase[Any], load_id: str, load_id_column: str) -> None:
        self._tables = tables
        self._client = client
        self._load_id = load_id
        self._load_id_column = load_id_column

    # -- append and replace -------------------------------------------------------------------------------------------

    def whole(self, table: str) -> Query:
        """Count all rows of a table."""
        return Query(f"SELECT count(*) FROM {self._name(table)}")

    def of_load(self, table: str) -> Query:
        """Count the rows of the package in a table: a root table by load id, a nested one through its parents.

        Raises:
            NotCountableError: If the rows carry no load id, or do not name their parents.
        """
        return Query(f"SELECT count(*) FROM {self._name(table)} WHERE {self._of_load(table)}", (self._load_id,))

    def known_before(self, root: str) -> Query:
        """Count the rows of other loads in a root table that have a row id of the package's rows."""
        table, name = self._tables[root], self._name(root)
        load_id, row_key = self._escaped(self._load_id_column), self._key(table, "row_key")
        ids = f"SELECT {row_key} FROM {name} WHERE {load_id} = %s"
        sql = f"SELECT count(*) FROM {name} WHERE {load_id} <> %s AND {row_key} IN ({ids})"
        return Query(sql, (self._load_id, self._load_id))

    def completed(self, table: str, load_id_column: str, status_column: str) -> Query:
        """Count how often dlt's table of loads names the package as loaded."""
        load_id, status = map(self._escaped, (load_id_column, status_column))
        return Query(
            f"SELECT count(*) FROM {self._name(table)} WHERE {load_id} = %s AND {status} = 0", (self._load_id,)
        )

    def _of_load(self, name: str) -> str:
        table = self._tables[name]
        if not is_nested_table(table):
            if not self._has_load_id(table):
                raise NotCountableError(NO_LOAD_ID)
            return f"{self._escaped(self._load_id_column)} = %s"
        # Not by root keys, even where there is a column for them: what was loaded without them has none.
        parent = cast("str", table.get("parent"))
        parent_key = get_first_column_name_with_prop(table, "parent_key")
        row_key = get_first_column_name_with_prop(self._tables[parent], "row_key")
        if not parent_key or not row_key:
            raise NotCountableError(NO_ROW_KEY.format(parent))
        parents = f"SELECT {self._escaped(row_key)} FROM {self._name(parent)} WHERE {self._of_load(parent)}"
        return f"{self._escaped(parent_key)} IN ({parents})"

    # -- merge --------------------------------------------------------------------------------------------------------

    def is_append(self, root: str) -> bool:
        """Tell whether dlt merges a table by appending all that was staged: it has no keys, and nothing is left out."""
        table = self._tables[root]
        has_keys = any(get_columns_names_with_prop(table, prop) for prop in ("primary_key", "merge_key"))
        return not has_keys and not self._is_marked(table) and self._conditions(table) == (None, None)

    def merged(self, name: str, strategy: str) -> Merged:
        """Ask about a table that the package was merged into.

        Args:
            name: The table, root or nested.
            strategy: How dlt merges its root table.

        Raises:
            NotCountableError: If its rows have nothing to find them by.
        """
        if is_nested_table(self._tables[name]):
            return self._merged_nested(name, strategy)
        return self._merged_root(name, strategy)

    def _merged_root(self, name: str, strategy: str) -> Merged:
        table, held, staged = self._tables[name], self._name(name), self._staged(name)
        primary = self._columns(table, "primary_key")
        keys = self._keys(table, strategy)
        what = "distinct keys" if primary or strategy == "scd2" else "rows"
        source_filter, scope = self._conditions(table)
        present = [f"{key} IS NOT NULL" for key in keys if self._is_nullable(table, key)]
        where = _where([*present, *([f"({source_filter})"] if source_filter and strategy != "insert-only" else [])])
        same = " AND ".join(f"d.{key} = k.{key}" for key in keys)
        listed = ", ".join(keys)
        all_staged = Query(f"SELECT count(*) FROM {staged}")
        missing = " OR ".join(f"{key} IS NULL" for key in keys if self._is_nullable(table, key))
        without_key = Query(f"SELECT count(*) FROM {staged} WHERE {missing}") if missing else None
        if not primary and strategy == "delete-insert":
            # All rows with one of the keys make way for all that were staged and are not marked as deleted.
            kept = _where([where.removeprefix(" WHERE "), *self._unmarked(table)])
            distinct = f"SELECT DISTINCT {listed} FROM {staged}{where}"
            return Merged(
                what,
                all_staged,
                Query(f"SELECT count(*) FROM {staged}{kept}"),
                Query(f"SELECT count(*) FROM {held} d INNER JOIN ({distinct}) k ON {same}"),
                without_key=without_key,
            )
        active = self._is_active(table) if strategy == "scd2" else ""
        grouped = self._grouped(table, keys, staged, where, is_sorted=strategy == "delete-insert")
        is_marked = self._is_marked(table) and strategy != "scd2"
        kept = f"SELECT {listed} FROM ({grouped}) g" + (" WHERE g.most = 0" if is_marked else "")
        is_exact = strategy == "delete-insert" and scope is None
        # These update every row with a key that was staged: also where earlier loads had left it twice.
        updates = strategy in ("upsert", "cdc")
        exists = f"EXISTS (SELECT 1 FROM {held} d WHERE {same}{active})"
        deletes = is_marked and strategy in ("delete-insert", "cdc")
        gone = f"SELECT {listed} FROM ({grouped}) g WHERE g.least = 1"
        return Merged(
            what,
            all_staged,
            Query(f"SELECT count(*) FROM ({kept}) k"),
            Query(f"SELECT count(*) FROM {held} d INNER JOIN ({kept}) k ON {same}")
            if is_exact
            else Query(f"SELECT count(*) FROM ({kept}) k WHERE {exists}"),
            deleted=Query(f"SELECT count(*) FROM ({gone}) k WHERE {exists}") if deletes else None,
            doubled=None if is_exact or updates else self._doubled(table, keys, held),
            ambiguous=Query(f"SELECT count(*) FROM ({grouped}) g WHERE g.least <> g.most") if is_marked else None,
            without_key=without_key,
            is_deduplicated=strategy == "delete-insert",
        )

    def _merged_nested(self, name: str, strategy: str) -> Merged:
        table, root = self._tables[name], get_root_table(self._tables, name)
        root_name = cast("str", root.get("name"))
        held, staged = self._name(name), self._staged(name)
        row_key = self._key(table, "row_key")
        source_filter, _ = self._conditions(root)
        all_staged = Query(f"SELECT count(*) FROM {staged}")
        if strategy not in REPLACING:
            if source_filter and strategy == "scd2":
                raise NotCountableError(FILTERED)
            distinct = f"SELECT DISTINCT {row_key} FROM {staged}"
            exists = f"EXISTS (SELECT 1 FROM {held} d WHERE d.{row_key} = k.{row_key})"
            return Merged(
                "distinct rows",
                all_staged,
                Query(f"SELECT count(*) FROM ({distinct}) k"),
                Query(f"SELECT count(*) FROM ({distinct}) k WHERE {exists}"),
                doubled=Query(
                    f"SELECT count(*) FROM (SELECT {row_key} FROM {held} WHERE {row_key} IN ({distinct}) "
                    f"GROUP BY {row_key} HAVING count(*) > 1) k"
                ),
            )
        is_child = table.get("parent") == root_name
        prop = "root_key" if get_first_column_name_with_prop(table, "root_key") or not is_child else "parent_key"
        root_key, root_row_key = self._key(table, prop), self._key(root, "row_key")
        conditions = [*([f"({source_filter})"] if source_filter else []), *self._unmarked(root)]
        roots = f"SELECT {root_row_key} FROM {self._staged(root_name)}{_where(conditions)}"
        arrived = f"SELECT {root_row_key} FROM {self._name(root_name)}"
        distinct = (
            f"SELECT DISTINCT {row_key} FROM {staged} WHERE {root_key} IN ({roots}) AND {root_key} IN ({arrived})"
        )
        return Merged(
            "rows of the merged keys",
            all_staged,
            Query(f"SELECT count(*) FROM ({distinct}) k"),
            Query(f"SELECT count(*) FROM {held} WHERE {root_key} IN ({roots})"),
            is_deduplicated=strategy == "delete-insert",
        )

    def _grouped(self, table: TTableSchema, keys: list[str], staged: str, where: str, *, is_sorted: bool) -> str:
        """Select each staged key, with the least and the most of its mark as deleted, 0 or 1, where there is one."""
        listed = ", ".join(keys)
        if not self._is_marked(table):
            return f"SELECT {listed} FROM {staged}{where} GROUP BY {listed}"
        (unmarked,) = self._unmarked(table)
        mark = f"CASE WHEN {unmarked} THEN 0 ELSE 1 END"
        rows = f"SELECT {listed}, {mark} AS marked, 1 AS place FROM {staged}{where}"
        if is_sorted and (sort := get_dedup_sort_tuple(table)) is not None:
            order = f"{self._escaped(sort[0])} {sort[1].upper()}"
            # Not the number of the row: of rows that are equal in order dlt picks one at random.
            place = f"RANK() OVER (PARTITION BY {listed} ORDER BY {order})"
            rows = f"SELECT {listed}, {mark} AS marked, {place} AS place FROM {staged}{where}"
        return (
            f"SELECT {listed}, MIN(r.marked) AS least, MAX(r.marked) AS most FROM ({rows}) r WHERE r.place = 1 "
            f"GROUP BY {listed}"
        )

    def _doubled(self, table: TTableSchema, keys: list[str], held: str) -> Query | None:
        if not self._has_load_id(table):
            return None
        listed = ", ".join(keys)
        load_id = self._escaped(self._load_id_column)
        twice = f"SELECT {listed} FROM {held} WHERE {load_id} = %s GROUP BY {listed} HAVING count(*) > 1"
        return Query(f"SELECT count(*) FROM ({twice}) k", (self._load_id,))

    def _keys(self, table: TTableSchema, strategy: str) -> list[str]:
        prop = "x-row-version" if strategy == "scd2" else "primary_key"
        columns = self._columns(table, prop) or self._columns(table, "merge_key") or self._columns(table, "row_key")
        if not columns:
            raise NotCountableError(NO_KEY)
        return columns[:1] if strategy == "scd2" else columns

    def _is_active(self, table: TTableSchema) -> str:
        to = f"d.{self._escaped(cast('str', get_validity_column_names(table)[1]))}"
        timestamp = get_active_record_timestamp(table)
        if timestamp is None:
            return f" AND {to} IS NULL"
        generic = DestinationCapabilitiesContext.generic_capabilities().format_datetime_literal
        literal = cast("Any", self._client.capabilities.format_datetime_literal or generic)
        return f" AND {to} = {literal(timestamp, self._client.capabilities.timestamp_precision)}"

    def _is_marked(self, table: TTableSchema) -> bool:
        return get_first_column_name_with_prop(table, "hard_delete") is not None

    def _unmarked(self, table: TTableSchema) -> list[str]:
        """Return the condition that a row is not marked as deleted; none where rows are not marked at all."""
        column = get_first_column_name_with_prop(table, "hard_delete")
        if column is None:
            return []
        generic = DestinationCapabilitiesContext.generic_capabilities().escape_literal
        literal = cast("Any", self._client.capabilities.escape_literal or generic)
        name = self._escaped(column)
        is_flag = _columns_of(table)[column].get("data_type") == "bool"
        return [f"({name} IS NULL OR {name} = {literal(False)})" if is_flag else f"{name} IS NULL"]

    def _conditions(self, table: TTableSchema) -> tuple[str | None, str | None]:
        return SqlMergeFollowupJob.get_merge_conditions(cast("Any", table), self._client)

    # -- names --------------------------------------------------------------------------------------------------------

    def _has_load_id(self, table: TTableSchema) -> bool:
        return "data_type" in _columns_of(table).get(self._load_id_column, {})

    def _is_nullable(self, table: TTableSchema, escaped: str) -> bool:
        return any(
            column.get("nullable", True)
            for name, column in _columns_of(table).items()
            if self._escaped(name) == escaped
        )

    def _columns(self, table: TTableSchema, prop: str) -> list[str]:
        return [self._escaped(column) for column in get_columns_names_with_prop(table, prop)]

    def _key(self, table: TTableSchema, prop: str) -> str:
        column = get_first_column_name_with_prop(table, prop)
        if column is None:
            raise NotCountableError(NO_ROW_KEY.format(table.get("parent") or table.get("name")))
        return self._escaped(column)

    def _escaped(self, column: str) -> str:
        return self._client.escape_column_name(column)

    def _name(self, table: str) -> str:
        return self._client.make_qualified_table_name(table)

    def _staged(self, table: str) -> str:
        return self._client.get_qualified_table_names(table)[1]


def _where(conditions: list[str]) -> str:
    found = [condition for condition in conditions if condition]
    return f" WHERE {' AND '.join(found)}" if found else ""


def _columns_of(table: TTableSchema) -> TTableSchemaColumns:
    return table.get("columns", {})
