"""A small database to load from."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import psycopg2


def shop_database(kind: str, folder: Path, make_database: Callable[[str], str], name: str) -> str:
    """Make a database with two tables and return its address, as SQLAlchemy reads it."""
    statements = [
        "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)",
        "INSERT INTO items VALUES (1, 'nut'), (2, 'bolt'), (3, '')",
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, item INTEGER)",
        f"INSERT INTO orders VALUES {', '.join(f'({number}, 2)' for number in range(1000))}",
    ]
    if kind == "sqlite":
        path = folder / "source.sqlite"
        with sqlite3.connect(path) as connection:
            connection.executescript(";".join(statements))
        return f"sqlite:///{path}"
    address = make_database(name)
    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute(";".join(statements))
    return address.replace("postgresql://", "postgresql+psycopg2://")
