"""Retry a load whose source does not answer the first time, and store a trace of every attempt."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import dlt
from dlt.common.pipeline import LoadInfo
from prefect import flow, task

from prefect_dlt import PrefectCollector, runner
from prefect_dlt.retry import exponential_backoff

calls = count(1)


@dlt.resource
def orders() -> Iterator[list[dict[str, Any]]]:
    """Yield orders, but not at the first call."""
    if next(calls) == 1:
        raise ConnectionError("The shop does not answer")
    yield [{"id": 1, "amount": 9.5}, {"id": 2, "amount": 3.0}]


@task
def load_orders() -> LoadInfo | None:
    """Load the orders, in three attempts at most."""
    pipeline = dlt.pipeline(
        "orders",
        destination=dlt.destinations.duckdb("shop.duckdb"),
        dataset_name="shop_data",
        progress=PrefectCollector(),
    )
    return runner(
        pipeline,
        retry_policy=exponential_backoff(attempts=3, max=10),  # seconds; any tenacity policy will do
        retry_pipeline_steps=["extract", "normalize", "load"],  # by default "load" alone
        store_trace_info=True,  # into table orders_trace
    ).run(orders())


@flow
def load_shop() -> None:
    """Load what the shop has."""
    load_orders()


if __name__ == "__main__":
    load_shop()
