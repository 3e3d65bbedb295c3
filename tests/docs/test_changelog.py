"""The changelog and the version of the package belong together."""

from __future__ import annotations

import re
from pathlib import Path

import prefect_dlt

ROOT = Path(__file__).parents[2]


def releases() -> list[tuple[str, str]]:
    """Return version and text of each release in the changelog, the newest first."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    parts = re.split(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_the_newest_release_is_the_version_of_the_package() -> None:
    assert releases()[0][0] == prefect_dlt.__version__


def test_every_release_says_what_an_update_asks_of_a_project() -> None:
    assert all(re.search(r"^### Updating\n\n\S", text, re.MULTILINE) for _, text in releases())
