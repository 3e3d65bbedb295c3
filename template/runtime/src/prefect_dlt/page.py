"""What the pages of reports are made of, as Markdown and as rows of tables; pure text, without any secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlt.pipeline.exceptions import PipelineStepFailed

from prefect_dlt.keys import artifact_key
from prefect_dlt.markdown import LONGEST_TABLE, cell, fence, shortened, span, table
from prefect_dlt.outbox import Rank
from prefect_dlt.reasons import reason, text_of
from prefect_dlt.record import RunRecord

LARGEST_LIST = 400_000
"""Bytes of a table artifact; a longer list goes to several. Prefect takes no more than 500 kB well."""

LONGEST_LISTED = 1_000
"""Characters of a text in a list."""

LARGEST_PAGE = 450_000
"""Bytes of a page; a part that makes it larger is left out, and said to be."""

LONGEST_MESSAGE = 1_000
"""Characters of the error that a report begins with; the whole of it is in the traceback."""

KIBIBYTE = 1024
"""Bytes."""

Row = Mapping[str, str | int | float]


@dataclass(frozen=True)
class LongList:
    """A list that is too long for a page.

    Attributes:
        name: What it is called among the artifacts of the pipeline.
        headline: What it holds, in one plain line.
        rows: Its rows, each from column to value.
    """

    name: str
    headline: str
    rows: Sequence[Row]

    def parts(self) -> Iterator[tuple[str, str]]:
        """Yield name and rows, as JSON, of each table artifact that the list needs; one, mostly."""
        lines, size, number = list[str](), 0, 1
        for line in map(json.dumps, self.rows):
            if lines and size + len(line) > LARGEST_LIST:
                yield self._part(number), f"[{', '.join(lines)}]"
                lines, size, number = [], 0, number + 1
            lines.append(line)
            size += len(line) + 2
        yield self._part(number), f"[{', '.join(lines)}]"

    def _part(self, number: int) -> str:
        return self.name if number == 1 else f"{self.name}_{number}"


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading; both are Markdown."""

    heading: str
    text: str

    def under(self, level: int) -> str:
        """Return it as Markdown, with a heading of this level: 2 for the page's own sections."""
        return f"{'#' * level} {self.heading}\n\n{self.text}"


@dataclass(frozen=True)
class Report:
    """A page about a run or a part of it.

    Attributes:
        name: What it is called among the artifacts of the pipeline.
        headline: What it says, in one plain line.
        page: The page, as Markdown.
        lists: What is too long for the page.
        rank: How soon it has to be shown.
        sections: What the page has to itself, where another page may show it instead.
    """

    name: str
    headline: str
    page: str
    lists: tuple[LongList, ...] = ()
    rank: Rank = Rank.REPORT
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True)
class PageTable:
    """Rows that a page shows as a table as far as they fit, and a list holds when they do not.

    Attributes:
        record: Of the run.
        name: What the list is called among the artifacts of the pipeline.
        headline: What it holds.
        columns: How each column's values are written as Markdown.
        rows: The rows, without secrets.
    """

    record: RunRecord
    name: str
    headline: str
    columns: Mapping[str, Callable[[Any], str]]
    rows: Sequence[Row]

    def text(self) -> str:
        """Return what the page shows."""
        shown = self.rows[: LONGEST_TABLE + 1]
        cells = [[write(row[column]) for column, write in self.columns.items()] for row in shown]
        right = [place for place, write in enumerate(self.columns.values()) if write is not cell]
        more = len(self.rows) - LONGEST_TABLE
        text = table(list(self.columns), cells[:LONGEST_TABLE], right)
        return text if more <= 0 else f"{text}\n\n… and {more:,} more{self.where()}."

    def where(self) -> str:
        """Say where the rows are that do not fit."""
        return f", in the artifact `{artifact_key(self.record.pipeline_name, self.name)}`"

    def long_list(self) -> tuple[LongList, ...]:
        """Return the list, if the page does not hold all of it."""
        if len(self.rows) <= LONGEST_TABLE:
            return ()
        rows = [
            {
                column: shortened(value, LONGEST_LISTED) if isinstance(value, str) else value
                for column, value in row.items()
            }
            for row in self.rows
        ]
        return (LongList(self.name, f"{self.headline} · {len(rows):,}", rows),)


def page(parts: Sequence[str]) -> str:
    """Return the parts of a page as one, without those that make it too large."""
    taken, size = list[str](), 0
    for part in filter(None, parts):
        length = len(part.encode(errors="replace")) + 2
        is_too_large = size + length > LARGEST_PAGE
        taken.append("… left out: the page would be too large." if is_too_large else part)
        size += 0 if is_too_large else length
    return "\n\n".join(taken) + "\n"


def about(record: RunRecord, safe: Callable[[str], str], load_ids: Sequence[str]) -> list[str]:
    """Return what every report ends with: which run it is, how and where it runs, and what it uses."""
    facts = {
        "Pipeline": record.pipeline_name,
        "Destination": record.destination,
        "Dataset": record.dataset_name,
        "Load package" if len(load_ids) == 1 else "Load packages": ", ".join(load_ids),
        "Began": f"{record.started_at:%Y-%m-%d %H:%M:%S} UTC",
    }
    parts = ["## Run", _facts(facts, safe)]
    waited = f"{record.waited:,.1f} s" if record.waited else ""
    if settings := {
        name: value for name, value in {**record.settings, "Waited for another run": waited}.items() if value
    }:
        parts += ["## Run configuration", _facts(settings, safe)]
    if record.environment:
        parts += ["## Environment", _facts(record.environment, safe)]
    if (usage := record.usage) is not None:
        rows = [
            ("CPU, % of one core", f"{usage.cpu:,.0f}", f"{usage.cpu_peak:,.0f}"),
            ("Memory, MiB", f"{usage.memory:,.0f}", f"{usage.memory_peak:,.0f}"),
        ]
        parts += ["## CPU and memory", table(("This process and its children", "Now", "Peak"), rows, right=(1, 2))]
        parts += [f"{usage.cpu_seconds:,.1f} s of CPU time since the run began."]
    return parts


def _facts(facts: Mapping[str, str], safe: Callable[[str], str]) -> str:
    rows = [(name, cell(safe(value))) for name, value in facts.items() if value]
    return table(("Setting", "Value"), rows)


def error_lines(error: BaseException, safe: Callable[[str], str]) -> list[str]:
    """Return what went wrong, and what dlt says around it where that is more."""
    inner = error.exception if isinstance(error, PipelineStepFailed) else error
    texts = dict.fromkeys((reason(error), text_of(inner)))
    return [span(shortened(safe(text), LONGEST_MESSAGE)) for text in texts]


def drawing(text: str, style: str) -> str:
    """Return a drawing in Mermaid's language."""
    # Behind the drawing, the style does not come first where the drawing is shown as text.
    return fence(f"{text}\n{style}", "mermaid")


def counted(count: int, noun: str) -> str:
    """Return a number of things as text."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def size_text(count: float) -> str:
    """Return a number of bytes as text, in units of 1,024."""
    if count < KIBIBYTE:
        return f"{count:,.0f} bytes"
    for unit in ("KiB", "MiB"):
        count /= KIBIBYTE
        if count < KIBIBYTE:
            return f"{count:,.1f} {unit}"
    return f"{count / KIBIBYTE:,.1f} GiB"


def whole(count: int) -> str:
    """Return a whole number as text."""
    return f"{count:,}"


def decimal(count: float) -> str:
    """Return a number as text, with one decimal."""
    return f"{count:,.1f}"


def as_it_is(text: str) -> str:
    """Return a text that is Markdown already."""
    return text
