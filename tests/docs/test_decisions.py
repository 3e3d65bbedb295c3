import re
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "explanations" / "decisions"
DECISIONS = sorted(FOLDER.glob("[0-9]*.md"))
SECTIONS = ["Status", "Context", "Decision", "Consequences"]


def test_each_decision_has_a_number_of_its_own():
    numbers = Counter(path.name[:4] for path in DECISIONS)
    assert numbers
    assert [number for number, count in numbers.items() if count > 1] == []


@pytest.mark.parametrize("path", [*DECISIONS, FOLDER / "COPYME"], ids=lambda path: path.stem)
def test_a_decision_has_the_four_sections_and_says_something_in_each(path: Path):
    parts = re.split(r"^## (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert parts[1::2] == SECTIONS
    assert all(text.strip() for text in parts[2::2])


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_carries_the_number_of_its_file(path: Path):
    assert path.read_text(encoding="utf-8").startswith(f"# {path.name[:4]}. ")
