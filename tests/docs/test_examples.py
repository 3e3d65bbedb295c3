"""The programs of the documentation, run as they are; each one is quoted whole in a page."""

from __future__ import annotations

import json
import logging
import runpy
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pytest
from prefect.client.orchestration import get_client

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
HOOK = "/services/T00000000/B00000000/abcdefghijklmnop"

pytestmark = pytest.mark.usefixtures("prefect_api", "no_active_pipeline")


def run(name: str) -> None:
    runpy.run_path(str(ROOT / "docs" / "examples" / f"{name}.py"), run_name="__main__")


def query(database: str, sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect(database, read_only=True) as connection:
        return connection.execute(sql).fetchall()


def test_collector_in_a_task() -> None:
    run("collector_in_a_task")

    assert query("shop.duckdb", "SELECT count(*) FROM shop_data.orders") == [(500,)]
    with get_client(sync_client=True) as client:
        told = {artifact.key: artifact.description or "" for artifact in client.read_artifacts()}
    assert told["orders-extract"].startswith("extract · 1 of 1 resources · 500 rows")
    assert told["orders-normalize"].startswith("normalize · ")
    assert told["orders-load"].startswith("load · ")
    assert told["orders-summary"].startswith("Loaded · 500 rows")


def test_resilient_runner() -> None:
    run("resilient_runner")

    assert query("shop.duckdb", "SELECT id, amount FROM shop_data.orders ORDER BY id") == [(1, 9.5), (2, 3.0)]
    assert query("shop.duckdb", "SELECT attempt FROM shop_data.orders_trace ORDER BY attempt") == [(1,), (2,)]


def test_collector_with_hooks(caplog: pytest.LogCaptureFixture) -> None:
    # Prefect hands nothing on to the root logger.
    log_of_tasks = logging.getLogger("prefect.task_runs")
    log_of_tasks.addHandler(caplog.handler)
    try:
        run("collector_with_hooks")
    finally:
        log_of_tasks.removeHandler(caplog.handler)

    told = [line.strip() for line in caplog.messages]
    assert "Retry 1 of orders, not the last one, after PipelineStepFailed" in told
    assert any(line.startswith("Schema orders, table orders: id, amount") for line in told)
    assert "Pipeline orders loaded" in told


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """A web server in the place of Slack, whose address the configuration names; what is posted to it, and where."""
    posted: list[tuple[str, dict[str, Any]]] = []

    class Slack(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Slack) as server:
        monkeypatch.setenv("RUNTIME__SLACK_INCOMING_HOOK", f"http://127.0.0.1:{server.server_port}{HOOK}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield posted
        server.shutdown()


def test_slack_on_schema_change(slack: list[tuple[str, dict[str, Any]]]) -> None:
    run("slack_on_schema_change")
    run("slack_on_schema_change")  # changes nothing

    told = "*orders* has changed schema `orders`\n`orders`: id, amount, _dlt_load_id, _dlt_id"
    assert slack == [(HOOK, {"text": told, "mrkdwn": True})]


def test_slack_that_does_not_answer_costs_no_load_and_its_hook_stays_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RUNTIME__SLACK_INCOMING_HOOK", f"http://127.0.0.1:{unused.getsockname()[1]}{HOOK}")
        run("slack_on_schema_change")

    assert query("shop.duckdb", "SELECT count(*) FROM shop_data.orders") == [(2,)]
    (text,) = [line for line in caplog.messages if "on_schema_change raised" in line]
    assert "Connection refused" in text
    assert HOOK not in text


def test_decomposed_flow(capsys: pytest.CaptureFixture[str]) -> None:
    run("decomposed_flow")

    printed = capsys.readouterr().out
    assert "customers: 3 rows by pipeline shop__customers" in printed
    assert "orders: 6 rows by pipeline shop__orders" in printed
    assert query("warehouse.duckdb", "SELECT count(*) FROM shop_data.order_lines") == [(4,)]


@pytest.mark.slow
def test_loads_in_processes(capsys: pytest.CaptureFixture[str]) -> None:
    run("loads_in_processes")

    printed = capsys.readouterr().out
    for name in ("paris", "rome"):
        assert query(f"{name}_orders.duckdb", "SELECT count(*) FROM shop_data.orders") == [(2,)]
        assert f"Pipeline {name} load step finished" in printed


def test_each_example_has_a_test() -> None:
    assert [example.stem for example in EXAMPLES if f"test_{example.stem}" not in globals()] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_is_quoted_whole_in_a_page(example: Path) -> None:
    program = f"```python\n{example.read_text(encoding='utf-8')}```\n"
    quoted = [page.name for page in ROOT.glob("docs/**/*.md") if program in page.read_text(encoding="utf-8")]
    assert quoted, f"{example.name} is in no page as it is on disk"
