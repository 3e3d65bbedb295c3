"""Drawings of a run in Mermaid's language, which also reads as text where nobody draws it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from prefect_dlt.markdown import shortened
from prefect_dlt.progress import STAGES
from prefect_dlt.record import RunRecord
from prefect_dlt.steps import seconds_of, tries

MOST_TABLES = 40
"""Tables of a graph; of more, those with the most rows are drawn."""

MOST_BARS = 60
"""Bars of a timeline; of more, the last are drawn."""

LONGEST_LABEL = 60
"""Characters of a name in a graph."""

MOST_TICKS = 5
"""Times below a timeline; more would overlap where a page is narrow."""

TIMELINE_STYLE = (
    '%%{init: {"theme": "dark", "gantt": {"useWidth": 580, "barHeight": 22, "fontSize": 13, "sectionFontSize": 13},'
    ' "themeVariables": {"sectionBkgColor": "transparent", "sectionBkgColor2": "transparent",'
    ' "doneTaskBkgColor": "#7dd3fc", "doneTaskBorderColor": "#7dd3fc"}}}%%'
)
"""How Mermaid draws a timeline: Prefect shows it on a dark ground in a column of this width."""

GRAPH_STYLE = '%%{init: {"flowchart": {"wrappingWidth": 600, "nodeSpacing": 15}}}%%'
"""How Mermaid draws a graph: each name on one line, and many tables close together."""

# What may lie between two times below a timeline: seconds, and Mermaid's word for them.
_TICKS = (
    *((milliseconds / 1000, f"{milliseconds}millisecond") for milliseconds in (50, 100, 200, 500)),
    *((float(seconds), f"{seconds}second") for seconds in (1, 2, 5, 10, 20, 30)),
    *((60.0 * minutes, f"{minutes}minute") for minutes in (1, 2, 5, 10, 20, 30)),
    *((3600.0 * hours, f"{hours}hour") for hours in (1, 2, 4, 8)),
)


def timeline(record: RunRecord) -> str:
    """Return when each stage ran, and each try of it, as a Gantt chart in UTC; empty when none has ended."""
    steps = sorted(record.steps(), key=lambda step: step.started_at)[-MOST_BARS:]
    if not steps:
        return ""
    last = max(step.finished_at or step.started_at for step in steps)
    lines = _chart("Stages, times in UTC", (last - steps[0].started_at).total_seconds())
    for stage in STAGES:
        of_stage = [step for step in steps if step.step == stage]
        lines += [f"    section {stage}"] if of_stage else []
        for number, step in zip(tries(of_stage), of_stage, strict=True):
            state = "crit" if step.step_exception else "done"
            which = f"try {number} " if number > 1 or (step.step_exception and step is not of_stage[-1]) else ""
            outcome = "failed " if step.step_exception else ""
            span = _span(step.started_at, step.finished_at or last)
            lines.append(f"    {which}{outcome}{seconds_of(step):,.1f} s :{state}, {span}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Bar:
    """A bar of a timeline.

    Attributes:
        label: What it says. Begins with a figure: some words at the beginning of a line mean something to Mermaid.
        began: Where it begins.
        ended: Where it ends.
        is_failed: Whether it is drawn as a failure.
    """

    label: str
    began: datetime
    ended: datetime
    is_failed: bool = False


def bars(title: str, drawn: Sequence[Bar], before: tuple[str, datetime, float] | None = None) -> str:
    """Return bars as a Gantt chart in UTC, one below the other.

    Args:
        title: What it shows.
        drawn: The bars, one at least.
        before: Name, beginning and seconds of something that is drawn above them.
    """
    if before is not None:
        name, began, seconds = before
        drawn = [Bar(f"{seconds:,.1f} s {name}", began, began + timedelta(seconds=seconds)), *drawn]
    first, last = min(bar.began for bar in drawn), max(bar.ended for bar in drawn)
    lines = _chart(title, (last - first).total_seconds())
    for bar in drawn:
        # In a name, a colon ends it, and a hash or a semicolon begins a comment.
        label = re.sub(r"[^\w .,·…()/-]", "_", shortened(" ".join(bar.label.split()), LONGEST_LABEL))
        lines.append(f"    {label} :{'crit' if bar.is_failed else 'done'}, {_span(bar.began, bar.ended)}")
    return "\n".join(lines)


def _chart(title: str, seconds: float) -> list[str]:
    """Return how a timeline of so many seconds begins."""
    tick, tick_text = next((each for each in _TICKS if seconds <= each[0] * MOST_TICKS), (24 * 3600.0, "1day"))
    return [
        "gantt",
        f"    title {title}",
        "    dateFormat YYYY-MM-DD HH:mm:ss.SSS",
        f"    axisFormat {'%H:%M:%S.%L' if tick < 1 else '%H:%M:%S'}",
        f"    tickInterval {tick_text}",
        "    todayMarker off",
    ]


def _span(began: datetime, ended: datetime) -> str:
    return ", ".join(f"{at:%Y-%m-%d %H:%M:%S.%f}"[:-3] for at in (began, ended))


def lineage(record: RunRecord, shown: Mapping[str, str], safe: Callable[[str], str] = str) -> str:
    """Return a graph from the sources to the tables of a run, nested tables behind their parents; empty for none.

    Args:
        record: Of the run.
        shown: What to call each table, in the order of their importance.
        safe: Takes secrets out of the names of what is drawn besides: sources, and tables that others are nested in.
    """
    tables = {name: label for name, label in shown.items() if name in record.tables_known}
    drawn = dict[str, None]()
    for name in list(tables)[:MOST_TABLES]:
        # Parents first, so that the text reads from left to right as the drawing does.
        drawn |= dict.fromkeys(reversed([name, *_ancestors(record, name)]))
    if not drawn:
        return ""
    sources = dict.fromkeys(record.tables_known[name].schema for name in drawn)
    ids = {("source", name): f"s{number}" for number, name in enumerate(sources)}
    ids |= {("table", name): f"t{number}" for number, name in enumerate(drawn)}
    lines = ["flowchart LR"]
    lines += [f'    {ids["source", name]}(["{_label(safe(name))}"])' for name in sources]
    for name in drawn:
        table = record.tables_known[name]
        behind = ids["table", table.parent] if table.parent in drawn else ids["source", table.schema]
        lines.append(f'    {behind} --> {ids["table", name]}["{_label(shown[name] if name in shown else safe(name))}"]')
    if (more := len(tables.keys() - drawn.keys())) > 0:
        lines.append(f'    s0 -.-> more["and {more:,} more"]')
    return "\n".join(lines)


def _ancestors(record: RunRecord, name: str) -> Iterable[str]:
    seen = {name}
    while (parent := record.tables_known[name].parent) is not None and parent in record.tables_known:
        if parent in seen:
            return
        seen.add(parent)
        yield (name := parent)


def _label(name: str) -> str:
    """Return a name as Mermaid shows it: a character that may mean something there becomes its number."""
    cut = shortened(name, LONGEST_LABEL)
    return re.sub(r"[^\w .,·…()/-]", lambda found: f"#{ord(found[0])};", " ".join(cut.split()))
