"""Load a small source in a Prefect task, with its progress in the Prefect UI."""

from collections.abc import Iterator
from typing import Any

import dlt
from dlt.common.pipeline import LoadInfo
from prefect import flow, task

from prefect_dlt import PrefectCollector


@dlt.resource(primary_key="id", write_disposition="merge")
def orders() -> Iterator[list[dict[str, Any]]]:
    """Yield five pages of orders."""
    for page in range(5):
        yield [{"id": 100 * page + number, "amount": 9.5} for number in range(100)]


@task
def load_orders() -> LoadInfo:
    """Load the orders into a DuckDB file in the current folder."""
    pipeline = dlt.pipeline(
        "orders",
        destination=dlt.destinations.duckdb("shop.duckdb"),
        dataset_name="shop_data",
        progress=PrefectCollector(),
    )
    return pipeline.run(orders())


@flow
def load_shop() -> None:
    """Load what the shop has."""
    load_orders()


if __name__ == "__main__":
    load_shop()
