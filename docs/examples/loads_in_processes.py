"""Load two shops at the same time, each in a process and a DuckDB file of its own."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import dlt
from dlt.extract import DltResource
from prefect import flow
from prefect.task_runners import ProcessPoolTaskRunner

from prefect_dlt import PrefectCollector, create_run_pipeline_task
from prefect_dlt.retry import fixed_attempts


@dlt.source
def shop() -> DltResource:
    """Return the orders."""

    @dlt.resource
    def orders() -> Iterator[list[dict[str, Any]]]:
        yield [{"id": 1, "amount": 9.5}, {"id": 2, "amount": 3.0}]

    return orders


def build_pipeline(name: str) -> dlt.Pipeline:
    """Return a pipeline into a file of its own, since DuckDB lets one process write at a time."""
    return dlt.pipeline(
        name,
        destination=dlt.destinations.duckdb(f"{name}_orders.duckdb"),
        dataset_name="shop_data",
        progress=PrefectCollector(),
    )


@flow(task_runner=ProcessPoolTaskRunner(max_workers=2))  # pyright: ignore[reportArgumentType]
def load_shops() -> None:
    """Load both, and say what became of each."""
    loads = [
        create_run_pipeline_task(
            partial(build_pipeline, name), shop, task_name=f"load {name}", retry_policy=fixed_attempts(3, wait=5)
        )
        for name in ("paris", "rome")
    ]
    for future in [load.submit() for load in loads]:  # pyright: ignore[reportUnknownMemberType]
        print(future.result())


if __name__ == "__main__":
    load_shops()
