"""The tables of a SQL database: address in .dlt/secrets.toml, schema and table names in .dlt/config.toml."""

import dlt
from dlt.extract import DltSource
from dlt.sources.sql_database import sql_database

# Tables of which a run loads only what is new or has changed: the table, and the column that grows with each change.
# Rows replace earlier ones with the same primary key; a table without one would only grow, so give it one with
# apply_hints(primary_key=...). All other tables are replaced as a whole.
INCREMENTAL: dict[str, str] = {
    # "orders": "updated_at",
}


def database() -> DltSource:
    """Return one resource for each table."""
    source = sql_database(backend="pyarrow")
    for name, table in source.resources.items():
        # Parquet is the fast way into the destination, and keeps every type.
        table.apply_hints(write_disposition="replace", file_format="parquet")
        if name in INCREMENTAL:
            table.apply_hints(write_disposition="merge", incremental=dlt.sources.incremental(INCREMENTAL[name]))
    return source
