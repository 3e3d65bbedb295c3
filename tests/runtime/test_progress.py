"""Counters as dlt sends them come in; a percentage that never falls, and one plain line, come out."""

import random
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.common.runtime.collector import NullCollector
from dlt.extract import DltSource

from prefect_dlt.progress import STAGES, Stage, StageProgress


class Recorder(NullCollector):
    """Feeds one StageProgress per stage with what dlt sends, as a collector does."""

    def __init__(self) -> None:
        self.stages: dict[str, StageProgress] = {}
        self.percents: dict[str, list[float]] = {}
        self.current: StageProgress | None = None

    def on_start_trace_step(self, _trace: Any, step: Any, _pipeline: Any) -> None:
        self.current = self.stages[step] = StageProgress(step, started=0.0)

    def _start(self, step: str) -> None:
        assert self.current is not None
        self.current.open()

    def update(self, name: str, inc: int = 1, total: Any = None, inc_total: Any = None, *_: Any, **more: Any) -> None:
        assert self.current is not None
        self.current.update(name, inc, total, inc_total, more.get("label"))
        self.percents.setdefault(self.current.stage, []).append(self.current.percent)


def shop(**rows: int) -> DltSource:
    """Return a source called shop with a resource of that many rows for each name."""

    @dlt.source(name="shop")
    def make() -> Any:
        return [dlt.resource([{"id": number} for number in range(count)], name=name) for name, count in rows.items()]

    return make()


def run(folder: Path, *data: Any) -> Recorder:
    recorder = Recorder()
    dlt.pipeline(
        "shop",
        destination=dlt.destinations.duckdb(str(folder / "shop.duckdb")),
        pipelines_dir=str(folder),
        progress=recorder,
    ).run(list(data))
    return recorder


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")


def test_each_stage_of_a_real_run_ends_at_a_hundred_percent(tmp_path: Path) -> None:
    recorder = run(tmp_path, shop(orders=2, items=3))

    assert [recorder.stages[stage].percent for stage in STAGES] == [100.0, 100.0, 100.0]


def test_rows_and_resources_of_a_real_run_are_the_users_alone(tmp_path: Path) -> None:
    recorder = run(tmp_path, shop(orders=2, items=3))

    extract, normalize = recorder.stages["extract"], recorder.stages["normalize"]
    assert (extract.rows, extract.done, extract.total) == (5, 2, 2)
    assert normalize.rows == 5


def test_two_sources_of_one_name_both_count(tmp_path: Path) -> None:
    recorder = run(tmp_path, shop(orders=2, items=3), shop(users=4))

    extract = recorder.stages["extract"]
    assert (extract.rows, extract.done, extract.total) == (9, 3, 3)


def test_in_a_real_run_the_percentage_never_falls(tmp_path: Path) -> None:
    recorder = run(tmp_path, shop(orders=2, items=3), shop(users=4))

    assert recorder.percents.keys() == set(STAGES)
    assert all(percents == sorted(percents) for percents in recorder.percents.values())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_counted_the_percentage_stays_between_0_and_100_and_never_falls(stage: Stage, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - a game
    progress = StageProgress(stage, started=0.0)
    told = [progress.percent]
    for _ in range(200):
        name = dice.choice(["Resources", "Files", "Jobs", "orders", "_dlt_pipeline_state"])
        if dice.random() < 0.1:
            progress.open()
        progress.update(
            name,
            dice.randrange(4),
            dice.choice([None, 0, 5]),
            dice.choice([None, 0, 3]),
            dice.choice([None, "Failed", "Other"]),
        )
        told.append(progress.percent)

    assert told == sorted(told)
    assert all(0.0 <= percent <= 100.0 for percent in told)


def test_nothing_is_done_of_a_total_that_is_not_known_yet() -> None:
    assert StageProgress("load", started=0.0).percent == 0.0


def test_a_total_that_grows_does_not_take_back_what_was_told() -> None:
    progress = StageProgress("load", started=0.0)
    progress.update("Jobs", 3, total=4)
    assert progress.percent == 75.0

    progress.update("Jobs", 0, inc_total=6)

    assert progress.percent == 75.0
    assert progress.line(0.0) == "load · 3 of 10 jobs"


def test_more_done_than_announced_is_a_hundred_percent_and_a_line_that_adds_up() -> None:
    progress = StageProgress("normalize", started=0.0)
    progress.update("Files", 3, total=2)

    assert progress.percent == 100.0
    assert progress.line(0.0) == "normalize · 3 of 3 files"


def test_the_line_tells_stage_share_rows_and_rate() -> None:
    progress = StageProgress("extract", started=10.0)
    progress.update("Resources", 3, total=5)
    progress.update("orders", 212_400)

    assert progress.line(15.18) == "extract · 3 of 5 resources · 212,400 rows · 41,004 rows/s"


def test_no_rate_is_told_before_time_has_passed() -> None:
    progress = StageProgress("extract", started=10.0)
    progress.update("orders", 1_000)

    assert progress.line(10.0) == "extract · 0 of 0 resources · 1,000 rows"


def test_failed_jobs_are_told_and_not_counted_twice() -> None:
    progress = StageProgress("load", started=0.0)
    progress.update("Jobs", 0, total=2)
    progress.update("Jobs")
    progress.update("Jobs", 1, label="Failed")  # dlt sends a failed job as finished, and once more as failed

    assert progress.line(0.0) == "load · 1 of 2 jobs · 1 failed"


def test_the_state_that_dlt_extracts_like_a_source_leaves_no_trace() -> None:
    progress = StageProgress("extract", started=0.0)
    for table, rows in (("orders", 7), ("_dlt_pipeline_state", 1), ("items", 3)):
        progress.open()
        progress.update("Resources", 0, total=1)
        progress.update(table, rows)
        progress.update("Resources", 1)

    assert progress.line(0.0) == "extract · 2 of 2 resources · 10 rows"


def test_a_stage_that_ended_well_is_done_even_if_it_had_nothing_to_do() -> None:
    progress = StageProgress("load", started=0.0)
    assert progress.percent == 0.0

    progress.finish()

    assert progress.percent == 100.0
