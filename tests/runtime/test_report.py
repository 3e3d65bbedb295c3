"""Reports say what happened, are readable whatever their size, and hold no secret."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import dlt
import pytest
from dlt.common.destination.exceptions import DestinationTerminalException, DestinationTransientException
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import CallbackCollector, runner
from prefect_dlt.diagrams import timeline
from prefect_dlt.errors import VerificationError
from prefect_dlt.markdown import LONGEST_BLOCK, LONGEST_TABLE
from prefect_dlt.page import LARGEST_LIST, LongList, Report, Section
from prefect_dlt.record import Recovered, RunRecord, Table, TableRow, Usage
from prefect_dlt.report import failure_report, headline, summary, text_table
from prefect_dlt.schema_changes import ColumnChange, TableChange
from prefect_dlt.schema_report import schema_report
from prefect_dlt.stage_report import stage_report
from prefect_dlt.verification import Held, Verification
from tests.runtime.reports import HOSTILE, cells, empty_record, finished, new_table, raised, recorded, rendered
from tests.runtime.sources import shop

LARGEST_ARTIFACT = 500_000
"""Bytes; what issue trackers, browsers and Prefect's UI still take well."""


@pytest.fixture(autouse=True)
def _one_try_per_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAD__RAISE_ON_MAX_RETRIES", "1")  # dlt's own retries of a job take seconds


class Reports(CallbackCollector):
    """Keeps the reports of a run, made when it has ended."""

    record: RunRecord

    def run_started(self, pipeline: Any, record: RunRecord) -> None:
        self.record = record

    def stage(self, name: Any) -> Report:
        return stage_report(self.record, self.record.steps(name)[-1])


@pytest.fixture
def reports(pipeline: Callable[..., Pipeline]) -> Reports:
    """The reports of a run of the shop that went well."""
    collector = Reports()
    pipeline(progress=collector).run(shop())
    return collector


# -- the summary -------------------------------------------------------------------------------------------------------


def test_a_run_is_told_in_a_headline_and_a_page(reports: Reports) -> None:
    report = summary(reports.record)

    assert report.name == "summary"
    assert re.fullmatch(r"Loaded · 11 rows · 4 tables · [\d.]+ s", report.headline)
    assert "<h1><code>shop</code>: loaded</h1>" in rendered(report.page)
    stages = cells(report.page, "Stages")
    assert [row[:3] for row in stages[1:]] == [[name, "done", "1"] for name in ("extract", "normalize", "load")]
    assert cells(report.page, "Tables")[1][:2] == ["<code>customers</code>", "3"]
    assert ["Destination", "<code>duckdb</code>"] in cells(report.page, "Run")
    assert ["Dataset", "<code>shop_data</code>"] in cells(report.page, "Run")
    assert ["Load package", f"<code>{reports.record.load_ids[0]}</code>"] in cells(report.page, "Run")
    assert report.page.count("```mermaid\ngantt\n") == 1
    assert report.page.count("}%%\n```\n") == 2
    assert report.page.count("```mermaid\nflowchart LR\n") == 1
    assert [row[:2] for row in cells(report.page, "Schema changes")[1:]] == [
        [f"<code>{name}</code>", "new table"] for name in ("customers", "greetings", "orders", "orders__items")
    ]
    assert report.lists == ()


def test_what_reports_say_can_be_told_in_the_summary(reports: Reports) -> None:
    told = Report("load_report", "load done · 4 of 4 jobs · 1.5 MiB", "", sections=(Section("Jobs per table", "x"),))
    changes = schema_report(reports.record)

    page = summary(reports.record, [told, changes]).page

    assert "### Load done · 4 of 4 jobs · 1.5 MiB\n\n#### Jobs per table\n\nx" in page.partition("## Tables")[0]
    assert [section.under(3) in page for section in changes.sections] == [True] * 4
    assert "Each column with its type is in the artifact" not in page


def test_a_run_that_failed_shows_where_and_why(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.resource
    def orders() -> Iterator[dict[str, int]]:
        yield {"id": 1}
        raise ConnectionError("the source is down")

    shop_pipeline = pipeline()
    record = recorded(shop_pipeline, lambda: shop_pipeline.run(orders))

    assert headline(record).startswith("Failed in extract · ConnectionError: the source is down · ")
    page = summary(record).page
    assert "ConnectionError: the source is down" in page
    assert [row[:3] for row in cells(page, "Stages")[1:]] == [["extract", "failed", "1"]]
    assert "## Tables" not in page
    assert "Traceback (most recent call last)" in page


def test_a_run_that_was_stopped_has_not_failed(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.resource
    def orders() -> Iterator[dict[str, int]]:
        yield {"id": 1}
        raise KeyboardInterrupt

    shop_pipeline = pipeline()
    record = recorded(shop_pipeline, lambda: shop_pipeline.run(orders))

    assert headline(record).startswith("Stopped in extract · ")
    assert "<h1><code>shop</code>: stopped</h1>" in rendered(summary(record).page)


def test_a_run_whose_rows_are_not_all_there_has_loaded_and_differs(pipeline: Callable[..., Pipeline]) -> None:
    collector = Reports()
    shop_pipeline = pipeline(progress=collector)
    run = runner(shop_pipeline, verify=True)

    @dlt.resource(write_disposition="append")
    def orders() -> Iterator[dict[str, int]]:
        yield {"id": 1}

    load = shop_pipeline.load

    def loses_its_rows() -> Any:
        info = load()
        with shop_pipeline.sql_client() as client:
            client.execute_sql(f"DELETE FROM {client.make_qualified_table_name('orders')}")
        return info

    shop_pipeline.load = loses_its_rows  # type: ignore[method-assign]
    shop_pipeline.extract(orders())
    with pytest.raises(VerificationError):
        run.finalize()

    assert headline(collector.record).startswith("Loaded, and differs · ")
    page = summary(collector.record).page
    assert "<h1><code>shop</code>: loaded, and differs</h1>" in rendered(page)
    assert cells(page, "Verified")[1][:4] == ["<code>orders</code>", "rows of the load", "1", "0"]
    assert "not all of them are loaded" not in page


def test_a_run_that_only_warns_of_a_difference_has_loaded_and_differs_too(pipeline: Callable[..., Pipeline]) -> None:
    collector = Reports()
    run = runner(pipeline(progress=collector), verify="warn")
    run.run([{"id": 1}], table_name="orders")
    record = collector.record
    assert headline(record).startswith("Loaded · ")

    record.verification = Verification((Held("1", "orders", "rows of the load", 2, 1),))

    assert headline(record).startswith("Loaded, and differs · ")
    assert "Failed" not in summary(record).page


def test_what_was_pending_and_new_data_are_no_second_try(pipeline: Callable[..., Pipeline]) -> None:
    collector = Reports()
    shop_pipeline = pipeline(progress=collector)
    shop_pipeline.extract([{"id": 1}], table_name="orders")

    runner(shop_pipeline).run([{"id": 2}], table_name="orders")

    assert [row[:3] for row in cells(summary(collector.record).page, "Stages")[1:]] == [
        ["extract", "done", "1"],
        ["normalize", "done", "1"],
        ["load", "done", "1"],
    ]
    assert "try" not in timeline(collector.record)


def test_attempts_that_failed_are_listed_with_their_step(pipeline: Callable[..., Pipeline]) -> None:
    calls = iter([DestinationTransientException("busy"), DestinationTransientException("busy"), None])

    @dlt.destination(batch_size=0, name="sink")
    def sink(_items: Any, _table: Any) -> None:
        if error := next(calls, None):
            raise error

    shop_pipeline = pipeline()
    run = lambda: shop_pipeline.run([{"id": 1}], table_name="orders", destination=sink)  # noqa: E731
    record = recorded(shop_pipeline, run, shop_pipeline.load, shop_pipeline.load)

    assert headline(record).endswith("· 3 attempts")
    attempts = cells(summary(record).page, "Failed attempts")[1:]
    assert [row[:2] for row in attempts] == [["1", "load"], ["2", "load"]]
    assert attempts[0][3] == "<code>DestinationTransientException: busy</code>"


def test_how_and_where_it_ran_is_in_every_report(reports: Reports) -> None:
    record = reports.record
    record.settings = {"Retry policy": "3 attempts", "Trace pipeline": ""}
    record.environment = {"Host": "worker-7", "Deployment": "load/prod"}
    record.usage = Usage(12.4, 180.6, 310.0, 1420.2, 61.35)
    attempt = record.note_failure(ValueError("no"), 1, [], "No further attempt.")

    pages = [summary(record), *map(reports.stage, ("extract", "normalize", "load")), failure_report(record, attempt)]
    for report in [*pages, schema_report(record)]:
        assert ["Pipeline", "<code>shop</code>"] in cells(report.page, "Run"), report.name
        assert cells(report.page, "Run configuration")[1:] == [["Retry policy", "<code>3 attempts</code>"]]
        assert ["Deployment", "<code>load/prod</code>"] in cells(report.page, "Environment")
        assert cells(report.page, "CPU and memory")[1:] == [
            ["CPU, % of one core", "12", "181"],
            ["Memory, MiB", "310", "1,420"],
        ]
        assert "61.4 s of CPU time" in report.page or "61.3 s of CPU time" in report.page


def test_a_run_that_went_on_without_jobs_that_failed_says_so(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOAD__RAISE_ON_FAILED_JOBS", "false")

    @dlt.destination(batch_size=0, name="sink")
    def sink(_items: Any, table: Any) -> None:
        if table["name"] == "orders":
            raise DestinationTerminalException("orders are closed")

    collector = Reports()
    pipeline(progress=collector).run(shop(), destination=sink)

    report = summary(collector.record)
    assert report.headline.startswith("Loaded in part · 8 rows · 3 tables · 1 job failed · ")
    assert "1 job failed: these rows were prepared, and not all of them are loaded." in report.page


@pytest.mark.parametrize(
    ("steps", "said"), [(("extract",), "Extracted · "), (("extract", "normalize"), "Normalized · 11 rows")]
)
def test_what_was_not_loaded_is_not_told_as_loaded(
    steps: tuple[str, ...], said: str, pipeline: Callable[..., Pipeline]
) -> None:
    collector = Reports()
    shop_pipeline = pipeline(progress=collector)
    for step in steps:
        getattr(shop_pipeline, step)(*([shop()] if step == "extract" else []))

    assert headline(collector.record).startswith(said)


def test_what_was_found_of_a_load_that_was_cut_is_told() -> None:
    record = empty_record()
    record.recovered = [
        Recovered("17.1", loaded=["orders.1a.0.parquet", "orders.2b.0.parquet"]),
        Recovered("17.2", taken_back=["orders.3c.0.parquet"], unsure={"items"}),
        Recovered("17.3", completed=True),
    ]
    page = summary(record).page
    assert "Load 17.1: 2 jobs had been loaded before the run was cut; not loaded again." in page
    assert "Load 17.2: 1 job loaded anew, after what had been written was taken back; whether interrupted" in page
    assert "Load 17.3: it had been loaded before the run was cut; not loaded again." in page


def test_a_run_without_a_trace_says_that_nothing_else_is_known(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENABLE_RUNTIME_TRACE", "false")
    run = runner(pipeline(progress=Reports()))
    run.run(shop())

    assert run.record is not None
    assert "rows and tables are not known: dlt is told not to trace its runs" in headline(run.record)
    assert len(run.record.load_ids) == 1


# -- stages ------------------------------------------------------------------------------------------------------------


def test_extract_is_told_by_resource(reports: Reports) -> None:
    report = reports.stage("extract")

    assert report.name == "extract_report"
    assert re.fullmatch(r"extract done · 8 rows · 3 resources( · [\d,.]+ rows/s)? · [\d.]+ s", report.headline)
    assert [row[:2] for row in cells(report.page, "Rows per resource")] == [
        ["Resource", "Rows"],
        ["<code>customers</code>", "3"],
        ["<code>greetings</code>", "3"],
        ["<code>orders</code>", "2"],
    ]


def test_normalize_is_told_by_table_with_files(reports: Reports) -> None:
    report = reports.stage("normalize")

    assert re.match(r"normalize done · 11 rows · 4 tables · 4 files", report.headline)
    assert [row[:3] for row in cells(report.page, "Rows and files per table")[:2]] == [
        ["Table", "Rows", "Files"],
        ["<code>customers</code>", "3", "1"],
    ]


def test_load_is_told_by_table_with_jobs_and_sizes(reports: Reports) -> None:
    report = reports.stage("load")

    assert re.match(r"load done · 4 of 4 jobs · [\d.]+ (bytes|KiB)", report.headline)
    header, *rows = cells(report.page, "Jobs per table")
    assert header == ["Table", "Jobs", "Failed", "Waiting", "Size", "Seconds"]
    assert {row[0]: row[1:4] for row in rows}["<code>orders__items</code>"] == ["1", "0", "0"]
    assert all(re.fullmatch(r"[\d.,]+ (bytes|KiB)", row[4]) for row in rows)
    assert "## Failed jobs" not in report.page


def test_a_job_that_failed_is_told_with_its_message(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.destination(batch_size=0, name="sink")
    def sink(_items: Any, table: Any) -> None:
        if table["name"] == "orders":
            raise DestinationTerminalException("orders are closed")

    collector = Reports()
    with pytest.raises(PipelineStepFailed):
        pipeline(progress=collector).run(shop(), destination=sink)

    report = collector.stage("load")
    assert report.headline.startswith("load failed · ")
    assert "Traceback" not in report.page
    assert " · 1 failed · " in report.headline
    _, (table, message, file) = cells(report.page, "Failed jobs")
    assert table == "<code>orders</code>"
    assert file.startswith("<code>orders.")
    assert message == "<code>DestinationTerminalException: orders are closed</code>"
    assert "orders are closed" in rendered(report.page).partition("<h2>Error</h2>")[2].partition("<h2>")[0]


# -- failures ----------------------------------------------------------------------------------------------------------


def test_an_attempt_that_failed_is_told_with_all_that_led_to_it() -> None:
    record = empty_record()
    try:
        try:
            raise ConnectionError("no route to postgres://ada:s3cret@db/shop")
        except ConnectionError as cause:
            raise ValueError("cannot read orders") from cause
    except ValueError as error:
        attempt = record.note_failure(
            error, 3, ["load package 17: extracted"], "The next attempt starts in 2.0 s, and begins with normalize."
        )

    report = failure_report(record, attempt)

    assert (report.name, report.headline) == (
        "failed_attempt_1",
        "Attempt 1 of 3 failed in run · ValueError: cannot read orders",
    )
    page = report.page
    assert "attempt 1 of 3 failed in run" in page
    assert "The next attempt starts in 2.0 s, and begins with normalize." in page
    assert "- `load package 17: extracted`" in page
    assert "ConnectionError: no route to postgres://ada:***@db/shop" in page
    assert "The above exception was the direct cause of the following exception" in page
    assert "s3cret" not in page


def test_an_error_of_a_thousand_lines_has_a_headline_of_one() -> None:
    record = empty_record()

    line = failure_report(record, record.note_failure(ValueError("line\n" * 1000), None, [], "")).headline

    assert "\n" not in line
    assert len(line) < 300


# -- schema changes ----------------------------------------------------------------------------------------------------


def changed(kind: Any, type_: str, was: str | None = None, variant_of: str | None = None) -> ColumnChange:
    return ColumnChange("price", kind, type_, was, variant_of, {"name": "price", "data_type": "text"})


def test_of_a_new_table_all_is_told_and_of_a_known_one_what_is_different() -> None:
    record = finished()
    key: Any = {"name": "id", "data_type": "bigint", "primary_key": True, "nullable": False}
    new = TableChange("shop", "users", True, {"id": ColumnChange("id", "new", "bigint not null", None, None, key)})
    for name, column in {
        "a": changed("new", "text"),
        "b": changed("changed", "text", was="bigint"),
        "c": changed("variant", "text", variant_of="amount"),
    }.items():
        record.note_schema_changes("shop", {name: TableChange("shop", name, False, {"price": column})})
    record.note_schema_changes("shop", {"users": new})

    report = schema_report(record)

    assert report.headline == "Schema changed · 1 new table · 3 columns of 3 known tables"
    code = "<code>{}</code>".format
    assert cells(report.page, "Changed tables")[1:] == [
        [code("a"), code("price"), "new column", code("text"), ""],
        [code("b"), code("price"), "type changed", code("text"), code("bigint")],
        [code("c"), code("price"), "variant of <code>amount</code>", code("text"), ""],
    ]
    assert cells(report.page, "New table <code>users</code>")[1:] == [
        [code("id"), code("bigint not null"), "primary key"]
    ]
    assert report.lists == ()


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tables", "columns"), [(1_000, 10), (1, 10_000), (100, 100)])
def test_a_wide_schema_stays_readable_and_small_and_is_listed_in_whole(tables: int, columns: int) -> None:
    record = finished()
    names = [f"{'täble' * 8}_{n}" for n in range(tables)]
    changes = {name: new_table(name, *(f"{'cölumn' * 5}_{n}" for n in range(columns))) for name in names}
    record.note_schema_changes("shop", changes)

    report = schema_report(record)

    parts = [part for long in report.lists for part in long.parts()]
    for text in (report.page, summary(record).page, *(rows for _, rows in parts)):
        assert len(text.encode()) < LARGEST_ARTIFACT
    assert len({name for name, _ in parts}) == len(parts) > 1
    rows = [row for _, text in parts for row in json.loads(text)]
    assert [(row["Table"], row["Column"]) for row in rows] == [
        (name, column) for name in sorted(names) for column in changes[name].columns
    ]
    assert "in the artifact `shop-schema-columns`" in report.page
    assert len(report.page.splitlines()) < 1_000


def test_many_tables_are_listed_in_an_artifact_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    record = finished()
    rows = [TableRow(f"table_{n:04}", n, 0.04) for n in reversed(range(1_000))]
    monkeypatch.setattr(RunRecord, "tables", lambda _self: rows)
    record.tables_known = {row.name: Table(row.name, "shop", None, None, {}) for row in rows}

    report = summary(record)

    assert len(report.page.encode()) < LARGEST_ARTIFACT
    assert len(cells(report.page, "Tables")) == 1 + LONGEST_TABLE
    assert "… and 950 more, in the artifact `shop-summary-tables`." in report.page
    (long,) = report.lists
    ((name, text),) = long.parts()
    assert (name, long.headline) == ("summary_tables", "Tables that were loaded · 1,000")
    assert json.loads(text)[0] == {"Table": "table_0999", "Rows": "999", "Seconds in all stages": 0.0}


def test_texts_without_end_are_cut_in_lists_and_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [TableRow("\U0001f600" * 2_000 + str(n), 1, 0.1) for n in range(60)]
    monkeypatch.setattr(RunRecord, "tables", lambda _self: rows)
    record = finished()
    wide = {row.name: new_table(row.name, *(f"{'😀' * 290}{n}" for n in range(60))) for row in rows}
    record.note_schema_changes("shop", wide)

    for report in (summary(record), schema_report(record)):
        texts = [report.page, *(text for long in report.lists for _, text in long.parts())]
        assert max(len(text.encode()) for text in texts) < LARGEST_ARTIFACT
        assert "## Run" in report.page


def test_a_list_goes_to_as_many_artifacts_as_it_needs_and_no_more() -> None:
    row = {"Column": "x" * 1_000}
    assert [name for name, _ in LongList("columns", "", [row]).parts()] == ["columns"]

    parts = dict(LongList("columns", "", [row] * 1_000).parts())

    assert list(parts) == ["columns", "columns_2", "columns_3"]
    assert sum(len(json.loads(text)) for text in parts.values()) == 1_000
    assert max(len(text) for text in parts.values()) <= LARGEST_LIST + 10


# -- text as it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_keeps_to_its_place_in_every_report(text: str) -> None:
    record = finished(raised(ValueError(text)), failures=[ValueError(text)])
    record.settings = {"Trace pipeline": text}
    record.environment = {"Deployment": text}
    change = {text: new_table(text, text), "orders": TableChange("shop", "orders", False, {text: changed("new", text)})}
    record.note_schema_changes("shop", change)

    for report in (summary(record), schema_report(record), failure_report(record, record.failed_attempts[0])):
        report.page.encode()
        headings = re.findall(r"<h([123])>", rendered(report.page))
        assert headings == re.findall(r"<h([123])>", rendered(report.page.replace(text, "x")))
        for heading in ("Run configuration", "Environment", "Changed tables", "Schema changes", "Failed attempts"):
            table = cells(report.page, heading)
            assert len({len(row) for row in table}) <= 1
        assert "\0" not in report.page
        assert "<script>" not in rendered(report.page)


def test_one_is_not_many() -> None:
    assert headline(finished()).startswith("Loaded · 0 rows · 0 tables")
    assert headline(empty_record()).startswith("Running · 0 rows")


def test_a_single_row_in_a_single_table_is_told_as_one(pipeline: Callable[..., Pipeline]) -> None:
    shop_pipeline = pipeline()
    record = recorded(shop_pipeline, lambda: shop_pipeline.run([{"id": 1}], table_name="orders"))

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
def test_a_known_secret_is_in_no_report(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = f"no answer with {secret} from postgresql://me:hunter2@db, token=abc99"
    record = finished(raised(ValueError(message)), failures=[ValueError(message)])
    record.settings = {"Command": message}
    record.environment = {"Deployment": message}
    names = [f"t {secret}", *(f"t{n} {secret}" for n in range(60))]
    record.note_schema_changes("shop", {name: new_table(name, f"c {secret}") for name in names})
    record.note_schema_changes("shop", {"known": TableChange("shop", "known", False, {"c": changed("new", secret)})})
    record.tables_known = {name: Table(name, f"s {secret}", None, f"p {secret}", {}) for name in names}
    record.tables_known[f"p {secret}"] = Table(f"p {secret}", f"s {secret}", None, None, {})
    monkeypatch.setattr(RunRecord, "tables", lambda _self: [TableRow(name, 1, 0.1) for name in names])
    record.secrets = {secret}

    reports = [
        summary(record),
        schema_report(record),
        *(failure_report(record, each) for each in record.failed_attempts),
    ]
    texts = [text for report in reports for text in (report.page, report.headline)]
    texts += [rows for report in reports for long in report.lists for _, rows in long.parts()]

    for text in texts:
        for piece in (secret, secret.split(maxsplit=1)[0], secret[:8], secret[-8:], "hunter2", "abc99"):
            assert piece not in text
    assert any("no answer with ***" in text for text in texts)


def test_an_error_of_many_megabytes_is_told_by_its_ends_and_in_little_time() -> None:
    message = "begins " + "x1 y2," * 1_000_000 + " ends"
    record = finished(raised(ValueError(message)), [raised(ValueError(message))])
    started = time.process_time()

    reports = [summary(record), *(failure_report(record, each) for each in record.failed_attempts)]

    # Half a second; looked through as a whole, again and again, it took half a minute.
    assert time.process_time() - started < 5.0
    for report in reports:
        assert len(report.page.encode()) < LARGEST_ARTIFACT
        assert "ValueError: begins x1 y2,x1" in report.page
        assert "y2, ends\n```" in report.page
        (left_out,) = re.findall(r"… ([\d,]+) characters left out …", report.page.partition("## Traceback")[2])
        assert len(message) - LONGEST_BLOCK < int(left_out.replace(",", "")) < len(message)
