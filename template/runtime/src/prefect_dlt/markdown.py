"""Text as Markdown that shows it as it is, whatever it holds: spans, cells, tables, fenced blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST_TABLE = 50
"""Rows of a table in a report; of a longer one the first are shown, and how many more there are."""

LONGEST_CELL = 300
"""Characters of a text in a table."""

LONGEST_BLOCK = 20_000
"""Characters of a traceback in a report; of a longer one the beginning and the end are shown."""

# Half characters and control characters; databases and APIs refuse some of them.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_LEFT_OUT = re.compile(r"… ([\d,]{1,20}) characters left out …")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = (), more: str = "") -> str:
    """Return a table of cells that are Markdown already.

    Args:
        header: Names of the columns.
        rows: The cells of each row.
        right: Columns with numbers, by position from 0, which are aligned to the right.
        more: Where the rows are that did not fit, to be said after their number.
    """
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    lines = [" | ".join(cells) for cells in (header, rule, *rows[:LONGEST_TABLE])]
    text = "\n".join(f"| {line} |" for line in lines)
    if (left_out := len(rows) - LONGEST_TABLE) > 0:
        text += f"\n\n… and {left_out:,} more{more}."
    return text


def plain(text: str) -> str:
    """Return text as a sentence on one line; a character that may mean something in Markdown or HTML means itself."""
    return re.sub(r"([\\`*_~<>\[\]|#])", r"\\\1", printable(" ".join(text.split())))


def span(text: str) -> str:
    """Return text as code on one line; code ends at a backtick."""
    line = printable(" ".join(text.split())).replace("`", "'")
    return f"`{line}`" if line else ""


def cell(text: str) -> str:
    """Return text as code, fit for a cell: a cell ends at a bar, and a long text is cut."""
    # A backslash is an ordinary character in code, but not before a bar.
    return re.sub(r"(\\*)\|", r"\1\1\\|", span(shortened(text, LONGEST_CELL)))


def fence(text: str, language: str = "text") -> str:
    """Return text as a block of code, cut in the middle when it is too long."""
    lines = printable("\n".join(_cut(text).splitlines()))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return f"{fence}{language}\n{lines}\n{fence}"


def printable(text: str) -> str:
    """Return text with a question mark for each character that cannot be shown."""
    return _UNPRINTABLE.sub("?", text)


def shortened(text: str, length: int) -> str:
    """Return text of at most so many characters, with three dots for what was cut."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def left_out(characters: int) -> str:
    """Return the line that stands for the middle of a text that was cut."""
    return f"… {characters:,} characters left out …"


def _cut(text: str) -> str:
    half = LONGEST_BLOCK // 2
    if len(text) <= LONGEST_BLOCK:
        return text
    # A part of it may have been left out before, and been longer than what it says.
    missing = len(text) - 2 * half
    for found in _LEFT_OUT.finditer(text[half:-half]):
        missing += int(found[1].replace(",", "")) - len(found[0])
    return f"{text[:half]}\n{left_out(missing)}\n{text[-half:]}"
