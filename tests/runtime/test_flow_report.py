"""The report about a whole flow: what became of each component, when, and how much of the width was used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_dlt import CallbackCollector, create_run_pipeline_flow, flow_reporter
from prefect_dlt.errors import ComponentsFailedError, UnknownResourcesError
from prefect_dlt.flow_record import FlowRecord, interrupted
from prefect_dlt.flow_report import MOST_BARS, flow_report, short_text
from prefect_dlt.markdown import LONGEST_TABLE
from prefect_dlt.record import TableRow
from prefect_dlt.redact import redaction
from prefect_dlt.results import ComponentResult
from prefect_dlt.retry import fixed_attempts
from tests.runtime.reports import HOSTILE, cells, rendered
from tests.runtime.sources import shop

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def ended(name: str, began: float, until: float, **known: Any) -> ComponentResult:
    """Return a component that was at work between two seconds of the flow."""
    times = {"started_at": START + timedelta(seconds=began), "finished_at": START + timedelta(seconds=until)}
    loaded: dict[str, Any] = {"tables": (TableRow(name, 10, 0.1),), "attempts": 1, **times, **known}
    return ComponentResult(name, f"shop__{name}", until - began, **loaded)


def flow_of(*results: ComponentResult, mode: str = "parallel", seconds: float = 10.0, **known: Any) -> FlowRecord:
    """Return the record of a flow that has ended."""
    record = FlowRecord("load shop", "shop", mode, started_at=START, **known)
    for result in results:
        record.add(result)
    record.finish(None)
    record.finished_at = START + timedelta(seconds=seconds)
    return record


def page_of(record: FlowRecord, summaries: str = "") -> str:
    return flow_report(record, str, summaries).page


def test_what_went_wrong_comes_first_and_then_what_took_longest() -> None:
    failed = ended("bad", 0, 1, error="OSError: disk full", tables=(), attempts=3)
    left = ComponentResult("left", error="not started, because …", failed_as="not started")
    nothing = ended("quiet", 0, 2, tables=())
    record = flow_of(ended("short", 0, 3), nothing, ended("long", 0, 9), failed, left)

    rows = cells(page_of(record), "Components")

    assert rows[0] == ["Component", "Outcome", "Rows", "Seconds", "Attempts", "Pipeline"]
    assert [row[1] for row in rows[1:]] == ["failed", "not started", "loaded", "loaded", "nothing to load"]
    assert rows[1][2:5] == ["0", "1.0", "3"]
    assert rows[3] == ["<code>long</code>", "loaded", "10", "9.0", "1", "<code>shop__long</code>"]
    assert flow_report(record, str).headline.startswith("Loaded · 2 of 5 components loaded · 1 failed · 1 not started")


@pytest.mark.parametrize(
    ("mode", "most_at_once", "width", "share"),
    [
        ("parallel", 2, 2, "90 %"),
        # No more than there are components.
        ("parallel", 100, 3, "60 %"),
        # Where the task runner does not say, as many as there were at a time.
        ("parallel", None, 2, "90 %"),
        ("sequential", 2, 1, "100 %"),
    ],
)
def test_the_width_used_is_the_time_at_work_over_that_of_the_flow_times_its_width(
    mode: str, most_at_once: int | None, width: int, share: str
) -> None:
    results = [ended("a", 0, 8), ended("b", 0, 4), ended("c", 4, 10)]
    record = flow_of(*results, mode=mode, most_at_once=most_at_once)

    assert record.width == width
    assert f"{share} of a width of {width} was used." in page_of(record)
    assert cells(page_of(record), "Width")[2] == ["At work at the same time, at most", "2"]


def test_the_timeline_has_a_bar_for_each_component_and_one_for_the_dataset() -> None:
    record = flow_of(ended("a", 1, 3.5), ended("b", 2, 4, error="no"), seed_seconds=0.5)

    assert [line.strip() for line in page_of(record).splitlines() if ":done" in line or ":crit" in line] == [
        "0.5 s prepare the dataset :done, 2026-01-02 03:04:05.000, 2026-01-02 03:04:05.500",
        "2.5 s a :done, 2026-01-02 03:04:06.000, 2026-01-02 03:04:08.500",
        "2.0 s failed b :crit, 2026-01-02 03:04:07.000, 2026-01-02 03:04:09.000",
    ]


@pytest.mark.parametrize("name", [*HOSTILE, "a:b;c#d", "title", "section one"])
def test_no_name_and_no_error_breaks_a_table_or_a_drawing(name: str) -> None:
    page = page_of(flow_of(ended(name, 0, 1, error=f"no {name}"), ended("plain", 0, 1)))

    # How each is shown in a cell is tested with the cells.
    assert [len(row) for row in cells(page, "Components")] == [6, 6, 6]
    # One line for each that failed, and nothing of it is Markdown.
    assert rendered(page).partition("<h2>Errors</h2>")[2].partition("<h2>")[0].count("<li>") == 1
    chart = page.partition("```mermaid\n")[2].partition("%%{")[0].splitlines()
    assert len(chart) == 8
    for line in chart[6:]:
        assert re.fullmatch(r"    \d[^:;#\n]* :(done|crit), [\d :.-]+, [\d :.-]+", line), line


def test_a_thousand_components_fit_on_a_page_and_are_all_in_a_list() -> None:
    results = [ended(f"part_{number:04}", number / 10, number / 10 + 1 + number / 1000) for number in range(1_000)]
    record = flow_of(*results, seconds=110.0)
    report = flow_report(record, str)

    assert len(report.page) < 30_000
    assert len(cells(report.page, "Components")) == 1 + LONGEST_TABLE
    assert report.page.count(":done") == MOST_BARS
    assert "… and 950 more." in report.page
    assert [long.name for long in report.lists] == ["flow_components"]
    assert len(report.lists[0].rows) == 1_000
    assert len(short_text(record, str).splitlines()) <= 4

    every_one_fails = flow_of(*(ended(f"part_{number}", 0, 1, error="x" * 5_000) for number in range(1_000)))
    assert len(short_text(every_one_fails, str)) < 6_000
    assert len(flow_report(every_one_fails, str).page) < 60_000


def test_a_component_is_linked_to_the_summary_of_its_pipeline_where_there_is_one() -> None:
    record = flow_of(ended("a", 0, 1, summary_key="shop--a-summary"), ended("b", 0, 1))

    found = cells(page_of(record, "http://ui/artifacts/key/"), "Components")
    assert found[1][0] == '<a href="http://ui/artifacts/key/shop--a-summary"><code>a</code></a>'
    assert found[2][0] == cells(page_of(record), "Components")[2][0] == "<code>b</code>"
    assert cells(page_of(record), "Components")[1][0] == "<code>a</code>"


def test_no_secret_is_in_a_report() -> None:
    secret = "s3cret-of-ada"
    result = ended(secret, 0, 1, error=f"no {secret}")
    record = flow_of(result, reason=f"{secret} says so")
    record.flow_name = f"load {secret}"
    safe = redaction([secret])

    report = flow_report(record, safe, f"http://ada:{secret}@ui/artifacts/key/")

    assert "***" in report.page
    assert secret not in f"{report.headline}{report.page}{short_text(record, safe)}"


def test_a_flow_that_ends_early_asks_for_the_results_that_nobody_has_fetched() -> None:
    record = FlowRecord("load shop", "shop", "parallel", started_at=START)
    record.expect(["a", "b", "c", "d"])
    record.add(ended("a", 0, 1))
    record.watch("b", lambda: ended("b", 0, 2))
    record.watch("c", lambda: interrupted("c"))
    record.watch("d", lambda: None)

    record.finish(KeyboardInterrupt())

    assert {each.name: each.outcome for each in record.components} == {
        "a": "loaded",
        "b": "loaded",
        "c": "interrupted",
        "d": "not started",
    }
    assert flow_report(record, str).headline.startswith(
        "Interrupted · 2 of 4 components loaded · 1 interrupted · 1 not started · 20 rows"
    )


# -- with a real flow --------------------------------------------------------------------------------------------------


@dlt.source
def fragile() -> Any:
    """One resource that loads, and one that never does."""

    @dlt.resource
    def good() -> Iterator[Any]:
        yield [{"id": 1}, {"id": 2}]

    @dlt.resource
    def bad() -> Iterator[Any]:
        raise ConnectionError("the line to mysql://ada:s3cret@db is dead")
        yield

    return good, bad


def flow_run_id() -> Any:
    context = FlowRunContext.get()
    return context.flow_run.id if context is not None and context.flow_run is not None else None


def reports_of(flow_run: Any, key: str) -> list[Artifact]:
    """Return the artifacts of a key that a flow run has made."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
        )
    return [artifact for artifact in found if artifact.key == key]


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[tuple[FlowRecord, Any]]:
    """The records that were published, each with the id of its flow run."""
    found: list[tuple[FlowRecord, Any]] = []
    publish = flow_reporter._publish

    def noted(record: FlowRecord) -> None:
        found.append((record, flow_run_id()))
        publish(record)

    monkeypatch.setattr(flow_reporter, "_publish", noted)
    return found


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("mode", [pytest.param("sequential", marks=pytest.mark.slow), "parallel"])
def test_a_flow_that_fails_tells_when_and_how_often_each_component_was_tried(
    pipeline: Callable[..., Pipeline],
    records: list[tuple[FlowRecord, Any]],
    caplog: pytest.LogCaptureFixture,
    mode: Any,
) -> None:
    load = create_run_pipeline_flow(
        pipeline,
        fragile,
        decompose=mode,
        flow_name="load fragile",
        task_runner=ThreadPoolTaskRunner(max_workers=2),
        retry_policy=fixed_attempts(2, wait=0),
        retry_pipeline_steps=["extract", "load"],
    )
    with pytest.raises(ComponentsFailedError):
        load()

    ((record, run),) = records
    by_name = {each.name: each for each in record.components}
    assert {name: (each.outcome, each.attempts, each.rows) for name, each in by_name.items()} == {
        "bad": ("failed", 2, 0),
        "good": ("loaded", 1, 2),
    }
    for each in by_name.values():
        assert each.started_at is not None
        assert each.finished_at is not None
        assert record.started_at <= each.started_at <= each.finished_at
        assert each.seconds > 0
    (artifact,) = reports_of(run, "shop-flow-report")
    assert artifact.task_run_id is None
    assert str(artifact.description).startswith("Failed · 1 of 2 components loaded · 1 failed · 2 rows")
    found = cells(str(artifact.data), "Components")
    part = "shop--bad-summary" if mode == "parallel" else "shop-summary"
    assert f"/artifacts/key/{part}" in found[1][0]
    assert "failed: bad (2 attempts" in caplog.text
    assert "s3cret" not in str(artifact.data)


@pytest.mark.usefixtures("prefect_api")
def test_a_run_that_is_refused_is_reported_where_the_others_are(
    pipeline: Callable[..., Pipeline], records: list[tuple[FlowRecord, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UnknownResourcesError):
        create_run_pipeline_flow(pipeline, shop, decompose="parallel")(resources=["ordres"])

    ((_, run),) = records
    (artifact,) = reports_of(run, "shop-flow-report")
    assert "no resource 'ordres'" in str(artifact.description)
    assert " rows" not in str(artifact.description)
    assert "## Width" not in str(artifact.data)
    (told,) = [
        each for each in caplog.records if "no resource 'ordres'" in each.getMessage() and "· " in each.getMessage()
    ]
    assert told.levelname == "ERROR"
    assert "\n" not in told.getMessage()


@pytest.mark.usefixtures("prefect_api")
def test_a_source_that_is_loaded_whole_is_reported_as_one_component(
    pipeline: Callable[..., Pipeline], records: list[tuple[FlowRecord, Any]]
) -> None:
    create_run_pipeline_flow(lambda: pipeline(progress=CallbackCollector()), shop)()

    ((_, run),) = records
    (artifact,) = reports_of(run, "shop-flow-report")
    rows = cells(str(artifact.data), "Components")
    # There is no summary: the collector writes none.
    assert rows[0] == ["Component", "Outcome", "Rows", "Seconds", "Attempts", "Pipeline"]
    assert rows[1][:3] == ["<code>the whole source</code>", "loaded", "11"]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_component_that_was_stopped_is_told_of_and_so_is_one_that_was_never_started(
    pipeline: Callable[..., Pipeline], records: list[tuple[FlowRecord, Any]]
) -> None:
    @dlt.source
    def stopping() -> Any:
        def resource(name: str) -> Any:
            def rows() -> Iterator[Any]:
                raise KeyboardInterrupt
                yield

            return dlt.resource(rows, name=name)

        return [resource("a"), resource("b")]

    with pytest.raises(KeyboardInterrupt):
        create_run_pipeline_flow(pipeline, stopping, decompose="sequential")()

    ((record, run),) = records
    assert [(each.name, each.outcome) for each in record.components] == [("a", "interrupted"), ("b", "not started")]
    assert record.components[0].seconds > 0
    assert str(reports_of(run, "shop-flow-report")[0].description).startswith("Interrupted · 0 of 2 components loaded")


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_report_that_cannot_be_written_costs_the_flow_nothing(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_arguments: Any) -> None:
        raise RuntimeError("no report today")

    monkeypatch.setattr(flow_reporter, "flow_report", broken)

    assert create_run_pipeline_flow(pipeline, shop)().tables
    assert "The report about the flow was not written" in caplog.text
