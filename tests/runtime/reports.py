"""Records of runs, real and made up, and how a reader sees the pages about them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from dlt.pipeline.pipeline import Pipeline
from markdown_it import MarkdownIt

from prefect_dlt.record import RunRecord
from prefect_dlt.schema_changes import ColumnChange, TableChange

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


def empty_record(**settings: str) -> RunRecord:
    return RunRecord("shop", "duckdb", "sales", settings, started_at=datetime.now(timezone.utc))


def finished(error: BaseException | None = None, failures: list[BaseException] | None = None) -> RunRecord:
    """Return the record of a run that has ended, after attempts that failed and with an error, if it is given one."""
    record = empty_record()
    for failure in failures or []:
        record.note_failure(failure, 3, [], "The next attempt starts in 1.0 s.")
    if error is not None:
        record.note_failure(error, 3, [], "No further attempt.")
    record.finish(error)
    return record


def recorded(pipeline: Pipeline, *acts: Callable[[], Any]) -> RunRecord:
    """Return the record of a run that does one thing after another, and notes what each fails with."""
    record = RunRecord.of(pipeline, {})
    error: BaseException | None = None
    for act in acts:
        try:
            act()
            error = None
        except Exception as caught:  # noqa: BLE001 - whatever it is, it is recorded
            error = caught
            record.note_failure(error, len(acts), [], "")
        record.add_trace(pipeline.last_trace)
    record.finish(error)
    return record


def raised(error: Exception) -> Exception:
    """Return the error with a traceback."""
    try:
        raise error
    except type(error) as caught:
        return caught


def new_table(name: str, *columns: str) -> TableChange:
    """Return a table that has appeared, with columns of text."""
    definitions: dict[str, Any] = {column: {"name": column, "data_type": "text"} for column in columns or ("id",)}
    changes = {column: ColumnChange(column, "new", "text", None, None, of) for column, of in definitions.items()}
    return TableChange("shop", name, True, changes)


def rendered(page: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(page)


def cells(page: str, heading: str) -> list[list[str]]:
    """Return the rows of the table under a heading as a reader sees them."""
    found = re.search(rf"<h(\d)>{re.escape(heading)}</h\1>(.*?)(?=<h|\Z)", rendered(page), re.DOTALL)
    section = found[2] if found is not None else ""
    rows = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]


def seen(text: str) -> str:
    """Return text as HTML shows it in code."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
