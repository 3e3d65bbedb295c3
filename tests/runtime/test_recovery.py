"""A load that is killed is finished exactly once: nothing lost, nothing twice, nothing stuck."""

from __future__ import annotations

import importlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.common.storages import FileStorage, LoadStorage, PackageStorage
from dlt.extract.storage import ExtractStorage
from dlt.load.load import Load
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import recovery, runner
from tests.runtime.killed import dies, killed

ROWS = 100
"""Rows of the first run, in files of 40; later runs add to them."""

NOTE = (PackageStorage, "save_pending_transition")
"""What dlt does after a job has been committed: before it, nobody knows of that."""

NUMBER = dlt.sources.incremental("id", initial_value=0)


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several jobs for each table."""
    monkeypatch.setenv("DATA_WRITER__FILE_MAX_ITEMS", "40")


@pytest.fixture(params=["duckdb", pytest.param("postgres", marks=pytest.mark.slow)])
def shop(
    request: pytest.FixtureRequest, pipeline: Callable[..., Pipeline], make_database: Callable[[str], str]
) -> Callable[..., Pipeline]:
    """Make pipelines into one database of the test's own; each knows no more than a new process does."""
    if request.param == "duckdb":
        return pipeline
    return in_postgres(request, make_database)


@pytest.fixture
def postgres_shop(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> Callable[..., Pipeline]:
    return in_postgres(request, make_database)


def in_postgres(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> Callable[..., Pipeline]:
    address = make_database(f"recovery_{abs(hash(request.node.nodeid))}")

    def make(**options: Any) -> Pipeline:
        destination = dlt.destinations.postgres(address, **options)
        return dlt.pipeline("shop", pipelines_dir="pipelines", destination=destination, dataset_name="shop_data")

    return make


def orders(last: int, write: Any = "append", *, arrow: bool = False, **hints: Any) -> Any:
    """Return orders up to a number: all those that are new, or all for a table that is replaced."""
    # The ids of such rows say what is in them.
    is_whole = write == "replace" or (isinstance(write, dict) and write["strategy"] == "scd2")

    @dlt.resource(name="orders", write_disposition=write, **hints)
    def rows(number: Any = NUMBER) -> Iterator[Any]:
        numbers = range(1 if is_whole else number.last_value + 1, last + 1)
        if arrow:
            pa = pytest.importorskip("pyarrow")
            yield pa.table({"id": pa.array(numbers, pa.int64()), "name": ["?"] * len(numbers)})
        else:
            # Names that take some care to write into a statement, and to read from it.
            yield [{"id": n, "name": f"it's (\\{n}), \n", "items": [{"sku": "a"}, {"sku": "b"}]} for n in numbers]

    return rows


def ids(pipeline: Pipeline, table: str = "orders", column: str = "id") -> list[Any]:
    with pipeline.sql_client() as client:
        name = client.make_qualified_table_name(table)
        return [row[0] for row in client.execute_sql(f"SELECT {column} FROM {name} ORDER BY 1") or []]


def expect_once(pipeline: Pipeline, last: int, *, nested: bool = True) -> None:
    """Check that every order is there once, and so is each of its items, and each load; and that nothing is left."""
    assert ids(pipeline) == list(range(1, last + 1))
    if nested:
        assert len(ids(pipeline, "orders__items", "sku")) == 2 * last
    loads = ids(pipeline, "_dlt_loads", "load_id")
    assert len(loads) == len(set(loads))
    assert not pipeline.has_pending_data


def ends_with(ending: str) -> Callable[..., bool]:
    return lambda self, load_id, name, *args: name.endswith(ending)


def starts_with(beginning: str) -> Callable[..., bool]:
    return lambda self, load_id, name, *args: name.startswith(beginning)


WAYS: dict[str, dict[str, Any]] = {
    "append": {},
    "merge": {"write": "merge", "primary_key": "id"},
    "merge without keys": {"write": "merge"},
    "upsert": {"write": {"disposition": "merge", "strategy": "upsert"}, "primary_key": "id"},
    "scd2": {"write": {"disposition": "merge", "strategy": "scd2"}},
    "replace": {"write": "replace"},
}


@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.slow) if WAYS[way] else way for way in WAYS])
def test_a_job_that_was_committed_and_not_noted_is_not_loaded_twice(
    shop: Callable[..., Pipeline], way: str, caplog: pytest.LogCaptureFixture
) -> None:
    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, *NOTE, after=False, when=starts_with("orders"))
        runner(shop()).run(orders(ROWS, **WAYS[way]))

    killed(run)

    with caplog.at_level(logging.INFO, logger="prefect_dlt"):
        runs = runner(again := shop())
        runs.run(orders(ROWS + 30, **WAYS[way]))

    expect_once(again, ROWS + 30)
    assert runs.record is not None
    (recovered,) = runs.record.recovered
    # Rows of an upsert and of scd2 can be told from each other by what they say only, and two may say the same.
    done = recovered.taken_back if way in ("upsert", "scd2") else recovered.loaded
    assert any(name.startswith("orders") for name in done)
    assert recovered.text in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("way", ["merge without keys", "replace"])
@pytest.mark.parametrize("is_followed_up", [True, False])
def test_what_follows_a_job_is_done_once(
    postgres_shop: Callable[..., Pipeline], way: str, is_followed_up: bool
) -> None:
    """PostgreSQL swaps a staged table for the one it replaces: done twice, that leaves the emptied one."""

    def run(patch: pytest.MonkeyPatch) -> None:
        if is_followed_up:
            # The job that merges exists, and the last one that it follows is not completed yet.
            dies(patch, PackageStorage, "import_job")
        else:
            dies(patch, *NOTE, after=False, when=ends_with(".sql"))
        runner(postgres_shop(replace_strategy="staging-optimized")).run(orders(ROWS, **WAYS[way]))

    killed(run)

    again = postgres_shop(replace_strategy="staging-optimized")
    runner(again).finalize()
    expect_once(again, ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("write", ["append", "merge", "replace"])
def test_rows_without_ids_are_told_by_their_load(
    shop: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    monkeypatch.setenv("NORMALIZE__PARQUET_NORMALIZER__ADD_DLT_LOAD_ID", "true")

    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, *NOTE, after=False, when=starts_with("orders"))
        runner(shop()).run(orders(ROWS, write, arrow=True))

    killed(run)

    runner(again := shop()).run(orders(ROWS + 30, write, arrow=True))
    expect_once(again, ROWS + 30, nested=False)


@pytest.mark.parametrize(
    ("write", "job"), [("append", ".parquet"), pytest.param("merge", ".sql", marks=pytest.mark.slow)]
)
def test_rows_that_cannot_be_told_are_named(
    pipeline: Callable[..., Pipeline], caplog: pytest.LogCaptureFixture, write: str, job: str
) -> None:
    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, *NOTE, after=False, when=lambda _, __, name, *___: name.startswith("orders") and name.endswith(job))
        runner(pipeline()).run(orders(ROWS, write, arrow=True))

    killed(run)

    runs = runner(pipeline())
    runs.finalize()
    assert runs.record is not None
    assert runs.record.recovered[0].unsure == {"orders"}
    (warning,) = [record for record in caplog.records if record.name == "prefect_dlt" and record.levelname == "WARNING"]
    assert "orders" in warning.getMessage()


@pytest.mark.slow
@pytest.mark.parametrize("job", ["orders", "orders__items"])
def test_rows_of_earlier_loads_with_the_same_ids_are_not_taken_for_those_of_this_one(
    pipeline: Callable[..., Pipeline], job: str
) -> None:
    """Ids that the data brings along are given to nested rows, too, and those do not say which load they are of."""
    rows = [{"id": 1, "_dlt_id": "brought along", "items": [{"sku": "a"}, {"sku": "b"}]}]
    runner(pipeline()).run(rows, table_name="orders")

    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, PackageStorage, "start_job", when=starts_with(f"{job}."))
        runner(pipeline()).run(rows, table_name="orders")

    killed(run)

    runs = runner(again := pipeline())
    runs.finalize()
    assert ids(again) == [1, 1]
    assert ids(again, "orders__items", "sku") == ["a", "a", "b", "b"]


@pytest.mark.slow
def test_rows_of_earlier_loads_with_the_same_ids_are_not_taken_back(pipeline: Callable[..., Pipeline]) -> None:
    rows = [{"id": 1, "_dlt_id": "brought along", "items": [{"sku": "a"}, {"sku": "b"}]}]
    runner(pipeline()).run(rows, table_name="orders", write_disposition="merge")

    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, PackageStorage, "start_job", when=ends_with(".sql"))
        runner(pipeline()).run(rows, table_name="orders", write_disposition="merge")

    killed(run)

    runner(again := pipeline()).finalize()
    assert ids(again) == [1, 1]
    assert ids(again, "orders__items", "sku") == ["a", "a", "b", "b"]


@pytest.mark.slow
def test_arrow_tables_with_load_ids_of_another_place_are_named(pipeline: Callable[..., Pipeline]) -> None:
    pa = pytest.importorskip("pyarrow")
    copied = pa.table({"id": [1, 2], "_dlt_load_id": ["1700000000.1", "1700000000.1"]})

    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, *NOTE, after=False, when=starts_with("orders"))
        runner(pipeline()).run(copied, table_name="orders")

    killed(run)

    runs = runner(pipeline())
    runs.finalize()
    assert runs.record is not None
    assert [found.unsure for found in runs.record.recovered] == [{"orders"}]


@pytest.mark.slow
def test_files_are_written_over(tmp_path: Path) -> None:
    def shop() -> Pipeline:
        destination = dlt.destinations.filesystem(str(tmp_path / "lake"))
        return dlt.pipeline("shop", pipelines_dir="pipelines", destination=destination, dataset_name="shop_data")

    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, *NOTE, after=False, when=starts_with("orders"))
        runner(shop()).run(orders(ROWS))

    killed(run)

    runs = runner(again := shop())
    runs.run(orders(ROWS + 30))
    assert ids(again) == list(range(1, ROWS + 31))
    assert runs.record is not None
    assert not runs.record.recovered


@pytest.mark.slow
def test_a_package_that_is_stuck_already_is_healed(postgres_shop: Callable[..., Pipeline]) -> None:
    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, *NOTE, after=False, when=starts_with("orders__items"))
        postgres_shop().run(orders(ROWS))

    killed(run)
    for _ in range(2):
        with pytest.raises(PipelineStepFailed, match="duplicate key"):
            postgres_shop().load()

    runner(again := postgres_shop()).run(orders(ROWS + 30))
    expect_once(again, ROWS + 30)


@pytest.mark.slow
def test_a_commit_that_comes_late_is_no_reason_to_fail(
    postgres_shop: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may commit for a client that is dead, after somebody else has looked."""

    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, *NOTE, after=False, when=starts_with("orders"))
        runner(postgres_shop()).run(orders(ROWS))

    killed(run)
    found: list[Any] = []

    def sees_nothing_at_first(pipeline: Pipeline) -> list[Any]:
        found.append(recovery.recover(pipeline) if found else [])
        return found[-1]

    # The package's `runner` is the function.
    monkeypatch.setattr(importlib.import_module("prefect_dlt.runner"), "recover", sees_nothing_at_first)
    runner(again := postgres_shop()).finalize()

    expect_once(again, ROWS)
    assert found[0] == []
    assert found[1][0].loaded


@pytest.mark.slow
def test_a_commit_that_is_under_way_is_waited_for(postgres_shop: Callable[..., Pipeline]) -> None:
    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, *NOTE, after=False, when=starts_with("orders."))
        runner(postgres_shop(create_indexes=False)).run(orders(ROWS))

    killed(run)
    runs = runner(again := postgres_shop(create_indexes=False))
    with again.sql_client() as server, again.sql_client() as observer, ThreadPoolExecutor() as threads:
        # The server has the rows of the job that was cut, and is about to commit them; no index would tell of them.
        name = server.make_qualified_table_name("orders")
        server.execute_sql(f"CREATE TEMPORARY TABLE committed AS SELECT * FROM {name}")
        server.execute_sql(f"DELETE FROM {name}")
        with server.begin_transaction():
            server.execute_sql(f"INSERT INTO {name} SELECT * FROM committed")
            finished = threads.submit(runs.finalize)
            while not observer.execute_sql("SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'ShareLock'"):
                assert not finished.done()
        finished.result(timeout=60)

    expect_once(again, ROWS)
    assert runs.record is not None
    (recovered,) = runs.record.recovered
    assert any(name.startswith("orders.") for name in recovered.loaded)


def test_rows_of_a_job_that_got_half_way_are_taken_back(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, *NOTE, after=False, when=starts_with("orders"))
        runner(pipeline()).run(orders(ROWS))

    killed(run)
    # As where a job is no transaction.
    monkeypatch.setattr(recovery, "ATOMIC", ())
    with (half := pipeline()).sql_client() as client:
        for table in ("orders", "orders__items"):
            name = client.make_qualified_table_name(table)
            client.execute_sql(f"DELETE FROM {name} WHERE ascii(_dlt_id) % 2 = 0")

    runner(half).finalize()
    expect_once(half, ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_recovery_that_is_killed_as_well_is_made_up_for(pipeline: Callable[..., Pipeline], after: bool) -> None:
    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, *NOTE, after=True, when=starts_with("orders"))
        runner(pipeline()).run(orders(ROWS, **WAYS["upsert"]))

    def recover(patch: pytest.MonkeyPatch) -> None:
        dies(patch, recovery.LoadedRows, "delete_all", after=after)
        runner(pipeline()).finalize()

    killed(run)
    killed(recover)

    runner(again := pipeline()).finalize()
    expect_once(again, ROWS)


MOMENTS: dict[str, tuple[type, str, bool]] = {
    "the package is extracted, the state not saved": (ExtractStorage, "commit_new_load_package", True),
    "the schema is saved, the state not": (Pipeline, "_save_state", False),
    "normalize is about to begin": (FileStorage, "create_folder", True),
    "normalize has begun": (LoadStorage, "import_extracted_package", True),
    "the package is normalised and still extracted": (LoadStorage, "commit_new_load_package", True),
    "the tables are made, and that is not noted": (LoadStorage, "commit_schema_update", False),
    "jobs are started": (PackageStorage, "start_job", True),
    "a job is noted as done": (*NOTE, True),
    "a job is completed": (PackageStorage, "complete_job", True),
    "all jobs are completed": (Load, "complete_package", False),
    "the load is in its table": (PackageStorage, "complete_loading_package", False),
    "the package is completed and not moved": (PackageStorage, "complete_loading_package", True),
    "the package is moved": (LoadStorage, "complete_load_package", True),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_whenever_a_run_is_killed_the_next_one_loads_everything_once(
    pipeline: Callable[..., Pipeline], moment: str
) -> None:
    owner, name, after = MOMENTS[moment]

    def run(patch: pytest.MonkeyPatch) -> None:
        def is_it(_: Any, *args: Any, **__: Any) -> bool:
            if owner is FileStorage:
                return args[0] == LoadStorage.NEW_PACKAGES_FOLDER
            # A state without a schema was written before.
            return owner is not Pipeline or bool(args[0].get("default_schema_name"))

        dies(patch, owner, name, after=after, when=is_it)
        runner(pipeline()).run(orders(ROWS))

    killed(run)

    runner(again := pipeline()).run(orders(ROWS + 30))
    expect_once(again, ROWS + 30)


@pytest.mark.slow
def test_packages_of_one_extract_are_kept_together(pipeline: Callable[..., Pipeline]) -> None:
    def sources(last: int) -> list[Any]:
        @dlt.resource(name="visits")
        def visits(number: Any = NUMBER) -> Iterator[Any]:
            yield [{"id": n} for n in range(number.last_value + 1, last + 1)]

        shop, web = (dlt.source(lambda each=each: each, name=each.name)() for each in (orders(last), visits))
        return [shop, web]

    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, ExtractStorage, "commit_new_load_package")
        runner(pipeline()).run(sources(ROWS))

    runner(pipeline()).run(sources(10))
    killed(run)

    runner(again := pipeline()).run(sources(ROWS + 30))
    expect_once(again, ROWS + 30)
    assert ids(again, "visits") == list(range(1, ROWS + 31))


def test_a_first_extract_that_nobody_was_told_of_is_loaded(pipeline: Callable[..., Pipeline]) -> None:
    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, ExtractStorage, "commit_new_load_package")
        runner(pipeline()).run(orders(ROWS))

    killed(run)

    runner(again := pipeline()).finalize()
    expect_once(again, ROWS)


@pytest.mark.slow
def test_an_extract_that_did_not_end_is_begun_anew(pipeline: Callable[..., Pipeline]) -> None:
    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, ExtractStorage, "close_writers", after=False)
        runner(pipeline()).run(orders(ROWS))

    killed(run)

    runner(again := pipeline()).run(orders(ROWS))
    expect_once(again, ROWS)


@pytest.mark.slow
def test_hints_of_a_table_that_is_new_are_kept(pipeline: Callable[..., Pipeline]) -> None:
    visits = dlt.resource([{"id": 1}] * 3, name="visits", primary_key="id", write_disposition="merge")

    def run(patch: pytest.MonkeyPatch) -> None:
        dies(patch, ExtractStorage, "commit_new_load_package")
        runner(pipeline()).run(visits)

    runner(pipeline()).run(orders(ROWS))
    killed(run)

    runner(again := pipeline()).finalize()
    assert ids(again, "visits") == [1]


@pytest.mark.slow
@pytest.mark.parametrize("last", [ROWS, ROWS + 30])
def test_a_package_that_is_deleted_in_part_is_none(pipeline: Callable[..., Pipeline], last: int) -> None:
    """dlt deletes a package when it is normalised, or has nothing in it."""
    runner(pipeline()).run(orders(ROWS))

    def run(patch: pytest.MonkeyPatch) -> None:
        def begin(packages: PackageStorage, load_id: str, **_: Any) -> None:
            if packages.initial_state == "extracted":
                packages.storage.delete(f"{load_id}/{PackageStorage.SCHEMA_FILE_NAME}")
                os.kill(os.getpid(), signal.SIGKILL)

        patch.setattr(PackageStorage, "delete_package", begin)
        runner(pipeline()).run(orders(last))

    killed(run)

    runner(again := pipeline()).run(orders(last))
    expect_once(again, last)


@pytest.mark.parametrize("is_first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_schema_that_was_not_written_to_its_end_is_none(pipeline: Callable[..., Pipeline], is_first: bool) -> None:
    if not is_first:
        runner(pipeline()).run(orders(ROWS))
    # What dlt's atomic write leaves behind, in the folder of which it takes every file for a schema.
    schemas = Path(pipeline().working_dir) / "schemas"
    schemas.mkdir(exist_ok=True)
    (schemas / "1769e2eb1648ff95").touch()

    runner(again := pipeline()).run(orders(ROWS))

    expect_once(again, ROWS)
    assert [path.name for path in schemas.iterdir() if not path.name.endswith(".schema.json")] == []


@pytest.mark.parametrize(
    "missing",
    [
        "load/new",
        *(pytest.param(folder, marks=pytest.mark.slow) for folder in ("load/normalized", "load/loaded")),
        "normalize/extracted",
    ],
)
def test_folders_that_were_not_made_yet_are_made(pipeline: Callable[..., Pipeline], missing: str) -> None:
    """dlt makes them one after the other, and takes the first one for all."""
    shop_pipeline = pipeline()
    folder = Path(shop_pipeline.working_dir) / missing
    if missing.startswith("load"):
        shop_pipeline.extract(orders(ROWS))
    folder.parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / ".version").write_text("1.0.0")

    runner(again := pipeline()).run(orders(ROWS))

    expect_once(again, ROWS)
