"""Whether a server has refused for good: what HTTP, SQL and SQLAlchemy say of a failure that no other try mends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

# Too early, too often, in conflict with or locked by another request, or lost on the way: it may pass later.
_PASSING_STATUSES = {408, 409, 421, 423, 425, 429}

_CLIENT_ERRORS = range(400, 500)

# Invalid authorization, no such database, no such schema, and syntax error or access rule violation.
_LASTING_SQLSTATES = ("28", "3D", "3F", "42")

# There already is such a column, table, schema or object: another one was quicker, and the next look will find it.
_RACES = {"42701", "42P06", "42P07", "42710"}

# psycopg2 and psycopg give no SQLSTATE for what a server says before it has let anyone in. A server that speaks another
# language is not understood, and tried again.
_NOT_LET_IN = re.compile(
    r"FATAL:\s+("
    r"password authentication failed|no pg_hba\.conf entry|pg_hba\.conf rejects|"
    r'(?:role|database) ".*" does not exist|permission denied for database|role ".*" is not permitted to log in)'
)

_LASTING_IN_SQLALCHEMY = {
    "ArgumentError",
    "InvalidRequestError",
    "NoSuchColumnError",
    "NoSuchModuleError",
    "NoSuchTableError",
}


def refusal(error: BaseException) -> str | None:
    """Say what tells that the other side has refused for good, for example "HTTP 404"; None when nothing does.

    Looks at the error itself only, and not at what is behind it.
    """
    return _by_status(error) or _by_sqlstate(error) or _by_sqlalchemy(error)


def _by_status(error: BaseException) -> str | None:
    # That of requests and of httpx; the libraries themselves need not be installed.
    response = getattr(error, "response", None)
    status, headers = getattr(response, "status_code", None), getattr(response, "headers", None)
    if not isinstance(status, int) or status not in _CLIENT_ERRORS or status in _PASSING_STATUSES:
        return None
    # GitHub, among others, says 403 to those that ask too often.
    if isinstance(headers, Mapping) and _is_a_limit(cast("Mapping[str, Any]", headers)):
        return None
    return f"HTTP {status}"


def _is_a_limit(headers: Mapping[str, Any]) -> bool:
    return "Retry-After" in headers or headers.get("X-RateLimit-Remaining") == "0"


def _by_sqlstate(error: BaseException) -> str | None:
    # psycopg2 calls it pgcode; psycopg, asyncpg, ADBC, Snowflake and MySQL's own driver call it sqlstate.
    state = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None)
    if isinstance(state, str) and state:
        return f"SQLSTATE {state}" if state.startswith(_LASTING_SQLSTATES) and state not in _RACES else None
    if type(error).__module__.startswith("psycopg") and (found := _NOT_LET_IN.search(str(error))):
        return found[1]
    return None


def _by_sqlalchemy(error: BaseException) -> str | None:
    kind = type(error)
    return kind.__name__ if kind.__module__ == "sqlalchemy.exc" and kind.__name__ in _LASTING_IN_SQLALCHEMY else None
