"""Small sources with literal rows, importable from any process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dlt

ORDERS = [{"id": 1, "items": [{"sku": "a"}, {"sku": "b"}]}, {"id": 2, "items": [{"sku": "c"}]}]
CUSTOMERS = [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Grace"}, {"id": 3, "name": "Edsger"}]


@dlt.source
def shop() -> Any:
    """Orders with nested items, customers, and a transformer that hangs on the customers."""

    @dlt.resource
    def orders() -> Iterator[Any]:
        yield ORDERS

    @dlt.resource
    def customers() -> Iterator[Any]:
        yield CUSTOMERS

    @dlt.transformer(data_from=customers)
    def greetings(rows: list[dict[str, Any]]) -> Iterator[Any]:
        yield [{"id": row["id"], "text": f"Hello, {row['name']}"} for row in rows]

    return orders, customers, greetings
