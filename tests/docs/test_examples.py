"""The programs of the documentation, run as they are; each one is quoted whole in a page."""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import duckdb
import pytest
from prefect.client.orchestration import get_client

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))

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


def test_decomposed_flow(capsys: pytest.CaptureFixture[str]) -> None:
    run("decomposed_flow")

    printed = capsys.readouterr().out
    assert "customers: 3 rows by pipeline shop__customers" in printed
    assert "orders: 6 rows by pipeline shop__orders" in printed
    assert query("warehouse.duckdb", "SELECT count(*) FROM shop_data.order_lines") == [(4,)]


def test_each_example_has_a_test() -> None:
    assert [example.stem for example in EXAMPLES if f"test_{example.stem}" not in globals()] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_is_quoted_whole_in_a_page(example: Path) -> None:
    program = f"```python\n{example.read_text(encoding='utf-8')}```\n"
    quoted = [page.name for page in ROOT.glob("docs/**/*.md") if program in page.read_text(encoding="utf-8")]
    assert quoted, f"{example.name} is in no page as it is on disk"
