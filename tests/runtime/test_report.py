"""A report says what happened, shows it as it is whatever the names, and holds no secret."""

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.common.destination.exceptions import DestinationTransientException
from dlt.pipeline.pipeline import Pipeline
from dlt.pipeline.trace import PipelineStepTrace, PipelineTrace
from markdown_it import MarkdownIt

from prefect_dlt.report import (
    LONGEST_ERROR,
    LONGEST_MESSAGE,
    LONGEST_TABLE,
    RunRecord,
    TableRow,
    headline,
    summary,
    text_table,
)

HOSTILE = [
    "a|b",
    "a\\|b",
    "a\\\\|b\\",
    "a`b``c",
    "`|`",
    "line one\nline two",
    "| x | y |\n| --- | --- |",
    "<script>alert(1)</script>",
    "<!-- x",
    "[link](https://example.com)",
    "**bold** _it_ ~~s~~ # no heading",
    "tab\there\r\nthere",
    "nul\0bell\a",
    "half \ud800",
    "``` fence",
]


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    monkeypatch.setenv("LOAD__RAISE_ON_MAX_RETRIES", "1")  # dlt's own retries of a job take seconds
    return dlt.pipeline(
        "shop",
        destination=dlt.destinations.duckdb(str(tmp_path / "shop.duckdb")),
        dataset_name="sales",
        pipelines_dir=str(tmp_path),
    )


def empty_record(**settings: str) -> RunRecord:
    return RunRecord("shop", "duckdb", "sales", settings, started_at=datetime.now(timezone.utc))


def finished(error: BaseException | None = None, failures: list[BaseException] | None = None) -> RunRecord:
    record = empty_record()
    record.failures = failures or []
    record.finish(error)
    return record


def recorded(pipeline: Pipeline, *acts: Callable[[], Any]) -> RunRecord:
    """Return the record of a run that does one thing after another, and notes what each fails with."""
    record = RunRecord.of(pipeline, {})
    error: BaseException | None = None
    for act in acts:
        if error is not None:
            record.failures.append(error)
        try:
            act()
            error = None
        except Exception as caught:  # noqa: BLE001 - whatever it is, it is recorded
            error = caught
        record.add_trace(pipeline.last_trace)
    record.finish(error)
    return record


def raised(error: Exception) -> Exception:
    """Return the error with a traceback."""
    try:
        raise error
    except type(error) as caught:
        return caught


def rendered(page: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(page)


def cells(page: str, heading: str) -> list[list[str]]:
    """Return the rows of the table under a heading as a reader sees them."""
    section = rendered(page).partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]


def seen(text: str) -> str:
    """Return text as HTML shows it in code."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


# -- a real run --------------------------------------------------------------------------------------------------------


def test_a_run_is_told_in_a_headline_and_a_page(pipeline: Pipeline) -> None:
    data = {"orders": [{"id": 1}, {"id": 2}], "users": [{"id": 1}]}
    source = dlt.source(lambda: [dlt.resource(rows, name=name) for name, rows in data.items()], name="shop")()

    record = recorded(pipeline, lambda: pipeline.run(source))

    assert re.fullmatch(r"Loaded · 3 rows · 2 tables · [\d.]+ s", headline(record))
    page = summary(record)
    assert "<h1><code>shop</code>: loaded</h1>" in rendered(page)
    assert [row[:3] for row in cells(page, "Stages")[1:]] == [
        [name, "done", "1"] for name in ("extract", "normalize", "load")
    ]
    assert [row[:2] for row in cells(page, "Tables")[1:]] == [["<code>orders</code>", "2"], ["<code>users</code>", "1"]]
    assert ["Destination", "<code>duckdb</code>"] in cells(page, "Run")
    assert ["Dataset", "<code>sales</code>"] in cells(page, "Run")
    assert ["Load packages", f"<code>{record.load_ids[0]}</code>"] in cells(page, "Run")


def test_time_spent_on_tables_is_part_of_the_time_of_the_run(pipeline: Pipeline) -> None:
    record = recorded(pipeline, lambda: pipeline.run([{"id": 1}], table_name="orders"))

    assert 0.0 < sum(table.seconds for table in record.tables()) <= record.seconds


def test_a_named_destination_is_told_with_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    warehouse = dlt.destinations.duckdb(str(tmp_path / "shop.duckdb"), destination_name="warehouse")

    record = RunRecord.of(dlt.pipeline("shop", destination=warehouse, pipelines_dir=str(tmp_path)), {})

    assert record.destination == "warehouse (duckdb)"


def test_rows_are_counted_once_however_often_the_load_is_tried(pipeline: Pipeline) -> None:
    calls = iter([DestinationTransientException("busy"), DestinationTransientException("busy"), None])

    @dlt.destination(batch_size=0, name="sink")
    def sink(_items: Any, _table: Any) -> None:
        if error := next(calls, None):
            raise error

    record = recorded(
        pipeline,
        lambda: pipeline.run([{"id": 1}, {"id": 2}], table_name="orders", destination=sink),
        pipeline.load,
        pipeline.load,
    )

    assert record.error is None
    assert [(table.name, table.rows) for table in record.tables()] == [("orders", 2)]
    assert sum(table.seconds for table in record.tables()) <= record.seconds
    assert headline(record).endswith("· 3 attempts")
    page = summary(record)
    assert [row[:3] for row in cells(page, "Stages")[1:]] == [
        ["extract", "done", "1"],
        ["normalize", "done", "1"],
        ["load", "done", "3"],
    ]
    assert [row[0] for row in cells(page, "Failed attempts")[1:]] == ["1", "2"]
    assert "load: LoadClientJobRetry" in cells(page, "Failed attempts")[1][1]


def test_a_run_that_failed_shows_where_and_why(pipeline: Pipeline) -> None:
    @dlt.resource
    def orders() -> Iterator[dict[str, int]]:
        yield {"id": 1}
        raise ConnectionError("the source is down")

    record = recorded(pipeline, lambda: pipeline.run(orders))

    assert headline(record).startswith("Failed in extract · ")
    page = summary(record)
    assert "ConnectionError: the source is down" in page
    assert [row[:3] for row in cells(page, "Stages")[1:]] == [["extract", "failed", "1"]]
    assert "## Tables" not in page


def test_steps_of_an_earlier_run_are_not_told_again(pipeline: Pipeline) -> None:
    pipeline.run([{"id": 1}], table_name="orders")

    record = RunRecord.of(pipeline, {})
    record.add_trace(pipeline.last_trace)

    assert record.stages() == []
    assert record.tables() == []


def test_of_a_step_that_is_repeated_the_last_word_counts(pipeline: Pipeline) -> None:
    pipeline.run([{"id": 1}, {"id": 2}], table_name="orders")
    trace = pipeline.last_trace
    complete = next(step for step in trace.steps if step.step == "normalize")
    info = complete.step_info
    assert info is not None
    ((load_id, (metrics,)),) = info.metrics.items()
    half_way = {"orders": metrics["table_metrics"]["orders"]._replace(items_count=1)}
    partial = complete._replace(
        span_id="first",
        step_info=info._replace(metrics={load_id: [{**metrics, "table_metrics": half_way}]}),
        step_exception="broke",
    )
    record = empty_record()
    record.started_at -= timedelta(hours=1)

    record.add_trace(PipelineTrace(*trace._replace(steps=[PipelineStepTrace(*partial), complete])))

    assert [(table.name, table.rows) for table in record.tables()] == [("orders", 2)]


# -- text as it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_keeps_to_its_cell(text: str) -> None:
    record = finished()
    record.note_schema_changes("shop", {text: {"id": {"data_type": "bigint"}}, "orders": {text: {"data_type": "text"}}})

    page = summary(record)
    table = cells(page, "Schema changes")

    assert [len(row) for row in table] == [3, 3, 3]
    # A bar after an even number of backslashes ends a cell in some dialects; there are four in a row of three cells.
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in page.splitlines() if "bigint" in line} == {4}
    assert [row[2] for row in table[1:]] == ["bigint", "text"]
    assert table[1][0] == table[2][1]
    assert re.fullmatch(r"<code>[^<>`]*</code>", table[1][0])
    assert re.findall(r"\w+", table[1][0]) == re.findall(r"\w+", f"<code>{seen(text)}</code>".replace("\ud800", " "))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_error_keeps_to_its_cell(text: str) -> None:
    table = cells(summary(finished(failures=[ValueError(text), OSError("plain")])), "Failed attempts")

    assert [len(row) for row in table] == [2, 2, 2]
    assert table[2] == ["2", "<code>OSError: plain</code>"]


@pytest.mark.parametrize("text", [*HOSTILE, "```python\nprint()\n```", "````\n~~~\n</pre><b>", "```"])
def test_a_hostile_error_keeps_to_its_block(text: str) -> None:
    html = rendered(summary(finished(raised(ValueError(text)))))

    line = re.search(r"<h2>Error</h2>\n<p><code>([^<]*)</code></p>\n<h2>Run</h2>", html)
    assert line, html
    assert "ValueError" in line[1]
    block = re.search(r"<h2>Traceback</h2>\n<pre><code[^>]*>([^<]*)</code></pre>\s*$", html)
    assert block, html
    assert "ValueError" in block[1]


def test_a_page_can_be_sent_and_stored_whatever_it_holds() -> None:
    page = summary(finished(raised(ValueError("nul \0 half \ud800 bell \a")), failures=[ValueError("\0\ud800")]))

    page.encode()
    assert "\0" not in page


def test_a_traceback_without_end_is_cut_in_the_middle() -> None:
    page = summary(finished(raised(ValueError("start " + "x" * 100_000 + " end"))))

    assert len(page) < LONGEST_ERROR + LONGEST_MESSAGE + 1_000
    assert "start x" in page
    assert "x end" in page
    assert "characters left out" in page


def test_a_long_table_is_cut_and_says_so() -> None:
    record = finished()
    record.note_schema_changes("shop", {"orders": {f"column_{n:03}": {"data_type": "text"} for n in range(60)}})

    page = summary(record)

    assert len(cells(page, "Schema changes")) == 1 + LONGEST_TABLE
    assert "… and 10 more." in page


def test_a_column_without_a_type_is_told_as_such() -> None:
    record = finished()
    record.note_schema_changes("shop", {"orders": {"note": {}}})

    assert cells(summary(record), "Schema changes")[1] == ["<code>orders</code>", "<code>note</code>", "not known yet"]


def test_changes_of_one_table_in_several_steps_are_one_list() -> None:
    record = empty_record()
    record.note_schema_changes("shop", {"orders": {"id": {"data_type": "bigint"}}})
    record.note_schema_changes("shop", {"orders": {"note": {"data_type": "text"}}})

    assert record.schema_changes["shop"]["orders"].keys() == {"id", "note"}


def test_one_is_not_many() -> None:
    assert headline(finished()).startswith("Loaded · 0 rows · 0 tables")
    assert headline(empty_record()).startswith("Running · 0 rows")


def test_a_single_row_in_a_single_table_is_told_as_one(pipeline: Pipeline) -> None:
    record = recorded(pipeline, lambda: pipeline.run([{"id": 1}], table_name="orders"))

    assert headline(record).startswith("Loaded · 1 row · 1 table · ")


def test_a_terminal_gets_a_plain_table() -> None:
    assert text_table([TableRow("flights", 336_776, 12.34), TableRow("planes", 7, 0.0)]) == (
        "table       rows  seconds\n"
        "flights  336,776     12.3\n"
        "planes         7      0.0"
    )  # fmt: skip


# -- no secret ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret", ["K7fQ92mZpL0vB", "pa|ss`word*x", "Zeile eins\nZeile  zwei", "back\\slash|x", "a" * 290 + "tail"]
)
def test_a_known_secret_is_nowhere_on_the_page(secret: str) -> None:
    message = f"no answer with {secret} from postgresql://me:hunter2@db, token=abc99"
    record = finished(raised(ValueError(message)), failures=[ValueError(message)])
    record.settings = {"Command": message}
    record.note_schema_changes("shop", {f"t {secret}": {f"c {secret}": {"data_type": "text"}}})
    record.secrets = {secret}

    page = summary(record)

    for piece in (secret, secret.split(maxsplit=1)[0], secret[:8], secret[-8:], "hunter2", "abc99"):
        assert piece not in page
    assert "no answer with ***" in page
