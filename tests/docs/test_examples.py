"""The programs of the documentation, run as they are; each one is quoted whole in a page."""

from __future__ import annotations

import importlib
import json
import logging
import runpy
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pytest
import yaml
from prefect import Flow, flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.sorting import ArtifactSort
from prefect.events import AutomationCore
from prefect.flow_engine import run_flow

from prefect_dlt import PrefectCollector

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path for kind in ("py", "yaml") for path in (ROOT / "docs" / "examples").glob(f"*.{kind}"))
LANGUAGES = {".py": "python", ".yaml": "yaml"}

GENEROUS = 60.0
"""Seconds to wait for what the server does within one or two when the machine has nothing else to do."""
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
        # The server has those of other tests as well; the latest of a key is this one's.
        found = client.read_artifacts(sort=ArtifactSort.CREATED_DESC)
    told = {artifact.key: artifact.description or "" for artifact in reversed(found)}
    assert told["orders-extract"].startswith("extract · 1 of 1 resource · 500 rows")
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
    assert any(line.startswith("Schema orders, new table orders: id, amount") for line in told)
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


@flow
def load(table: str, value: Any) -> None:
    """Load one row."""
    pipeline = dlt.pipeline(
        "shop",
        destination=dlt.destinations.duckdb("shop.duckdb"),
        dataset_name="shop_data",
        progress=PrefectCollector(),
    )
    pipeline.run([{"id": value}], table_name=table)


def wait_for(condition: Callable[[], Any]) -> Any:
    """Return what a condition gives as soon as it gives something."""
    deadline = time.monotonic() + GENEROUS
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.1)
    return found


def test_hold_on_type_change() -> None:
    """The automation is created as `prefect automation create --from-file` does, and acts on its table alone."""
    text = (ROOT / "docs" / "examples" / "hold_on_type_change.yaml").read_text(encoding="utf-8")
    with get_client(sync_client=True) as client:
        client.create_automation(AutomationCore.model_validate(yaml.safe_load(text)))
        deployment = client.create_deployment(client.create_flow(load), "nightly")

        def run_deployment(table: str, value: Any) -> None:
            flow_run = client.create_flow_run_from_deployment(deployment)
            run_flow(load, flow_run=flow_run, parameters={"table": table, "value": value})

        def held_by() -> list[dict[str, Any]]:
            return events(client, "prefect.automation.action.executed", f"prefect.deployment.{deployment}")

        run_deployment("orders", 1)
        run_deployment("customers", 1)
        run_deployment("customers", "one")
        assert not client.read_deployment(deployment).paused
        run_deployment("orders", "one")

        wait_for(lambda: client.read_deployment(deployment).paused)
        # The server takes events in their order: had another table held the deployment, it would have done so before.
        assert len(wait_for(held_by)) == 1


def test_react_to_schema_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Prefect finds a flow by the module that it is in.
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    example = importlib.import_module("react_to_schema_changes")
    teller: Flow[Any, Any] = example.tell_of_schema_change
    deployment = teller.to_deployment("teller", triggers=[example.ANY_TABLE_OF_THE_SHOP]).apply()

    load("orders", 1)

    with get_client(sync_client=True) as client:
        of_teller = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
        (told,) = wait_for(lambda: client.read_flow_runs(flow_run_filter=of_teller))
    assert told.parameters["table"] == "orders"
    assert told.parameters["columns"][0] == {"name": "id", "change": "new", "type": "bigint"}


def events(client: SyncPrefectClient, name: str, related: str) -> list[dict[str, Any]]:
    """Return the events with this name that a resource has to do with."""
    chosen = {"event": {"name": [name]}, "any_resource": {"id": [related]}}
    return client.request("POST", "/events/filter", json={"filter": chosen, "limit": 50}).json()["events"]


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
    program = f"```{LANGUAGES[example.suffix]}\n{example.read_text(encoding='utf-8')}```\n"
    quoted = [page.name for page in ROOT.glob("docs/**/*.md") if program in page.read_text(encoding="utf-8")]
    assert quoted, f"{example.name} is in no page as it is on disk"
