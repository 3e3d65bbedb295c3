"""Tables of a database load whole, or only what changed in them."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dlt
import pytest

from sources import database
from tests.conftest import Query

ORDERS = "SELECT id, price FROM orders ORDER BY id"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """Return a small database that the source reads instead of the project's."""
    path = tmp_path / "shop.sqlite"
    monkeypatch.setenv("SOURCES__SQL_DATABASE__CREDENTIALS", f"sqlite:///{path.as_posix()}")
    monkeypatch.setenv("SOURCES__SQL_DATABASE__SCHEMA", "main")
    monkeypatch.setenv("SOURCES__SQL_DATABASE__TABLE_NAMES", '["orders"]')
    monkeypatch.setattr(database, "INCREMENTAL", {})
    with closing(sqlite3.connect(path)) as shop:
        shop.executescript(
            """
            CREATE TABLE orders (id INTEGER PRIMARY KEY, price REAL NOT NULL, updated_at TEXT NOT NULL);
            INSERT INTO orders VALUES (1, 0.5, '2026-01-01'), (2, 0.75, '2026-01-02');
            """
        )
        yield shop


def test_a_table_is_replaced(pipeline: dlt.Pipeline, query: Query, shop: sqlite3.Connection) -> None:
    pipeline.run(database.database())
    with shop:
        shop.execute("DELETE FROM orders WHERE id = 1")

    pipeline.run(database.database())

    assert query(ORDERS) == [(2, 0.75)]


def test_an_incremental_table_loads_what_changed(
    pipeline: dlt.Pipeline, query: Query, shop: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database.INCREMENTAL, "orders", "updated_at")
    pipeline.run(database.database())
    with shop:
        shop.execute("UPDATE orders SET price = 0.8, updated_at = '2026-01-03' WHERE id = 2")
        shop.execute("UPDATE orders SET price = 9.9 WHERE id = 1")  # unseen: its updated_at did not move

    pipeline.run(database.database())

    assert query(ORDERS) == [(1, 0.5), (2, 0.8)]
