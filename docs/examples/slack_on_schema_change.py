"""Tell a Slack channel when a table of the destination is new or has new columns."""

from collections.abc import Iterator
from typing import Any

import dlt
from dlt.common.pipeline import LoadInfo, SupportsPipeline
from dlt.common.runtime.slack import send_slack_message
from dlt.pipeline.trace import PipelineTrace
from prefect import flow, task

from prefect_dlt import PrefectCollector
from prefect_dlt.schema_changes import SchemaChanges


class SlackCollector(PrefectCollector):
    """Posts one message for each schema that has changed."""

    def on_schema_change(
        self, pipeline: SupportsPipeline, trace: PipelineTrace, schema_name: str, changes: SchemaChanges
    ) -> None:
        """Name each table with its columns that are new or different."""
        tables = [f"`{table}`: {', '.join(change.columns)}" for table, change in changes.items()]
        title = f"*{pipeline.pipeline_name}* has changed schema `{schema_name}`"
        # Asked for here and not kept: a collector may be copied, and sent to other processes.
        send_slack_message(dlt.secrets["runtime.slack_incoming_hook"], "\n".join([title, *tables]))


@dlt.resource
def orders() -> Iterator[list[dict[str, Any]]]:
    """Yield orders."""
    yield [{"id": 1, "amount": 9.5}, {"id": 2, "amount": 3.0}]


@task
def load_orders() -> LoadInfo:
    """Load the orders."""
    pipeline = dlt.pipeline(
        "orders",
        destination=dlt.destinations.duckdb("shop.duckdb"),
        dataset_name="shop_data",
        progress=SlackCollector(),
    )
    return pipeline.run(orders())


@flow
def load_shop() -> None:
    """Load what the shop has."""
    load_orders()


if __name__ == "__main__":
    load_shop()
