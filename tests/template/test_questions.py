"""What copier asks, and what it answers to a bad answer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule

from tests.template.conftest import ROOT

Ask = Callable[..., None]

COPIER_YML: dict[str, Any] = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))
QUESTIONS: dict[str, dict[str, Any]] = {
    name: question
    for name, question in COPIER_YML.items()
    if not name.startswith("_") and question.get("when") is not False
}


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Return a function that gives the questions some answers, and makes nothing of them."""
    shutil.copy2(ROOT / "copier.yml", tmp_path)
    (tmp_path / "template").mkdir()

    def answer(**answers: Any) -> None:
        project = tmp_path / "project"
        copier.run_copy(str(tmp_path), project, data=answers, defaults=True, unsafe=False, quiet=True, pretend=True)

    return answer


def test_there_are_at_most_ten_questions() -> None:
    assert len(QUESTIONS) <= 10


def test_every_question_says_what_depends_on_it() -> None:
    assert [name for name, question in QUESTIONS.items() if not question.get("help")] == []


def test_no_question_asks_for_a_secret() -> None:
    assert [name for name, question in QUESTIONS.items() if question.get("secret")] == []


def test_the_template_runs_no_code_on_the_users_machine() -> None:
    assert not {"_tasks", "_migrations", "_jinja_extensions"} & set(COPIER_YML)


def test_only_the_projects_name_has_no_default(ask: Ask) -> None:
    ask(project_name="shop-loads")

    with pytest.raises(ValueError, match="project_name"):
        ask()


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("project_name", "Shop Loads"),
        ("project_name", "shop_loads"),
        ("project_name", "1-shop"),
        ("project_name", "shop-"),
        ("project_name", "shop--loads"),
        ("project_name", "shop\n"),
        ("project_name", "s" * 41),
        ("project_name", "prefect-dlt"),
        ("schedule", "every day"),
        ("schedule", "0 6 * *"),
        ("schedule", " "),
        ("work_pool_name", "a/b"),
        ("work_pool_name", "Prefect-pool"),
        ("work_pool_name", "{{ answer }}"),
        ("retry_attempts", 0),
        ("retry_attempts", 21),
    ],
)
def test_a_bad_answer_is_quoted_and_corrected_in_one_line(ask: Ask, question: str, answer: str | int) -> None:
    with pytest.raises(ValueError, match=question) as refused:
        ask(**{"project_name": "shop-loads", question: answer})

    message = str(refused.value).strip()
    assert str(answer).strip() in message
    assert "\n" not in message


@pytest.mark.parametrize("timezone", ["Berlin!", "europe/berlin", "+02:00", "Europe/"])
def test_a_bad_time_zone_is_quoted(ask: Ask, timezone: str) -> None:
    with pytest.raises(ValueError, match="timezone") as refused:
        ask(project_name="shop-loads", schedule="@daily", timezone=timezone)

    assert timezone in str(refused.value)


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "GMT"])
def test_an_iana_time_zone_is_accepted(ask: Ask, timezone: str) -> None:
    ask(project_name="shop-loads", schedule="@daily", timezone=timezone)


def accepts(check: Callable[[], object]) -> bool:
    """Tell whether a check passes without a ValueError."""
    try:
        check()
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "expression",
    [
        "0 6 * * *",
        "*/15 8-18 * * MON-FRI",
        "0,30 * 1 JAN-mar *",
        "5/10 * * * *",
        "0-30/5 * * * 0,7",
        "0 0 L * *",
        "0 0 * * MON#1",
        "00 06 01 01 *",
        "@hourly",
        "@Daily",
        "@fortnightly",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * 32 * *",
        "* * * 13 *",
        "* * * * 8",
        "* * * * MON#6",
        "* * * FOO *",
        "*/0 * * * *",
        "1,,2 * * * *",
        "1- * * * *",
        "-1 * * * *",
        "* * * *",
        "H * * * *",
        "R R * * *",
        "every day at six",
        "0 6 * * *; true",
        '0 6 * * *" #',
    ],
)
def test_a_cron_expression_is_judged_as_prefect_judges_it(ask: Ask, expression: str) -> None:
    ours = accepts(lambda: ask(project_name="shop-loads", schedule=expression))

    assert ours == accepts(lambda: CronSchedule(cron=expression, timezone="UTC"))
