"""What fails for good is put aside, and no row of it is lost: real packages, real DuckDB, real kills."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import discard, runner
from prefect_dlt.discard import discarded_before, finish_discard, put_aside, restore
from prefect_dlt.errors import ConfigurationError, PendingDataError, UnknownStateError
from prefect_dlt.pending import pending_packages
from tests.runtime.conftest import count

Make = Callable[..., Pipeline]


def orders(up_to: int) -> Any:
    """Return orders from 1 on, of which only new ones are extracted."""

    @dlt.resource(name="orders")
    def new_orders(since: Any = dlt.sources.incremental("id", initial_value=0)) -> Iterator[Any]:  # noqa: B008 - dlt's way
        yield [{"id": number} for number in range(since.last_value + 1, up_to + 1)]

    return new_orders


def ids(pipeline: Pipeline, table: str = "orders") -> list[int]:
    with pipeline.sql_client() as client:
        rows = client.execute_sql(f"SELECT id FROM {client.make_qualified_table_name(table)} ORDER BY id")
    return [row[0] for row in rows or ()]


def all_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "orders" in path.name}


@contextmanager
def failing(pipeline: Pipeline, step: str) -> Iterator[None]:
    """Make the destination fail in one of its steps, whatever is tried."""

    def asleep(*_args: object, **_options: object) -> None:
        raise ConnectionError("asleep")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pipeline.destination_client()), step, asleep)
        with pytest.raises(PipelineStepFailed, match="asleep"):
            yield


@pytest.fixture
def stuck(pipeline: Make, request: pytest.FixtureRequest) -> Pipeline:
    """A pipeline with orders up to 6 that were extracted and never loaded, after others or on its first run."""
    shop = pipeline()
    if getattr(request, "param", "later") == "later":
        runner(shop).run(orders(3))
    with failing(shop, "update_stored_schema"):
        runner(shop).run(orders(6))
    return shop


@pytest.mark.slow
@pytest.mark.parametrize("stuck", ["first", "later"], indirect=True)
@pytest.mark.parametrize("in_new_process", [False, True])
def test_new_data_is_loaded_past_what_fails_for_good_and_no_row_is_lost(
    stuck: Pipeline, pipeline: Make, in_new_process: bool, caplog: pytest.LogCaptureFixture
) -> None:
    was_there = all_files(Path(stuck.working_dir) / "load" / "normalized")
    # A new object knows no more than a new process does.
    shop = pipeline() if in_new_process else stuck
    run = runner(shop, discard_pending=True)

    with caplog.at_level(logging.INFO, "prefect_dlt"):
        run.run(orders(8))

    assert ids(shop) == [1, 2, 3, 4, 5, 6, 7, 8]
    (discarded,) = discarded_before(Path(shop.working_dir))
    (package,) = discarded.packages
    assert discarded.is_finished
    assert all_files(discarded.folder) == was_there
    assert discarded.folder.parent == Path(shop.pipelines_dir) / "shop.discarded"
    (table,) = package.tables
    assert table.name == "orders"
    assert str(table) in {"orders (6 rows in 1 file)", "orders (3 rows in 1 file)"}
    for line in discarded.lines():
        assert line in caplog.messages
    assert run.record is not None
    assert run.record.discarded == discarded.lines()
    assert package.load_id in (discarded.folder / "README.md").read_text()

    # Nothing is left to put aside the next time.
    runner(shop, discard_pending=True).run(orders(9))
    assert ids(shop)[-1] == 9
    assert len(discarded_before(Path(shop.working_dir))) == 1


def test_a_run_that_fails_at_what_an_earlier_one_left_says_how_to_put_it_aside(pipeline: Make) -> None:
    shop = pipeline()
    run = runner(shop)
    nexts: list[str] = []
    for _ in range(2):
        with failing(shop, "complete_load"):
            run.run(orders(3))
        assert run.record is not None
        nexts.append(run.record.failed_attempts[-1].next)

    assert nexts[0].endswith("The next run loads first what is pending.")
    assert nexts[1].endswith(f"put it aside: prefect-dlt discard --pipelines-dir {shop.pipelines_dir} shop")


def test_what_reached_the_destination_stays_there_and_is_named(pipeline: Make) -> None:
    shop = pipeline()
    with failing(shop, "complete_load"):
        runner(shop).run(orders(3))
    (load_id,) = shop.list_normalized_load_packages()

    runner(shop, discard_pending=True).run(orders(4))

    (discarded,) = discarded_before(Path(shop.working_dir))
    assert discarded.packages[0].state == "partly loaded"
    assert str(discarded.packages[0].tables[0]) == "orders (3 rows in 1 file, 1 of them loaded)"
    assert f"_dlt_load_id = '{load_id}'" in "\n".join(discarded.lines())
    with shop.sql_client() as client:
        client.execute_sql(f"DELETE FROM orders WHERE _dlt_load_id = '{load_id}'")
    assert ids(shop) == [1, 2, 3, 4]


def test_what_interrupted_steps_left_behind_is_put_aside_too(pipeline: Make) -> None:
    shop = pipeline()
    shop.extract(orders(3))
    (load_id,) = shop.list_extracted_load_packages()
    folder = Path(shop.working_dir)
    for half in (folder / "load" / "new" / load_id, folder / "normalize" / "a1b2c3" / "1700000000.5"):
        (half / "new_jobs").mkdir(parents=True)
        (half / "new_jobs" / "orders.0123456789.0.jsonl").write_text('{"id": 1}\n{"id"')

    discarded = put_aside(shop)

    assert discarded is not None
    assert [(each.state, str(each.tables[0])) for each in discarded.packages] == [
        ("extracted", "orders (3 rows in 1 file)"),
        ("half normalised", "orders (2 rows in 1 file)"),
        ("half extracted", "orders (2 rows in 1 file)"),
    ]
    assert pending_packages(folder) == []
    assert put_aside(shop) is None
    assert len(all_files(discarded.folder)) == 2
    assert len(list(discarded.folder.rglob("orders.*"))) == 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("moment", ["before all", "before the first", "between", "before the end"])
def test_being_killed_half_way_loses_and_doubles_nothing(pipeline: Make, moment: str) -> None:
    shop = pipeline()
    runner(shop).run(orders(3))
    shop.extract(orders(5))
    shop.normalize()
    shop.extract(orders(7))
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            put_aside_and_die(shop, moment)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    again = pipeline()
    runner(again).run(orders(8))

    assert ids(again) == [1, 2, 3, 4, 5, 6, 7, 8]
    (discarded,) = discarded_before(Path(again.working_dir))
    assert discarded.is_finished
    assert len(discarded.packages) == len(list(discarded.folder.glob("*/*/*/new_jobs"))) == 2
    assert finish_discard(again) == []


def put_aside_and_die(pipeline: Pipeline, moment: str) -> None:
    original, moved = discard._move, []

    def move(source: Path, target: Path) -> None:
        moved.append(source)
        if moment == ("before the first" if len(moved) == 1 else "between"):
            os._exit(9)
        original(source, target)

    discard._move = move
    if moment == "before all":
        pipeline._restore_from_snapshot = lambda *_args: os._exit(9)  # type: ignore[method-assign]
    if moment == "before the end":
        discard._readme = lambda _discarded: os._exit(9)
    put_aside(pipeline)


@pytest.mark.slow
def test_what_dlt_loaded_meanwhile_is_left_alone_by_what_is_finished_late(stuck: Pipeline, pipeline: Make) -> None:
    folder = discard._new_folder(discard.discarded_folder(Path(stuck.working_dir)))
    packages = tuple(pending_packages(Path(stuck.working_dir)))
    unfinished = discard.Discarded(folder, "shop", packages, packages[0].load_id, is_finished=False)
    discard._write_manifest(unfinished)
    stuck.load()
    state = stuck.state

    runner(stuck).run(orders(8))

    assert state["sources"]
    assert ids(stuck) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.slow
def test_a_package_without_the_state_from_before_it_is_not_put_aside(stuck: Pipeline) -> None:
    (load_id,) = stuck.list_normalized_load_packages()
    restore_folder = Path(stuck.working_dir) / "load" / "normalized" / load_id / ".restore"
    restore_folder.rename(restore_folder.with_name("gone"))

    with pytest.raises(UnknownStateError, match=load_id):
        runner(stuck, discard_pending=True).run(orders(8))
    assert stuck.has_pending_data

    runner(stuck, discard_pending=True, run_from_clean_folder=True).run(orders(8))
    assert ids(stuck) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_was_put_aside_can_be_brought_back(stuck: Pipeline, pipeline: Make) -> None:
    discarded = put_aside(stuck)
    assert discarded is not None

    again = pipeline()
    restore(again, discarded.folder.name)
    runner(again).run(orders(8))

    assert ids(again) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert discarded_before(Path(again.working_dir)) == []
    with pytest.raises(ConfigurationError, match="nothing was put aside"):
        restore(again, discarded.folder.name)


@pytest.mark.slow
def test_what_is_brought_back_is_loaded_as_its_resource_said(pipeline: Make) -> None:
    shop = pipeline()
    runner(shop).run([{"id": 1}], table_name="customers")
    items = dlt.resource([{"id": 1}, {"id": 2}, {"id": 2}], name="items", primary_key="id", write_disposition="merge")
    shop.extract(items)
    discarded = put_aside(shop)
    assert discarded is not None
    runner(shop).run([{"id": 2}], table_name="customers")

    restore(shop, discarded.folder.name)
    runner(shop).finalize()

    assert ids(shop, "items") == [1, 2]


@pytest.mark.parametrize("content", ["{", "{}", '{"packages": [{"load_id": "1.1"}]}', "[]"])
def test_what_was_put_aside_and_cannot_be_read_stands_in_nobodys_way(
    pipeline: Make, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    shop = pipeline()
    manifest = Path(f"{shop.working_dir}.discarded") / "2026-01-01T00-00-00Z" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(content, encoding="utf-8")

    runner(shop).run(orders(2))

    assert count(shop, "orders") == 2
    assert str(manifest) in caplog.text
    assert manifest.read_text(encoding="utf-8") == content


def test_nothing_is_brought_back_among_other_pending_data(stuck: Pipeline) -> None:
    discarded = put_aside(stuck)
    assert discarded is not None
    stuck.extract(orders(8))

    with pytest.raises(ConfigurationError, match="are pending, so load them or put them aside first"):
        restore(stuck, discarded.folder.name)


def test_a_folder_moves_to_another_file_system_too_and_again_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "new_jobs").mkdir(parents=True)
    (source / "new_jobs" / "orders.1.0.jsonl").write_text("{}")
    (tmp_path / "target.part" / "half").mkdir(parents=True)
    rename = Path.rename

    def other_file_system(path: Path, to: Path) -> Path:
        if path == source:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", other_file_system)
    discard._move(source, target)
    discard._move(source, target)
    assert [path.name for path in target.rglob("*")] == ["new_jobs", "orders.1.0.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target"]


# -- a clean folder ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clean_folder_with_pending_data_says_what_it_would_lose_and_how_not_to(stuck: Pipeline) -> None:
    (load_id,) = stuck.list_normalized_load_packages()

    with pytest.raises(PendingDataError) as raised:
        runner(stuck, run_from_clean_folder=True).run(orders(8))

    message = str(raised.value)
    for part in (
        load_id,
        "normalised; orders (",
        "rows in 1 file",
        "run_from_clean_folder=False",
        "discard_pending=True",
    ):
        assert part in message
    assert stuck.has_pending_data


def test_a_clean_folder_is_had_when_pending_data_may_be_put_aside(stuck: Pipeline) -> None:
    rubbish = Path(stuck.working_dir) / "rubbish"
    rubbish.touch()

    runner(stuck, run_from_clean_folder=True, discard_pending=True).run(orders(8))

    assert ids(stuck) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(discarded_before(Path(stuck.working_dir))) == 1
    assert not rubbish.exists()


@pytest.mark.slow
def test_traces_that_wait_as_files_survive_a_clean_folder(pipeline: Make) -> None:
    shop = pipeline()
    runner(shop).run(orders(3))
    trace = Path(shop.working_dir) / "traces" / "1_attempt_1_trace.json"
    trace.parent.mkdir()
    trace.write_text("{}")
    # Left by a process that was killed while the folder was dropped.
    aside = Path(shop.pipelines_dir) / ".shop.traces"
    aside.mkdir()
    (aside / "0_attempt_1_trace.json").write_text("{}")

    runner(shop, run_from_clean_folder=True).run(orders(4))

    assert sorted(path.name for path in trace.parent.iterdir()) == ["0_attempt_1_trace.json", trace.name]
    assert not aside.exists()
    assert ids(shop) == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_folder_stays_when_nothing_can_be_restored(pipeline: Make) -> None:
    shop = pipeline()
    runner(shop).run(orders(3))
    shop.set_local_state_val("mine", 1)
    before = json.dumps(shop.state["sources"])
    with failing(shop, "get_stored_state"):
        runner(shop, run_from_clean_folder=True).run(orders(4))

    again = pipeline()
    assert json.dumps(again.state["sources"]) == before
    assert again.get_local_state_val("mine") == 1
    runner(again, run_from_clean_folder=True).run(orders(4))
    assert ids(again) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_destination_with_a_relative_name_is_the_same_after_a_clean_folder_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Pipeline:
        return dlt.pipeline("shop", destination="duckdb", pipelines_dir=str(tmp_path / "pipelines"))

    runner(make()).run(orders(3))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    asked: set[str] = set()
    client = type(make().destination_client())
    original = client.get_stored_state

    def get_stored_state(self: Any, *args: Any) -> Any:
        asked.add(self.config.credentials.database)
        return original(self, *args)

    monkeypatch.setattr(client, "get_stored_state", get_stored_state)
    runner(make(), run_from_clean_folder=True).run(orders(4))

    assert ids(make()) == [1, 2, 3, 4]
    assert asked == {str(tmp_path / "shop.duckdb")}
    assert list(Path.cwd().iterdir()) == []


def test_a_folder_that_holds_the_data_itself_is_not_dropped(tmp_path: Path) -> None:
    shop = dlt.pipeline(
        "shop", destination=dlt.destinations.duckdb(":pipeline:"), pipelines_dir=str(tmp_path / "pipelines")
    )
    runner(shop).run(orders(3))

    with pytest.raises(ConfigurationError, match="the data itself is in the working directory"):
        runner(shop, run_from_clean_folder=True).run(orders(4))

    assert count(shop, "orders") == 3


def test_a_state_that_the_destination_does_not_keep_is_not_dropped(tmp_path: Path) -> None:
    loaded: list[Any] = []

    @dlt.destination
    def sink(items: Any, table: Any) -> None:
        loaded.extend(items)

    shop = dlt.pipeline("shop", destination=sink, pipelines_dir=str(tmp_path / "pipelines"))
    runner(shop, run_from_clean_folder=True).run(orders(3))

    with pytest.raises(ConfigurationError, match="does not keep the pipeline's state"):
        runner(shop, run_from_clean_folder=True).run(orders(4))
