"""A source of your own: start from this resource."""

from collections.abc import Iterator
from typing import Any

import dlt
from dlt.extract import DltResource


@dlt.source
def own() -> list[DltResource]:
    """Return the resources; each becomes a table."""
    return [items()]


# Rows replace earlier ones with the same primary key. Parquet is the fast way into the destination.
@dlt.resource(primary_key="id", write_disposition="merge", file_format="parquet")
def items() -> Iterator[list[dict[str, Any]]]:
    """Yield rows in batches, from an API or a file for example."""
    yield [
        {"id": 1, "name": "apple", "price": 0.5},
        {"id": 2, "name": "pear", "price": 0.75},
    ]
