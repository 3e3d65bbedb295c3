"""Print, as JSON, how many rows each table of a DuckDB file has and how many are new.

Runs on the demo project's own Python, which has DuckDB.
Usage: python demo_tables.py <file> <Unix time, in seconds, from which a load counts as new>
"""

from __future__ import annotations

import json
import sys

import duckdb

TABLES = """
    SELECT schema_name, table_name FROM duckdb_columns()
    WHERE column_name = '_dlt_load_id' AND table_name NOT LIKE '\\_dlt%' ESCAPE '\\'
    ORDER BY ALL
"""
# A load id is the Unix time at which its package was begun.
COUNTS = """
    SELECT
        count(*),
        count(*) FILTER (_dlt_load_id::DOUBLE >= $since),
        (
            SELECT max(epoch(inserted_at) - load_id::DOUBLE) FROM "{schema}"._dlt_loads
            WHERE load_id::DOUBLE >= $since AND load_id IN (SELECT _dlt_load_id FROM rows)
        )
    FROM rows
"""


def main(file: str, since: float) -> None:
    """Count the rows of every table that dlt loads into."""
    tables: list[dict[str, object]] = []
    with duckdb.connect(file, read_only=True) as connection:
        for schema, table in connection.execute(TABLES).fetchall():
            rows = f'WITH rows AS (SELECT _dlt_load_id FROM "{schema}"."{table}")'  # noqa: S608 - the file's own names
            counts = connection.execute(rows + COUNTS.format(schema=schema), {"since": since})
            total, loaded, seconds = counts.fetchall()[0]
            tables.append({"table": table, "loaded": loaded, "rows": total, "seconds": seconds})
    print(json.dumps(tables))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
