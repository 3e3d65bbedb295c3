"""What the report about a whole flow says: its components, when each ran, and how much of the width was used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

from prefect_dlt.diagrams import TIMELINE_STYLE, Bar, bars
from prefect_dlt.flow_record import FlowRecord
from prefect_dlt.markdown import LONGEST_TABLE, cell, plain, printable, shortened, span, table
from prefect_dlt.outbox import Rank
from prefect_dlt.page import LongList, Report, Row, counted, drawing, page
from prefect_dlt.reasons import reason_line
from prefect_dlt.results import ComponentResult, Outcome

MOST_BARS = 60
"""Components in the timeline; of more, those that took longest are drawn."""

MOST_LINES = 10
"""Components that the short text names of those that failed, and of those that took longest a third."""

LONGEST_ERROR = 300
"""Characters of an error in the short text."""

LONGEST_TOLD = 800
"""Characters of an error on the page."""

LONGEST_LISTED = 1_000
"""Characters of an error in the list of all components."""

# In the order in which people look for them.
_OUTCOMES: tuple[Outcome, ...] = ("failed", "interrupted", "not started", "loaded", "nothing to load")


def flow_report(record: FlowRecord, safe: Callable[[str], str], summaries: str = "") -> Report:
    """Return the page about a flow run, and the list of its components where that is too long for the page.

    Args:
        record: Of the flow run.
        safe: Takes secrets out of a text.
        summaries: Where the artifact of a key is shown: an address that the key is added to; empty for nowhere.
    """
    found = _ordered(record.components)
    parts = [f"# {span(safe(record.flow_name))}: {outcome(record)}", plain(safe(headline(record, safe)))]
    if record.error is not None and not any(each.error for each in found):
        parts += ["## Error", span(reason_line(record.error, safe))]
    if failed := [each for each in found if each.error is not None]:
        parts += ["## Errors", _errors(failed[:LONGEST_TABLE], safe)]
    if found:
        listed = "" if len(found) <= LONGEST_TABLE else " They are all in the artifact that ends in `flow-components`."
        parts += ["## Components", _components(found[:LONGEST_TABLE], safe, summaries)]
        more = len(found) - LONGEST_TABLE
        parts += [f"… and {more:,} more.{listed}"] if more > 0 else []
        if any(each.error is not None and each.tables for each in found):
            parts += ["Rows of components that failed were prepared, and not all of them are loaded."]
        parts += _timeline(record, safe)
    # What was refused before anything ran has no width to speak of.
    parts += ["## Width", *_width(record)] if found else []
    parts += ["## Run", _about(record, safe)]
    return Report("flow_report", headline(record, safe), page(parts), _list(found, safe), Rank.SUMMARY)


def short_text(record: FlowRecord, safe: Callable[[str], str]) -> str:
    """Return a few lines for the flow's log: the outcome, what failed and why, and what took longest."""
    found = _ordered(record.components)
    lines = [f"Flow {safe(record.flow_name)!r}: {headline(record, safe)}"]
    lines += [f"  {_mode(record, safe)}; {_used(record)}"] if found else []
    without = [each for each in found if each.error is not None]
    for each in without[:MOST_LINES]:
        why = shortened(printable(safe(each.error or "")), LONGEST_ERROR)
        lines.append(f"  {each.outcome}: {safe(each.name)}{_tries(each)}{f': {why}' if why else ''}")
    if len(without) > MOST_LINES:
        lines.append(f"  and {len(without) - MOST_LINES:,} more that were not loaded")
    longest = sorted((each for each in found if each.seconds), key=lambda each: -each.seconds)[: MOST_LINES // 3]
    if longest and len(found) > 1:
        lines.append("  longest: " + ", ".join(f"{safe(each.name)} {each.seconds:,.1f} s" for each in longest))
    return "\n".join(lines)


def outcome(record: FlowRecord) -> str:
    """Return what became of a flow run: "running", "interrupted", "failed" or "loaded"."""
    if record.finished_at is None:
        return "running"
    if record.error is None:
        return "loaded"
    return "failed" if isinstance(record.error, Exception) else "interrupted"


def headline(record: FlowRecord, safe: Callable[[str], str]) -> str:
    """Return what a flow run did in one plain line."""
    found = record.components
    counts = Counter(each.outcome for each in found)
    figures = [outcome(record).capitalize()]
    if record.mode != "none" and found:
        figures += [f"{counts[word]:,} of {counted(len(found), 'component')} {word}" for word in ("loaded",)]
        figures += [f"{counts[word]:,} {word}" for word in _OUTCOMES if word != "loaded" and counts[word]]
    if record.error is not None and not any(each.error for each in found) and isinstance(record.error, Exception):
        figures.append(reason_line(record.error, safe))
    if found:
        figures.append(counted(sum(each.rows for each in found if each.error is None), "row"))
    figures.append(f"{record.seconds:,.1f} s")
    if record.share_used is not None and record.mode == "parallel":
        figures.append(f"{100 * record.share_used:.0f} % of the width used")
    return " · ".join(figures)


def _ordered(components: Sequence[ComponentResult]) -> list[ComponentResult]:
    """Return components in the order in which people look for them: what went wrong, then what took longest."""
    return sorted(components, key=lambda each: (_OUTCOMES.index(each.outcome) >= 3, -each.seconds, each.name))  # noqa: PLR2004


def _components(found: Sequence[ComponentResult], safe: Callable[[str], str], summaries: str) -> str:
    # No more than a page is wide: errors are told above, and names lead to the summaries.
    header = ("Component", "Outcome", "Rows", "Seconds", "Attempts", "Pipeline")
    rows = [
        (
            _linked(each, safe, summaries),
            each.outcome,
            f"{each.rows:,}",
            _seconds(each),
            str(each.attempts or ""),
            cell(safe(each.pipeline_name or "")),
        )
        for each in found
    ]
    # What is empty everywhere is no column.
    kept = [column for column in range(len(header)) if column < 4 or any(row[column] for row in rows)]  # noqa: PLR2004
    right = [kept.index(column) for column in (2, 3, 4) if column in kept]
    return table([header[column] for column in kept], [[row[column] for column in kept] for row in rows], right)


def _linked(component: ComponentResult, safe: Callable[[str], str], summaries: str) -> str:
    """Return the name of a component, as a link to its summary where there is one to be shown."""
    name, key = cell(safe(component.name)), component.summary_key
    # A key has no character that means something in an address, or in Markdown.
    return f"[{name}]({summaries}{key})" if key and summaries and safe(summaries) == summaries else name


def _errors(found: Sequence[ComponentResult], safe: Callable[[str], str]) -> str:
    """Return what went wrong, a line for each component, so that it is read before anything else."""
    lines = [(span(safe(each.name)), plain(shortened(safe(each.error or ""), LONGEST_TOLD))) for each in found]
    return "\n".join(f"- {name}: {error}" for name, error in lines)


def _timeline(record: FlowRecord, safe: Callable[[str], str]) -> list[str]:
    timed = [
        (each.started_at, each.finished_at, each)
        for each in record.components
        if each.started_at is not None and each.finished_at is not None
    ]
    if not timed:
        return []
    # By start, as they follow one another on the page; the sort by length before keeps those that say most.
    drawn = sorted(sorted(timed, key=lambda each: -each[2].seconds)[:MOST_BARS], key=lambda each: each[:2])
    found = [Bar(_label(each, safe), began, ended, is_failed=each.error is not None) for began, ended, each in drawn]
    parts = [
        "## Timeline",
        drawing(bars("Components, times in UTC", found, _seed(record)), TIMELINE_STYLE),
    ]
    if len(timed) > len(drawn):
        parts.append(f"The {len(drawn):,} that took longest, of {len(timed):,}.")
    return parts


def _label(component: ComponentResult, safe: Callable[[str], str]) -> str:
    failed = "" if component.error is None else f"{component.outcome} "
    return f"{component.seconds:,.1f} s {failed}{safe(component.name)}"


def _seed(record: FlowRecord) -> tuple[str, datetime, float] | None:
    """Return name, beginning and seconds of what came before the first component."""
    return ("prepare the dataset", record.started_at, record.seed_seconds) if record.seed_seconds else None


def _width(record: FlowRecord) -> list[str]:
    rows = [
        ("Components at a time, at most", f"{record.width:,}"),
        ("At work at the same time, at most", f"{record.most_at_work:,}"),
        ("Seconds of the flow", f"{record.seconds:,.1f}"),
        ("Seconds of all components together", f"{record.busy_seconds:,.1f}"),
    ]
    rows += [("Seconds to prepare the dataset", f"{record.seed_seconds:,.1f}")] if record.seed_seconds else []
    return [f"{_used(record).capitalize()}.", table(("What", "Figure"), rows, right=(1,))]


def _used(record: FlowRecord) -> str:
    if record.share_used is None:
        return "nothing of the width was used"
    return f"{100 * record.share_used:.0f} % of a width of {record.width:,} was used"


def _mode(record: FlowRecord, safe: Callable[[str], str]) -> str:
    why = f", because {' '.join(safe(record.reason).split())}" if record.reason else ""
    return f"mode {record.mode or 'not chosen yet'}{why}"


def _about(record: FlowRecord, safe: Callable[[str], str]) -> str:
    facts = {
        "Flow": record.flow_name,
        "Pipeline": record.pipeline_name,
        "Mode": record.mode,
        "Mode chosen because": record.reason,
        "Began": f"{record.started_at:%Y-%m-%d %H:%M:%S} UTC",
    }
    return table(("Setting", "Value"), [(name, cell(safe(value))) for name, value in facts.items() if value])


def _list(found: Sequence[ComponentResult], safe: Callable[[str], str]) -> tuple[LongList, ...]:
    if len(found) <= LONGEST_TABLE:
        return ()
    rows: list[Row] = [
        {
            "Component": safe(each.name),
            "Outcome": each.outcome,
            "Rows": each.rows,
            "Seconds": round(each.seconds, 1),
            "Attempts": each.attempts,
            "Pipeline": safe(each.pipeline_name or ""),
            "Summary": each.summary_key or "",
            "Error": shortened(safe(each.error or ""), LONGEST_LISTED),
        }
        for each in found
    ]
    return (LongList("flow_components", f"Components · {len(rows):,}", rows),)


def _seconds(component: ComponentResult) -> str:
    return f"{component.seconds:,.1f}" if component.seconds or component.error is None else ""


def _tries(component: ComponentResult) -> str:
    after = f"{component.attempts} attempts" if component.attempts > 1 else ""
    known = ", ".join(filter(None, (after, f"{component.seconds:,.1f} s" if component.seconds else "")))
    return f" ({known})" if known else ""
