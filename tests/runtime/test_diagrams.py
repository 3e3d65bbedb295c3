"""The drawings of a run: valid for Mermaid whatever the names, readable as text, and never too large."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest
from dlt.pipeline.pipeline import Pipeline
from dlt.pipeline.trace import PipelineStepTrace

from prefect_dlt import CallbackCollector, runner
from prefect_dlt.diagrams import GRAPH_STYLE, MOST_BARS, MOST_TABLES, TIMELINE_STYLE, lineage, timeline
from prefect_dlt.record import RunRecord, Table
from tests.runtime.reports import HOSTILE, empty_record
from tests.runtime.sources import shop

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def record_of(*tables: tuple[str, str | None]) -> RunRecord:
    record = empty_record()
    record.tables_known = {name: Table(name, "shop", None, parent, {}) for name, parent in tables}
    return record


def with_steps(*steps: tuple[str, float, float, bool]) -> RunRecord:
    """Return a record with steps: name, beginning and end in seconds, whether it failed."""
    record = empty_record()
    record.started_at = START
    for number, (name, began, ended, failed) in enumerate(steps):
        at = [START + timedelta(seconds=seconds) for seconds in (began, ended)]
        step = PipelineStepTrace(str(number), name, at[0], at[1], step_exception="broke" if failed else None)  # type: ignore[arg-type]
        record.add_step(step)
    return record


def test_the_timeline_of_a_run_has_a_bar_for_each_try_of_each_stage() -> None:
    drawing = timeline(with_steps(("extract", 0, 1.25, False), ("load", 2, 3, True), ("load", 4, 4.5, False)))

    assert drawing.splitlines()[0] == "gantt"
    assert drawing.partition("section")[2].splitlines() == [
        " extract",
        "    1.2 s :done, 2026-01-02 03:04:05.000, 2026-01-02 03:04:06.250",
        "    section load",
        "    try 1 failed 1.0 s :crit, 2026-01-02 03:04:07.000, 2026-01-02 03:04:08.000",
        "    try 2 0.5 s :done, 2026-01-02 03:04:09.000, 2026-01-02 03:04:09.500",
    ]


def test_the_scale_of_the_timeline_fits_its_length() -> None:
    assert "axisFormat %H:%M:%S.%L" in timeline(with_steps(("extract", 0, 1, False)))
    assert "axisFormat %H:%M:%S" in timeline(with_steps(("extract", 0, 100, False)))


@pytest.mark.parametrize(
    ("seconds", "tick"),
    [(0.2, "50millisecond"), (1, "200millisecond"), (4.8, "1second"), (17, "5second"), (200, "1minute"), (1e6, "1day")],
)
def test_the_times_below_the_timeline_have_room_beside_each_other(seconds: float, tick: str) -> None:
    assert f"tickInterval {tick}\n" in timeline(with_steps(("extract", 0, seconds, False)))


@pytest.mark.parametrize("style", [TIMELINE_STYLE, GRAPH_STYLE])
def test_a_style_is_a_directive_that_mermaid_can_read(style: str) -> None:
    directive = re.fullmatch(r"%%\{init: (.+)\}%%", style)
    assert directive is not None
    assert json.loads(directive[1])


def test_a_run_that_tries_for_ever_has_a_timeline_that_ends() -> None:
    drawing = timeline(with_steps(*(("load", n, n + 0.5, True) for n in range(1_000))))

    assert len(re.findall(":crit", drawing)) == MOST_BARS
    assert "2026-01-02 03:20:44" in drawing


def test_a_run_without_stages_has_no_drawings() -> None:
    assert timeline(empty_record()) == ""
    assert lineage(empty_record(), {}) == ""


def test_the_graph_leads_from_the_source_to_its_tables_and_on_to_nested_ones(pipeline: Callable[..., Pipeline]) -> None:
    run = runner(pipeline(progress=CallbackCollector()))
    run.run(shop())
    assert run.record is not None

    drawing = lineage(run.record, {row.name: f"{row.name}, {row.rows}" for row in run.record.tables()})

    nodes = dict(re.findall(r'(\w+)(?:\(\[|\[)"([^"]*)"', drawing))
    edges = {(nodes[a], nodes[b]) for a, b in re.findall(r"(\w+) --> (\w+)", drawing)}
    assert edges == {
        ("shop", "customers, 3"),
        ("shop", "greetings, 3"),
        ("shop", "orders, 2"),
        ("orders, 2", "orders__items, 3"),
    }


def test_a_nested_table_is_drawn_behind_parents_that_got_no_rows_themselves() -> None:
    drawing = lineage(record_of(("a", None), ("a__b", "a"), ("a__b__c", "a__b")), {"a__b__c": "c"})

    assert [line.strip() for line in drawing.splitlines()[2:]] == [
        's0 --> t0["a"]',
        't0 --> t1["a__b"]',
        't1 --> t2["c"]',
    ]


def test_of_many_tables_the_first_are_drawn_and_the_rest_is_counted() -> None:
    names = [f"table_{n:04}" for n in range(1_000)]

    drawing = lineage(record_of(*((name, None) for name in names)), dict.fromkeys(names, "x"))

    assert drawing.count("-->") == MOST_TABLES
    assert f"and {1_000 - MOST_TABLES} more" in drawing


@pytest.mark.parametrize("name", [*HOSTILE, 'say "hi"', "end", "a]b", "ü 日本", "#35;", "x" * 500])
def test_a_hostile_name_is_a_label_and_nothing_else(name: str) -> None:
    drawing = lineage(record_of((name, None)), {name: name})

    (label,) = re.findall(r't0\["([^"]*)"\]$', drawing, re.MULTILINE)
    assert not re.search(r'["`<>|\[\]{}]', label)
    assert all(re.fullmatch(r"#\d+;", found) for found in re.findall(r"#[^;]*;?", label))
    assert len(drawing.splitlines()) == 3


def test_tables_that_name_each_other_as_parents_do_not_go_round_for_ever() -> None:
    assert "t1" in lineage(record_of(("a", "b"), ("b", "a")), {"a": "a"})
