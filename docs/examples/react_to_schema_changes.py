"""Run a flow whenever a table of the shop is new or different."""

from typing import Any

from prefect import flow
from prefect.events import DeploymentEventTrigger

ANY_TABLE_OF_THE_SHOP = DeploymentEventTrigger(
    name="tell-of-schema-changes",
    expect={"dlt.schema.changed"},
    match={"dlt.pipeline": "shop"},  # type: ignore[arg-type]
    parameters={
        "table": "{{ event.payload.table }}",
        "columns": {
            "__prefect_kind": "json",
            "value": {"__prefect_kind": "jinja", "template": "{{ event.payload.columns | tojson }}"},
        },
    },
)


@flow(log_prints=True)
def tell_of_schema_change(table: str, columns: list[dict[str, Any]]) -> None:
    """Print what changed."""
    for column in columns:
        print(f"{table}.{column['name']}: {column['change']}, {column['type']}")


if __name__ == "__main__":
    tell_of_schema_change.serve("tell-of-schema-changes", triggers=[ANY_TABLE_OF_THE_SHOP])
