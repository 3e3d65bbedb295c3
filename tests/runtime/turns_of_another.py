"""Another process that takes turns with a DuckDB file as it is told to, and says when it has."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import dlt

from prefect_dlt.turns import taking_turns


def main() -> None:
    held = ExitStack()
    for line in sys.stdin:
        what, path = line.split()
        if what == "take":
            pipeline = dlt.pipeline("another", destination=dlt.destinations.duckdb(path), dataset_name="shop_data")
            held.enter_context(taking_turns(pipeline))
            held.enter_context(pipeline.sql_client()).execute_sql("SELECT 1")
        else:
            held.close()
        print(what, flush=True)  # noqa: T201 - whoever has started it waits for that


if __name__ == "__main__":
    main()
