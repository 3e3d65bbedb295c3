"""What a run does when a REST API or a PostgreSQL server, real ones on the loopback device, fail in all usual ways."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import dlt
import psycopg2
import pytest
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline
from dlt.sources.helpers.requests import Client
from dlt.sources.rest_api import rest_api_source
from dlt.sources.sql_database import sql_database
from requests import HTTPError
from tenacity import Retrying

from prefect_dlt import runner
from prefect_dlt.retry import exponential_backoff, fixed_attempts, no_retry
from prefect_dlt.runner import PipelineRunner
from tests.postgres import by_port, socket_of
from tests.runtime.conftest import count
from tests.runtime.proxy import Mode, Proxy
from tests.tcp_proxy import TcpProxy

EXTRACT_AND_LOAD = ["extract", "load"]

PAGE = 2

TWICE = fixed_attempts(2, wait=0.0)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _one_try_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """dlt's own tries of a job, five by default, come before the runner's."""
    monkeypatch.setenv("LOAD__RAISE_ON_MAX_RETRIES", "1")


def recovering(policy: Retrying, recover: Callable[[], None]) -> Retrying:
    """Let what failed recover before the second attempt."""
    return policy.copy(before_sleep=lambda _state: recover())


def attempts_of(run: PipelineRunner) -> tuple[int, list[str]]:
    """Return how many attempts there were, and what was said about the failed ones."""
    assert run.record is not None
    return len(run.record.failed_attempts), [attempt.next for attempt in run.record.failed_attempts]


# -- a REST API --------------------------------------------------------------------------------------------------------


class Shop(BaseHTTPRequestHandler):
    """Orders with their items, in pages, and those only that changed since."""

    orders: list[dict[str, Any]]

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        orders = [each for each in self.orders if each["updated_at"] >= query["since"]]
        first = (int(query["page"]) - 1) * PAGE
        body = json.dumps({"data": orders[first : first + PAGE], "pages": -(-len(orders) // PAGE)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def order(number: int) -> dict[str, Any]:
    items = [{"sku": f"{number}-{each}"} for each in range(2)]
    return {"id": number, "updated_at": f"2026-01-{number:02}", "items": items}


@pytest.fixture
def orders() -> list[dict[str, Any]]:
    return [order(number) for number in range(1, 7)]


@pytest.fixture
def api(orders: list[dict[str, Any]]) -> Iterator[Proxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnShop", (Shop,), {"orders": orders}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
    yield proxy
    proxy.close()
    server.shutdown()
    server.server_close()


def rest_shop(api: Proxy, attempts: int = 1) -> Any:
    session = Client(
        request_timeout=0.5,
        raise_for_status=False,
        request_max_attempts=attempts,
        request_backoff_factor=0,
        request_max_retry_delay=0.01,
    ).session
    return rest_api_source(
        {
            "client": {
                "base_url": api.url,
                "session": session,
                "paginator": {"type": "page_number", "base_page": 1, "total_path": "pages"},
            },
            "resources": [
                {
                    "name": "orders",
                    "primary_key": "id",
                    "write_disposition": "append",
                    "endpoint": {
                        "path": "orders",
                        "data_selector": "data",
                        "params": {"since": "{incremental.start_value}"},
                        "incremental": {"cursor_path": "updated_at", "initial_value": "2026-01-01"},
                    },
                }
            ],
        },
        name="rest_shop",
    )


def pages(api: Proxy) -> list[int]:
    return [int(parse_qs(urlsplit(path).query)["page"][0]) for _, path in api.calls]


@pytest.mark.parametrize("failure", ["hanging", "cut", "reset", "429", "500"])
def test_an_api_that_fails_half_way_is_read_anew_and_each_row_is_loaded_once(
    pipeline: Callable[..., Pipeline], api: Proxy, orders: list[dict[str, Any]], failure: Mode
) -> None:
    api.plan.extend(["up", failure])
    api.refusal_headers = [("Retry-After", "30")]
    run = runner(pipeline(), retry_policy=TWICE, retry_pipeline_steps=EXTRACT_AND_LOAD)

    run.run(lambda: rest_shop(api))

    assert attempts_of(run)[0] == 1
    assert pages(api) == [1, 2, 1, 2, 3]
    assert (count(run.pipeline, "orders"), count(run.pipeline, "orders__items")) == (6, 12)
    # The failed attempt has not moved the cursor, and the one that passed has.
    orders.append(order(7))
    run.run(lambda: rest_shop(api))
    assert "since=2026-01-06" in api.calls[-1][1]
    assert (count(run.pipeline, "orders"), count(run.pipeline, "orders__items")) == (7, 14)


def test_an_api_that_refuses_connections_is_tried_again(pipeline: Callable[..., Pipeline], api: Proxy) -> None:
    api.mode = "down"
    policy = recovering(TWICE, lambda: setattr(api, "mode", "up"))
    run = runner(pipeline(), retry_policy=policy, retry_pipeline_steps=EXTRACT_AND_LOAD)

    run.run(lambda: rest_shop(api))

    assert attempts_of(run)[0] == 1
    assert count(run.pipeline, "orders") == 6


@pytest.mark.parametrize("failure", ["429", "500"])
def test_what_the_client_of_dlt_makes_good_is_no_failure(
    pipeline: Callable[..., Pipeline], api: Proxy, failure: Mode
) -> None:
    api.plan.extend(["up", failure])
    run = runner(pipeline())

    run.run(lambda: rest_shop(api, attempts=2))

    assert attempts_of(run)[0] == 0
    assert pages(api) == [1, 2, 2, 3]
    assert count(run.pipeline, "orders") == 6


@pytest.mark.parametrize("refusal", ["401", "404"])
def test_what_an_api_refuses_for_good_is_not_asked_for_again(
    pipeline: Callable[..., Pipeline], api: Proxy, refusal: Mode
) -> None:
    api.plan.extend(["up", refusal])
    run = runner(pipeline(), retry_policy=TWICE, retry_pipeline_steps=EXTRACT_AND_LOAD)

    with pytest.raises(PipelineStepFailed, match=refusal):
        run.run(lambda: rest_shop(api))

    assert pages(api) == [1, 2]
    assert attempts_of(run) == (
        1,
        [f"No further attempt: it would fail in the same way again (HTTP {refusal}). Nothing is pending."],
    )


def test_a_limit_that_passes_is_told_from_a_refusal(pipeline: Callable[..., Pipeline], api: Proxy) -> None:
    api.plan.append("401")
    api.refusal_headers = [("Retry-After", "1")]
    run = runner(pipeline(), retry_policy=TWICE, retry_pipeline_steps=EXTRACT_AND_LOAD)

    run.run(lambda: rest_shop(api))

    assert count(run.pipeline, "orders") == 6


def test_a_source_that_fails_is_not_read_again_unless_extract_is_named(
    pipeline: Callable[..., Pipeline], api: Proxy
) -> None:
    api.plan.append("500")
    run = runner(pipeline(), retry_policy=TWICE)

    with pytest.raises(PipelineStepFailed) as raised:
        run.run(lambda: rest_shop(api))

    assert isinstance(raised.value.exception.__cause__, HTTPError)
    assert pages(api) == [1]
    told = "No further attempt: extract is none of the steps that are retried (load). Nothing is pending."
    assert attempts_of(run) == (1, [told])


# -- PostgreSQL, by way of a proxy -------------------------------------------------------------------------------------


@pytest.fixture
def database(make_database: Callable[[str], str], request: pytest.FixtureRequest) -> str:
    """A new database; its address is that of the server itself."""
    return make_database(f"failing_{abs(hash(request.node.nodeid)):x}")


@pytest.fixture
def proxy(database: str) -> Iterator[TcpProxy]:
    proxy = TcpProxy(socket_of(database))
    yield proxy
    proxy.close()


def execute(database: str, *statements: str) -> None:
    connection = psycopg2.connect(database)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


@pytest.fixture
def only_with_a_password(database: str) -> Iterator[None]:
    """The server asks for a password, which nobody has set."""
    connection = psycopg2.connect(database)
    with connection.cursor() as cursor:
        cursor.execute("SHOW hba_file")
        hba = Path(cursor.fetchone()[0])  # type: ignore[index]
    connection.close()
    before = hba.read_text()
    name = urlsplit(database).path[1:]
    hba.write_text(f'local "{name}" guest scram-sha-256\n{before}')
    execute(database, "CREATE ROLE guest LOGIN PASSWORD 'right'", "SELECT pg_reload_conf()")
    yield
    hba.write_text(before)
    execute(database, "SELECT pg_reload_conf()", "DROP ROLE guest")


# -- PostgreSQL as a source --------------------------------------------------------------------------------------------

ROWS = 5_000


@pytest.fixture
def filled(database: str) -> str:
    execute(
        database,
        "CREATE TABLE orders (id integer PRIMARY KEY, note text)",
        f"INSERT INTO orders SELECT each, repeat('x', 50) FROM generate_series(1, {ROWS}) AS each",
    )
    return database


def sql_shop(address: str, *tables: str) -> Any:
    # SQLAlchemy 2.1 would take another driver, which is not installed.
    address = address.replace("postgresql:", "postgresql+psycopg2:")
    return sql_database(address, table_names=list(tables or ["orders"]), chunk_size=1_000)


@pytest.mark.parametrize("failure", ["refusing", "hanging", "cut while it is built", "cut while it is read"])
def test_a_database_that_fails_is_read_anew_and_each_row_is_loaded_once(
    pipeline: Callable[..., Pipeline], filled: str, proxy: TcpProxy, failure: Any
) -> None:
    if failure in ("refusing", "hanging"):
        proxy.mode = failure
    else:
        proxy.cut_answers_after(1_000 if "built" in failure else 200_000)
    policy = recovering(TWICE, lambda: setattr(proxy, "mode", "up"))
    run = runner(pipeline(), retry_policy=policy, retry_pipeline_steps=EXTRACT_AND_LOAD)

    run.run(lambda: sql_shop(by_port(filled, proxy.port)))

    assert attempts_of(run)[0] == 1
    assert proxy.failures == int("cut" in failure)
    assert count(run.pipeline, "orders") == ROWS
    with run.pipeline.sql_client() as client:
        assert client.execute_sql("SELECT count(DISTINCT id) FROM orders") == [(ROWS,)]


def test_a_table_that_is_not_there_is_looked_for_once(
    pipeline: Callable[..., Pipeline], filled: str, proxy: TcpProxy
) -> None:
    run = runner(pipeline(), retry_policy=TWICE, retry_pipeline_steps=EXTRACT_AND_LOAD)

    with pytest.raises(Exception, match="ordres"):
        run.run(lambda: sql_shop(by_port(filled, proxy.port), "ordres"))

    told = "No further attempt: it would fail in the same way again (InvalidRequestError). Nothing is pending."
    assert attempts_of(run) == (1, [told])


@pytest.mark.usefixtures("only_with_a_password")
def test_a_source_with_a_wrong_password_is_asked_once(
    pipeline: Callable[..., Pipeline], filled: str, proxy: TcpProxy
) -> None:
    run = runner(pipeline(), retry_policy=TWICE, retry_pipeline_steps=EXTRACT_AND_LOAD)
    address = by_port(filled, proxy.port).replace("postgres:", "guest:")

    with pytest.raises(Exception, match="password authentication failed"):
        run.run(lambda: sql_shop(address))

    assert attempts_of(run)[0] == 1
    assert "(password authentication failed)" in attempts_of(run)[1][0]


# -- PostgreSQL as the destination -------------------------------------------------------------------------------------


class Orders:
    """A source that counts how often it is read, and does something when all of it has been."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.read, self.then = 0, then

    def __call__(self) -> Any:
        @dlt.resource(name="orders", write_disposition="append")
        def orders() -> Iterator[Any]:
            self.read += 1
            yield [order(number) for number in range(1, 7)]
            self.then()

        return orders


@pytest.fixture
def into_postgres(tmp_path: Path, database: str, proxy: TcpProxy) -> Pipeline:
    """A pipeline by way of the proxy, for which the dataset has been made: what follows meets it in the load."""
    return dlt.pipeline(
        "shop",
        pipelines_dir=str(tmp_path / "pipelines"),
        destination=dlt.destinations.postgres(by_port(database, proxy.port)),
        dataset_name="shop_data",
    )


def assert_complete(pipeline: Pipeline, database: str) -> None:
    """Look at the server itself: all rows are there, once."""
    connection = psycopg2.connect(database)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT count(*) FROM shop_data.orders), (SELECT count(DISTINCT id) FROM shop_data.orders),"
            " (SELECT count(*) FROM shop_data.orders__items), (SELECT count(DISTINCT sku) FROM shop_data.orders__items)"
        )
        assert cursor.fetchone() == (6, 6, 12, 12)
    connection.close()
    assert not pipeline.has_pending_data


INSERT = b'INSERT INTO "shop_data"."orders"'
FAILURES: dict[str, Callable[[TcpProxy], None]] = {
    "refused": lambda proxy: setattr(proxy, "mode", "refusing"),
    "hanging": lambda proxy: setattr(proxy, "mode", "hanging"),
    "cut at creating tables": lambda proxy: proxy.cut_at(b"CREATE TABLE"),
    "cut after creating tables": lambda proxy: proxy.cut_at(b"CREATE TABLE", when="after"),
    "cut at rows": lambda proxy: proxy.cut_at(b'"orders"("id"'),
    "cut after rows": lambda proxy: proxy.cut_at(b'"orders"("id"', when="after"),
    "cut at the commit": lambda proxy: proxy.cut_at(b'"orders"("id"', b"COMMIT"),
    "cut at the end": lambda proxy: proxy.cut_at(b'"_dlt_loads"', b"INSERT"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_destination_that_fails_while_loading_gets_each_row_once_and_nothing_is_read_again(
    into_postgres: Pipeline, database: str, proxy: TcpProxy, failure: str
) -> None:
    source = Orders(then=lambda: FAILURES[failure](proxy))
    policy = recovering(TWICE, lambda: setattr(proxy, "mode", "up"))
    run = runner(into_postgres, retry_policy=policy)

    run.run(source())

    assert attempts_of(run)[0] == 1
    assert source.read == 1
    assert_complete(into_postgres, database)


@pytest.mark.parametrize("policy", [no_retry(), TWICE, exponential_backoff(3, multiplier=0.001, min=0.0, max=0.002)])
def test_a_destination_that_stays_away_takes_the_attempts_of_the_policy_and_the_next_run_goes_on(
    into_postgres: Pipeline,
    database: str,
    proxy: TcpProxy,
    policy: Retrying,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Orders(then=lambda: setattr(proxy, "mode", "refusing"))
    run = runner(into_postgres, retry_policy=policy)
    limit = policy.stop.max_attempt_number  # type: ignore[attr-defined]

    with caplog.at_level(logging.WARNING, "prefect_dlt"), pytest.raises(PipelineStepFailed, match="Connection refused"):
        run.run(source())

    failed, told = attempts_of(run)
    assert failed == limit
    assert told[-1].startswith("No further attempt: the retry policy allows no more")
    assert told[-1].endswith("The next run loads first what is pending.")
    # Each attempt once: those that another one follows, and the one that ends the run.
    assert sum("Connection refused" in message for message in caplog.messages) == limit
    proxy.mode = "up"
    runner(into_postgres).finalize()
    assert source.read == 1
    assert_complete(into_postgres, database)


def test_a_destination_that_is_away_at_the_start_is_tried_again_before_anything_is_read(
    into_postgres: Pipeline, database: str, proxy: TcpProxy
) -> None:
    proxy.mode = "refusing"
    source = Orders()
    run = runner(into_postgres, retry_policy=recovering(TWICE, lambda: setattr(proxy, "mode", "up")))

    run.run(source())

    assert run.record is not None
    assert [attempt.step for attempt in run.record.failed_attempts] == ["sync"]
    assert source.read == 1
    assert_complete(into_postgres, database)


@pytest.mark.usefixtures("only_with_a_password")
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("postgres:", "guest:", "password authentication failed"),
        ("postgres:", "nobody:", 'role "nobody" does not exist'),
        ("/failing_", "/not_failing_", "database .* does not exist"),
    ],
)
def test_a_destination_that_lets_nobody_in_is_asked_once(
    into_postgres: Pipeline, database: str, proxy: TcpProxy, before: str, after: str, said: str
) -> None:
    source = Orders()
    into_postgres._set_destinations(  # pyright: ignore[reportPrivateUsage]
        dlt.destinations.postgres(by_port(database, proxy.port).replace(before, after))
    )
    run = runner(into_postgres, retry_policy=TWICE, retry_pipeline_steps=EXTRACT_AND_LOAD)

    with pytest.raises(PipelineStepFailed, match=said):
        run.run(source())

    assert source.read == 0
    assert proxy.connections == 1
    assert attempts_of(run)[0] == 1
    assert "it would fail in the same way again" in attempts_of(run)[1][0]


@pytest.mark.parametrize("tries", ["1", "5"])
def test_rows_whose_commit_was_not_heard_of_are_loaded_once_even_where_dlt_tries_again_by_itself(
    into_postgres: Pipeline, database: str, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, tries: str
) -> None:
    monkeypatch.setenv("LOAD__RAISE_ON_MAX_RETRIES", tries)
    source = Orders(then=lambda: proxy.cut_at(b'"orders"("id"', b"COMMIT", when="after"))
    run = runner(into_postgres, retry_policy=TWICE)

    run.run(source())

    assert source.read == 1
    assert_complete(into_postgres, database)
