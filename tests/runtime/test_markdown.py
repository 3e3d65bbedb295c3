"""Text is shown as it is, whatever it holds."""

from __future__ import annotations

import re

import pytest

from prefect_dlt.markdown import LONGEST_BLOCK, LONGEST_CELL, LONGEST_TABLE, cell, fence, plain, shortened, span, table
from tests.runtime.reports import HOSTILE, rendered, seen


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_keeps_to_its_cell(text: str) -> None:
    page = table(
        ("Table", "Column", "Type"), [(cell(text), cell("id"), "bigint"), (cell("orders"), cell(text), "text")]
    )

    rows = [
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)
        for row in re.findall(r"<tr>(.*?)</tr>", rendered(page), re.DOTALL)
    ]
    assert [len(row) for row in rows] == [3, 3, 3]
    # A bar after an even number of backslashes ends a cell in some dialects; there are four in a row of three cells.
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in page.splitlines() if "bigint" in line} == {4}
    assert [row[2] for row in rows[1:]] == ["bigint", "text"]
    assert rows[1][0] == rows[2][1]
    assert re.fullmatch(r"<code>[^<>`]*</code>", rows[1][0])
    assert re.findall(r"\w+", rows[1][0]) == re.findall(r"\w+", f"<code>{seen(text)}</code>".replace("\ud800", " "))


@pytest.mark.parametrize("text", [*HOSTILE, "```python\nprint()\n```", "````\n~~~\n</pre><b>", "```"])
def test_hostile_text_keeps_to_its_block_and_to_its_line(text: str) -> None:
    html = rendered(f"{span(f'E: {text}')}\n\n## Next\n\n{fence(f'E: {text}')}")

    assert re.fullmatch(r"<p><code>E: ?[^<]*</code></p>\n<h2>Next</h2>\n<pre><code[^>]*>E: ?[^<]*</code></pre>\n", html)


def test_a_block_without_end_is_cut_in_the_middle() -> None:
    block = fence("start " + "x" * 100_000 + " end")

    assert len(block) < LONGEST_BLOCK + 100
    assert "start x" in block
    assert "x end" in block
    assert f"{100_010 - LONGEST_BLOCK:,} characters left out" in block


def test_a_long_table_is_cut_and_says_where_the_rest_is() -> None:
    page = table(("N",), [(str(n),) for n in range(LONGEST_TABLE + 10)], more=", in the list")

    assert len(page.splitlines()) == 2 + LONGEST_TABLE + 2
    assert page.endswith("… and 10 more, in the list.")


def test_a_long_text_in_a_cell_is_cut_and_says_so() -> None:
    assert len(cell("x" * 1000)) == LONGEST_CELL + 2
    assert cell("x" * 1000).endswith("…`")
    assert shortened("abc", 3) == "abc"


def test_a_block_says_its_language() -> None:
    assert fence("gantt", "mermaid") == "```mermaid\ngantt\n```"


def test_no_text_is_no_code() -> None:
    assert span("") == cell(" \n") == ""


@pytest.mark.parametrize("text", [*HOSTILE, "the retry policy allows no more (<lambda>)"])
def test_hostile_text_keeps_to_its_sentence(text: str) -> None:
    html = rendered(plain(f"E: {text}"))

    assert html == f"<p>{seen(' '.join(f'E: {text}'.split())).translate(UNPRINTABLE)}</p>\n"


UNPRINTABLE = dict.fromkeys([0, 7, 0xD800], "?")
