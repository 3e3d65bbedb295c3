"""A server that has refused for good is told from one that is busy."""

from __future__ import annotations

from http.client import responses
from typing import Any

import httpx
import psycopg2
import pytest
import requests
import sqlalchemy.exc

from prefect_dlt.refusals import refusal


def answered(status: int, **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code, response.url, response.reason = status, "https://shop.example/orders", responses[status]
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    try:
        response.raise_for_status()
    except requests.HTTPError as error:
        return error
    raise AssertionError(status)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 422])
def test_a_request_that_is_wrong_stays_wrong(status: int) -> None:
    assert refusal(answered(status)) == f"HTTP {status}"


@pytest.mark.parametrize("status", [408, 409, 423, 425, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_may_answer_later(status: int) -> None:
    assert refusal(answered(status)) is None


def test_a_limit_may_be_told_as_forbidden() -> None:
    assert refusal(answered(403, Retry_After="60")) is None
    assert refusal(answered(403, X_RateLimit_Remaining="0")) is None
    assert refusal(answered(403, X_RateLimit_Remaining="12")) == "HTTP 403"


def test_httpx_is_understood_as_well() -> None:
    request = httpx.Request("GET", "https://shop.example")
    error = httpx.HTTPStatusError("no", request=request, response=httpx.Response(404, request=request))

    assert refusal(error) == "HTTP 404"


class WithState(Exception):  # noqa: N818 - a driver's, whatever its name
    def __init__(self, sqlstate: Any) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.parametrize("state", ["28P01", "28000", "3D000", "3F000", "42501", "42601", "42703", "42P01"])
def test_what_a_database_does_not_have_or_allow_it_refuses_for_good(state: str) -> None:
    assert refusal(WithState(state)) == f"SQLSTATE {state}"


@pytest.mark.parametrize(
    "state", ["08006", "40001", "40P01", "53300", "57P01", "57P03", "42P07", "42701", "42710", "", None, 42]
)
def test_what_a_database_may_do_later_is_no_refusal(state: Any) -> None:
    assert refusal(WithState(state)) is None


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ('FATAL:  password authentication failed for user "ada"', True),
        ('FATAL:  role "ada" does not exist', True),
        ('FATAL:  database "shop" does not exist', True),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "ada"', True),
        ('FATAL:  permission denied for database "shop"', True),
        ('FATAL:  role "ada" is not permitted to log in', True),
        ("FATAL:  the database system is starting up", False),
        ("FATAL:  sorry, too many clients already", False),
        ("Connection refused", False),
        ("timeout expired", False),
    ],
)
def test_a_connection_that_is_not_let_in_is_told_from_one_that_came_too_early(said: str, refused: bool) -> None:
    error = psycopg2.OperationalError(f'connection to server at "10.0.0.2", port 5432 failed: {said}\n')

    assert (refusal(error) is not None) is refused
    # Whoever else says so may mean something else.
    assert refusal(OSError(str(error))) is None


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (sqlalchemy.exc.NoSuchTableError("orders"), "NoSuchTableError"),
        (sqlalchemy.exc.InvalidRequestError("requested table(s) not available"), "InvalidRequestError"),
        (sqlalchemy.exc.PendingRollbackError("reconnect"), None),
        (sqlalchemy.exc.OperationalError("SELECT 1", {}, OSError("down")), None),
        (sqlalchemy.exc.TimeoutError("pool"), None),
    ],
)
def test_a_table_that_is_not_there_is_told_from_a_lost_connection(error: Exception, refused: str | None) -> None:
    assert refusal(error) == refused


def test_an_attribute_of_that_name_may_hold_anything() -> None:
    error = OSError("down")
    for response in (None, "404", {"status_code": 404}):
        error.response = response  # type: ignore[attr-defined]
        assert refusal(error) is None
