"""Act on what happens to a load: before a retry, when the schema changes, and at the end."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import dlt
from dlt.common.pipeline import LoadInfo, SupportsPipeline
from dlt.pipeline.trace import PipelineTrace
from prefect import flow, get_run_logger, task
from tenacity import Retrying, stop_after_attempt

from prefect_dlt import PrefectCollector, runner
from prefect_dlt.schema_changes import SchemaChanges

calls = count(1)


class ShopCollector(PrefectCollector):
    """Tells the run's log what an operator wants to know."""

    def on_retry(
        self,
        pipeline: SupportsPipeline,
        trace: PipelineTrace | None,
        retry_attempt: int,
        last_attempt: bool,
        exception: BaseException,
    ) -> None:
        """Say why there is another attempt."""
        more = "the last one" if last_attempt else "not the last one"
        print(f"Retry {retry_attempt} of {pipeline.pipeline_name}, {more}, after {type(exception).__name__}")

    def on_schema_change(
        self, pipeline: SupportsPipeline, trace: PipelineTrace, schema_name: str, changes: SchemaChanges
    ) -> None:
        """Say which columns are new or different."""
        for table, change in changes.items():
            what = "new table" if change.is_new else "table"
            print(f"Schema {schema_name}, {what} {table}: {', '.join(change.columns)}")

    def on_after(
        self, pipeline: SupportsPipeline, trace: PipelineTrace | None, exception: BaseException | None
    ) -> None:
        """Say how it ended."""
        print(f"Pipeline {pipeline.pipeline_name}", "loaded" if exception is None else f"failed: {exception}")


@dlt.resource
def orders() -> Iterator[list[dict[str, Any]]]:
    """Yield orders, but not at the first call."""
    if next(calls) == 1:
        raise ConnectionError("The shop does not answer")
    yield [{"id": 1, "amount": 9.5}, {"id": 2, "amount": 3.0}]


@task(log_prints=True)  # what is printed goes to the log of the run
def load_orders() -> LoadInfo | None:
    """Load the orders, with a line of progress at most every 5 seconds."""
    pipeline = dlt.pipeline(
        "orders",
        destination=dlt.destinations.duckdb("shop.duckdb"),
        dataset_name="shop_data",
        progress=ShopCollector(5, logger=get_run_logger()),
    )
    policy = Retrying(stop=stop_after_attempt(3), reraise=True)
    return runner(pipeline, retry_policy=policy, retry_pipeline_steps=["extract", "load"]).run(orders())


@flow
def load_shop() -> None:
    """Load what the shop has."""
    load_orders()


if __name__ == "__main__":
    load_shop()
