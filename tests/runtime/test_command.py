"""The command as people type it, and what it says when something is not as it should be."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dlt
import pytest
from dlt.extract import DltResource
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import runner
from prefect_dlt.command import main
from prefect_dlt.lock import one_run_at_a_time
from tests.runtime.conftest import count
from tests.runtime.test_discard import ids, orders
from tests.runtime.test_lock import in_thread


@pytest.fixture
def stuck(pipeline: Callable[..., Pipeline]) -> Pipeline:
    shop = pipeline()
    shop.extract(orders(3))
    return shop


def broken() -> DltResource:
    @dlt.resource(name="orders")
    def no_orders() -> Iterator[dict[str, int]]:
        raise ConnectionError("The shop does not answer")
        yield {}

    return no_orders


def words(verb: str, pipeline: Pipeline, *more: str) -> list[str]:
    return [verb, "--pipelines-dir", pipeline.pipelines_dir, *more]


def test_pending_data_is_shown_put_aside_and_brought_back(
    stuck: Pipeline, pipeline: Callable[..., Pipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    (load_id,) = stuck.list_extracted_load_packages()

    assert main(words("pending", stuck, "shop")) == 0
    assert capsys.readouterr().out == f"load package {load_id}: extracted; orders (3 rows in 1 file)\n"

    assert main(words("discard", stuck, "shop", "--yes")) == 0
    said = capsys.readouterr().out
    assert f"load package {load_id}: extracted" in said
    (typed,) = re.findall(r"prefect-dlt (restore .*)", said)
    assert not stuck.has_pending_data

    assert main(words("pending", stuck, "shop")) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Nothing is pending of shop.\n")
    assert typed in shown

    assert main(words("discard", stuck, "shop", "--yes")) == 0
    assert capsys.readouterr().out == "Nothing is pending of shop.\n"

    assert main(typed.split()) == 0
    said = capsys.readouterr().out
    assert f"load packages {load_id}" in said
    assert "extracted again meanwhile will be there twice" in said
    again = pipeline()
    runner(again).run(orders(4))
    assert ids(again) == [1, 2, 3, 4]


def test_what_a_failed_extract_has_left_is_not_shown_as_pending(
    pipeline: Callable[..., Pipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    shop = pipeline()
    for _ in range(2):
        with pytest.raises(PipelineStepFailed):
            shop.extract(broken())

    assert main(words("pending", shop, "shop")) == 0
    assert capsys.readouterr().out == (
        "Nothing is pending of shop.\nleft by 2 interrupted steps: no rows, and nothing that is ever loaded\n"
    )

    shop.extract(orders(3))
    (load_id,) = shop.list_extracted_load_packages()
    assert main(words("discard", shop, "shop", "--yes")) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.endswith("Z: 1 load package")
    assert others[0].startswith(f"load package {load_id}: extracted; ")
    assert others[1].startswith("left by 2 interrupted steps")


@pytest.mark.slow
def test_it_can_be_typed_and_asks_before_anything_is_changed(stuck: Pipeline) -> None:
    program = str(Path(sys.executable).parent / "prefect-dlt")
    typed = subprocess.run(
        [program, *words("discard", stuck, "shop")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert typed.returncode == 1
    assert "orders (3 rows in 1 file)" in typed.stdout
    assert "give --yes" in typed.stderr
    assert "Nothing was changed." in typed.stderr
    assert stuck.has_pending_data


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 1), ("no", 1)])
def test_what_is_answered_counts(stuck: Pipeline, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _question: answer)

    assert main(words("discard", stuck, "shop")) == code
    assert stuck.has_pending_data == (code == 1)


def test_a_pipeline_that_is_at_work_is_left_alone_and_can_be_looked_at(
    stuck: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    with one_run_at_a_time(stuck.working_dir, run="load-shop"):
        in_thread(lambda: codes.append(main(words("discard", stuck, "shop", "--yes"))))
        in_thread(lambda: codes.append(main(words("pending", stuck, "shop"))))

    assert codes == [1, 0]
    said = capsys.readouterr()
    assert "'load-shop'" in said.err
    assert "extracted" in said.out
    assert stuck.has_pending_data


@pytest.mark.parametrize("name", ["shpo", "../pipelines/shop", ".", ""])
@pytest.mark.parametrize("verb", ["pending", "discard"])
def test_a_name_that_is_none_is_answered_with_those_there_are(
    stuck: Pipeline, capsys: pytest.CaptureFixture[str], verb: str, name: str
) -> None:
    assert main(words(verb, stuck, name)) == 1

    assert "choose one of shop" in capsys.readouterr().err
    assert not (Path(stuck.pipelines_dir) / "shpo").exists()


def test_a_folder_that_is_none_is_answered_with_those_there_are(
    stuck: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("restore", stuck, "shop", "yesterday")) == 1
    assert "nothing was put aside" in capsys.readouterr().err
    main(words("discard", stuck, "shop", "--yes"))
    capsys.readouterr()

    assert main(words("restore", stuck, "shop", "yesterday")) == 1

    assert re.search(r"choose one of \d{4}-\d\d-\d\dT", capsys.readouterr().err)


def test_without_a_folder_dlts_own_is_looked_at(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pending", "shop"]) == 1
    said = capsys.readouterr().err
    assert "there is no pipeline at all" in said
    assert "--pipelines-dir" in said


def test_a_pipeline_whose_destination_is_not_set_up_here_is_served(
    stuck: Pipeline, pipeline: Callable[..., Pipeline]
) -> None:
    # The command knows of the destination only what the state says: not where the database is.
    assert main(words("discard", stuck, "shop", "--yes")) == 0

    again = pipeline()
    runner(again).run(orders(2))
    assert count(again, "orders") == 2
