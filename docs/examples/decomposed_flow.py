"""Take a source apart: a task and a pipeline for each part of it, two at a time."""

from collections.abc import Iterator
from typing import Any

import dlt
from dlt.extract import DltResource
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_dlt import PrefectCollector, create_run_pipeline_flow
from prefect_dlt.retry import fixed_attempts


@dlt.source
def shop() -> list[DltResource]:
    """Return orders, their lines, and customers; the lines are made from the orders."""
    return [orders, orders | order_lines, customers]


@dlt.resource
def orders() -> Iterator[list[dict[str, Any]]]:
    """Yield the orders."""
    yield [{"id": 1, "customer": 2}, {"id": 2, "customer": 1}]


@dlt.transformer
def order_lines(page: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield two lines for each order of a page."""
    yield [{"order": order["id"], "line": line} for order in page for line in (1, 2)]


@dlt.resource
def customers() -> Iterator[list[dict[str, Any]]]:
    """Yield the customers."""
    yield [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Grace"}, {"id": 3, "name": "Mary"}]


def build_pipeline() -> dlt.Pipeline:
    """Return the pipeline that those of the parts are derived from."""
    return dlt.pipeline(
        "shop",
        destination=dlt.destinations.duckdb("warehouse.duckdb"),
        dataset_name="shop_data",
        progress=PrefectCollector(),
    )


load = create_run_pipeline_flow(
    pipeline=build_pipeline,
    source=shop,
    decompose="parallel",
    flow_name="load-shop",
    retry_policy=fixed_attempts(3, wait=5),
)


@flow(task_runner=ThreadPoolTaskRunner(max_workers=2))  # pyright: ignore[reportArgumentType]
def main() -> None:
    """Load the shop, two parts at a time, and say what became of each."""
    result = load(write_disposition="replace")
    for part in result.components:
        print(f"{part.name}: {sum(table.rows for table in part.tables)} rows by pipeline {part.pipeline_name}")
    print(result)


if __name__ == "__main__":
    main()
