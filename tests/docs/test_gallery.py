"""The gallery is complete: each picture that `make gallery` takes is there and shown, of each kind of artifact."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "gallery.md"
INTERFACES = ("v2", "v1")
MOST_BYTES = 3 * 1024**2

# Kinds of artifacts by what follows the name of the pipeline in their keys.
KINDS = {
    *("extract", "extract-report", "normalize-report", "load-report", "summary", "summary-tables"),
    *("schema-changes", "schema-columns", "failed-attempt-1"),
}


@pytest.fixture
def album(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("gallery_album")


def files(album: Any) -> set[str]:
    return {f"{picture.name}-{interface}.png" for picture in album.PICTURES for interface in INTERFACES}


def test_each_picture_that_is_taken_is_there_and_no_other(album: Any) -> None:
    assert {file.name for file in (ROOT / "docs" / "gallery").iterdir()} == files(album)


def test_the_page_shows_each_picture_once(album: Any) -> None:
    shown = re.findall(r"!\[[^\]]+\]\(gallery/([^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(files(album))


def test_there_is_a_picture_of_each_kind_of_artifact(album: Any) -> None:
    keys = [picture.of for picture in (album.PROGRESS, *album.ARTIFACTS)]
    assert [kind for kind in sorted(KINDS) if not any(key.endswith(f"-{kind}") for key in keys)] == []


def test_the_page_names_each_kind_of_artifact() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [kind for kind in sorted(KINDS) if f"`<pipeline>-{kind}`" not in text] == []


def test_the_pictures_are_small_enough_to_be_kept_in_git() -> None:
    assert sum(file.stat().st_size for file in (ROOT / "docs" / "gallery").iterdir()) < MOST_BYTES
