"""A trace is stored after every attempt, in tables of one shape and without secrets, or kept as a file until then."""

import json
import logging
import multiprocessing
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pytest
from dlt.destinations import duckdb as duckdb_destination
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import CallbackCollector, runner, trace_files, traces
from prefect_dlt.errors import FailedJobsError
from prefect_dlt.retry import fixed_attempts
from prefect_dlt.trace_tables import COLUMNS
from tests.docs.test_pages import blocks
from tests.runtime.sources import shop

MakePipeline = Callable[..., Pipeline]

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"shop_trace__{name}" if name else "shop_trace" for name in COLUMNS]
TWICE = {"retry_policy": fixed_attempts(2, wait=0), "retry_pipeline_steps": ["extract", "normalize", "load"]}


def rows(query: str, database: str = "warehouse.duckdb") -> list[tuple[Any, ...]]:
    with duckdb.connect(database) as connection:
        return connection.sql(query).fetchall()


def attempts(database: str = "warehouse.duckdb", dataset: str = "shop_data") -> list[tuple[Any, ...]]:
    return rows(f"SELECT attempt, phase, outcome FROM {dataset}.shop_trace ORDER BY started_at, attempt", database)


def kept(pipeline: Pipeline) -> list[Path]:
    return sorted((Path(pipeline.working_dir) / "traces").glob("*"))


def ops_into(destination: Any, name: str = "ops") -> Pipeline:
    """Return a pipeline that stores traces elsewhere than the data."""
    ops = dlt.pipeline(name, destination=destination, dataset_name="traces", pipelines_dir="ops_pipelines")
    ops.deactivate()
    return ops


def into_nothing(name: str, **outcome: float) -> Pipeline:
    """Return a pipeline whose jobs do nothing, by default well."""
    nothing = dlt.destinations.dummy(**{"completed_prob": 1.0, **outcome})
    return dlt.pipeline(name, destination=nothing, dataset_name="shop_data", pipelines_dir="pipelines")


def failing_source(message: str = "the source is down", times: int = 99) -> Any:
    left = [times]

    @dlt.resource
    def orders() -> Iterator[dict[str, int]]:
        yield {"id": 1}
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionError(message)

    return orders


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [each for each in caplog.records if each.name == "prefect_dlt" and each.levelno >= logging.WARNING]
    return [each.getMessage() for each in records if "trace" in each.getMessage().lower()]


@contextmanager
def locked(database: str) -> Iterator[None]:
    """Have another process write to a DuckDB file meanwhile."""
    code = f"import duckdb; c = duckdb.connect({database!r}); print('open', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    try:
        yield
    finally:
        process.communicate("\n")


# -- the shape ---------------------------------------------------------------------------------------------------------


def shape(database: str, dataset: str = "shop_data") -> dict[str, dict[str, tuple[str, bool]]]:
    found: dict[str, dict[str, tuple[str, bool]]] = {}
    for table, column, kind, nullable in rows(
        "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns"
        f" WHERE table_schema = '{dataset}' AND table_name LIKE 'shop_trace%'",
        database,
    ):
        if not column.startswith("_dlt"):
            found.setdefault(table, {})[column] = kind, nullable == "YES"
    return found


@pytest.mark.slow
def test_very_different_sources_have_the_same_tables_and_columns(pipeline: MakePipeline) -> None:
    """The first attempt ever is one that fails before its first step."""
    types = {"text": "VARCHAR", "bigint": "BIGINT", "double": "DOUBLE", "timestamp": "TIMESTAMP WITH TIME ZONE"}
    declared = {
        name: {column: (types[kind], nullable) for column, (kind, nullable) in columns.items()}
        for name, columns in zip(NAMES, COLUMNS.values(), strict=True)
    }

    def cannot_be_built() -> Any:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        runner(pipeline(), store_trace_info=True).run(cannot_be_built)
    assert shape("warehouse.duckdb") == declared
    assert rows("SELECT outcome, error_type, error_message FROM shop_data.shop_trace") == [
        ("failed", "ConnectionError", None)
    ]

    runner(pipeline(), store_trace_info=True).run(shop())
    assert shape("warehouse.duckdb") == declared
    counts = [rows(f"SELECT count(*) > 0 FROM shop_data.{name}") for name in NAMES]
    assert counts == [[(True,)]] * 4
    tables = {table for (table,) in rows("SELECT table_name FROM information_schema.tables")}
    assert {table for table in tables if "trace" in table} == set(NAMES)


def test_the_page_has_every_column_with_its_type() -> None:
    page = (ROOT / "docs" / "reference" / "traces.md").read_text(encoding="utf-8")
    documented = {
        name.strip("_"): {
            column: (kind, null == "yes")
            for column, kind, null in re.findall(r"^\| `(\w+)` \| (\w+) \| (yes|no) \| \S", text, re.MULTILINE)
        }
        for name, text in re.findall(r"^## `<pipeline>_trace(\w*)`$(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL)
    }
    assert documented == COLUMNS


def test_the_query_in_the_how_to_runs(pipeline: MakePipeline) -> None:
    (query,) = blocks(ROOT / "docs" / "how-to" / "find-out-why-a-run-failed.md", "sql")
    shop_loads = pipeline("shop_loads")
    shop_loads.dataset_name = "shop_loads"
    with pytest.raises(PipelineStepFailed):
        runner(shop_loads, store_trace_info=True).run(failing_source())

    (row,) = rows(query)

    assert row[1:] == (1, "run", "failed", "extract", "ConnectionError", "the source is down", None, None, None)


def test_the_rows_tell_what_an_attempt_did(pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "2c9f2a1e-0000-4000-8000-000000000000")
    run = runner(pipeline(), store_trace_info=True)

    info = run.run(shop())

    assert info is not None
    assert run.record is not None
    (load_id,) = info.loads_ids
    told = rows(
        "SELECT run_id, pipeline_name, phase, outcome, error_type, failed_step, destination_type, dataset_name,"
        " row_count, jobs_loaded, jobs_failed FROM shop_data.shop_trace"
    )
    assert told == [(str(run.record.id), "shop", "run", "completed", None, None, "duckdb", "shop_data", 11, 4, 0)]
    steps = rows("SELECT position, step, state, load_ids FROM shop_data.shop_trace__steps ORDER BY position")
    assert steps == [
        (n, step, "completed", load_id) for n, step in enumerate(["extract", "normalize", "load", "run"], 1)
    ]
    assert rows("SELECT step, name, row_count, file_count FROM shop_data.shop_trace__tables ORDER BY ALL") == [
        ("extract", "customers", 3, None),
        ("extract", "greetings", 3, None),
        ("extract", "orders", 2, None),
        ("normalize", "customers", 3, 1),
        ("normalize", "greetings", 3, 1),
        ("normalize", "orders", 2, 1),
        ("normalize", "orders__items", 3, 1),
    ]
    jobs = rows("SELECT load_id, table_name, state, file_bytes > 0, seconds > 0 FROM shop_data.shop_trace__jobs")
    assert sorted(jobs) == [
        (load_id, table, "loaded", True, True) for table in ("customers", "greetings", "orders", "orders__items")
    ]


@pytest.mark.slow
def test_each_attempt_has_its_own_steps_and_number(pipeline: MakePipeline) -> None:
    """dlt adds what normalize() and load() do on their own to the trace before, that of an earlier run as well."""
    left = [OSError("disk full"), OSError("disk full")]

    @dlt.destination(batch_size=0, name="sink", loader_parallelism_strategy="sequential")
    def sink(_items: Any, table: Any) -> None:
        if table["name"] == "orders" and left:
            raise left.pop()

    ops = ops_into(dlt.destinations.duckdb("ops.duckdb"))
    once = dlt.pipeline("shop", destination=sink, dataset_name="shop_data", pipelines_dir="pipelines")
    run = runner(once, store_trace_info=ops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOAD__RAISE_ON_MAX_RETRIES", "1")
        with pytest.raises(PipelineStepFailed):
            run.run(shop())
        runner(once, store_trace_info=ops, **TWICE).run(shop())

    told = rows(
        "SELECT attempt, phase, outcome, (SELECT list(s.step || ' ' || s.state ORDER BY s.position)"
        " FROM traces.shop_trace__steps s WHERE (s.transaction_id, s.attempt) = (t.transaction_id, t.attempt)),"
        " jobs_loaded, (SELECT count(*) FROM traces.shop_trace__jobs j WHERE j.state = 'loaded'"
        " AND (j.transaction_id, j.attempt) = (t.transaction_id, t.attempt))"
        " FROM traces.shop_trace t ORDER BY started_at",
        "ops.duckdb",
    )
    assert [row[:4] for row in told] == [
        (1, "run", "failed", ["extract completed", "normalize completed", "load failed", "run failed"]),
        (1, "pending", "failed", ["load failed"]),
        (2, "pending", "completed", ["load completed"]),
        (3, "run", "completed", ["extract completed", "normalize completed", "load completed", "run completed"]),
    ]
    # What an attempt had loaded is not told again by the next.
    assert [row[4:] for row in told] == [(row[4], row[4]) for row in told]
    assert sum(row[4] for row in told) == 6
    keys = rows("SELECT count(*), count(DISTINCT (transaction_id, attempt)) FROM traces.shop_trace", "ops.duckdb")
    assert keys == [(4, 4)]
    assert rows("SELECT count(DISTINCT run_id) FROM traces.shop_trace", "ops.duckdb") == [(2,)]
    failed = rows(
        "SELECT DISTINCT failed_step, error_type, error_message FROM traces.shop_trace WHERE outcome = 'failed'",
        "ops.duckdb",
    )
    assert [row[0] for row in failed] == ["load"]
    assert "disk full" in failed[0][2]
    messages = rows("SELECT message FROM traces.shop_trace__jobs WHERE state = 'failed'", "ops.duckdb")
    assert len(messages) == 2
    assert all("disk full" in message for (message,) in messages)


def test_a_load_that_went_on_without_a_file_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAD__RAISE_ON_FAILED_JOBS", "false")
    ops = ops_into(dlt.destinations.duckdb("ops.duckdb"))

    with pytest.raises(FailedJobsError):
        runner(into_nothing("shop", completed_prob=0.0, fail_prob=1.0), store_trace_info=ops).run(
            [1], table_name="orders"
        )

    assert rows("SELECT outcome, jobs_failed FROM traces.shop_trace", "ops.duckdb") == [("failed", 1)]
    assert rows("SELECT state, message <> '' FROM traces.shop_trace__jobs", "ops.duckdb") == [("failed", True)]


def test_no_secret_and_no_config_value_is_stored(
    pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("API_TOKEN", "K7fQ92mZpL0vB")
    monkeypatch.setenv("REGION", "atlantis-north")

    @dlt.resource
    def orders(api_token: str = dlt.secrets.value, region: str = dlt.config.value) -> Iterator[str]:
        yield region[:0]
        raise ConnectionError(f"{api_token} was refused by postgresql://me:hunter2@db")

    with pytest.raises(PipelineStepFailed):
        runner(pipeline(), store_trace_info=True).run(orders)
    with locked("ops.duckdb"), pytest.raises(PipelineStepFailed):
        runner(pipeline(), store_trace_info=ops_into(dlt.destinations.duckdb("ops.duckdb"))).run(orders)

    (path,) = kept(pipeline())
    stored = "".join(str(rows(f"SELECT * FROM shop_data.{name}")) for name in NAMES)
    for text in (stored, path.read_text(encoding="utf-8"), str(path), caplog.text):
        assert not [secret for secret in ("K7fQ92mZpL0vB", "hunter2", "atlantis") if secret in text]
    assert "*** was refused by postgresql://me:***@db" in stored


def test_a_long_list_is_cut_and_counted(pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_dlt.trace_tables.MOST_ROWS", 2)

    runner(pipeline(), store_trace_info=True).run(shop())

    assert rows("SELECT count(*) FROM shop_data.shop_trace__jobs") == [(2,)]
    assert rows("SELECT jobs_loaded FROM shop_data.shop_trace") == [(4,)]


# -- where they are stored, and what else that touches -----------------------------------------------------------------


@pytest.mark.slow
def test_storing_leaves_everything_of_the_users_as_it_was(pipeline: MakePipeline) -> None:
    class Counting(CallbackCollector):
        starts = 0

        def _start(self, step: str) -> None:
            Counting.starts += 1

        def before_load(self, pipeline: Any, trace: Any) -> None:
            assert pipeline.pipeline_name == "shop"

    shop_pipeline = pipeline(progress=Counting())
    ops = ops_into(dlt.destinations.duckdb("ops.duckdb"))
    ops.collector = Counting()
    ops.extract([{"id": 1}], table_name="other")
    pending = ops.list_extracted_load_packages()
    shop_pipeline.activate()
    runner(shop_pipeline).run(shop())
    Counting.starts = 0
    runner(shop_pipeline).run(shop())
    plain, Counting.starts = Counting.starts, 0

    runner(shop_pipeline, store_trace_info=ops).run(shop())

    assert Counting.starts == plain
    assert dlt.current.pipeline() is shop_pipeline
    assert [step.step for step in shop_pipeline.last_trace.steps] == ["extract", "normalize", "load", "run"]
    assert list(shop_pipeline.schemas) == ["shop"]
    assert ops.list_extracted_load_packages() == pending
    assert attempts("ops.duckdb", "traces") == [(1, "run", "completed")]
    assert kept(shop_pipeline) == []


def test_no_pipeline_is_active_afterwards_when_none_was(pipeline: MakePipeline) -> None:
    shop_pipeline = pipeline()
    shop_pipeline.deactivate()

    def cannot_be_built() -> Any:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        runner(shop_pipeline, store_trace_info=True).run(cannot_be_built)

    assert not shop_pipeline.is_active
    assert not dlt.common.configuration.container.Container()[dlt.common.pipeline.PipelineContext].is_active()


def test_the_destination_is_found_where_that_of_the_pipeline_is(
    monkeypatch: pytest.MonkeyPatch, make_database: Callable[[str], str]
) -> None:
    """Configured under the pipeline's name, with a layout of dataset names, and given no earlier than to run()."""
    monkeypatch.setenv("SHOP__DESTINATION__POSTGRES__CREDENTIALS", make_database("traces_configured"))
    monkeypatch.setenv("DATASET_NAME_LAYOUT", "test_%s")
    shop_pipeline = dlt.pipeline("shop", pipelines_dir="pipelines")

    runner(shop_pipeline, store_trace_info=True).run(shop(), destination="postgres", dataset_name="sales")

    with shop_pipeline.sql_client() as client:
        assert client.execute_sql("SELECT dataset_name, outcome FROM test_sales.shop_trace") == [
            ("test_sales", "completed")
        ]


def test_the_staging_of_a_pipeline_is_that_of_its_traces(tmp_path: Path) -> None:
    staged = dlt.pipeline(
        "staged",
        destination=dlt.destinations.redshift("redshift://loader:x@localhost/shop"),
        staging=dlt.destinations.filesystem(str(tmp_path / "staging")),
        pipelines_dir="pipelines",
    )

    store = traces.Traces(staged, store=True).own_pipeline()

    assert store.staging is not None
    assert store.staging.config_params == staged.staging.config_params


@pytest.mark.slow
def test_pipelines_in_threads_share_a_store(pipeline: MakePipeline) -> None:
    ops = ops_into(dlt.destinations.duckdb("ops.duckdb"))

    def load(name: str) -> None:
        own = dlt.pipeline(
            name, destination=dlt.destinations.dummy(completed_prob=1.0), dataset_name=name, pipelines_dir="pipelines"
        )
        runner(own, store_trace_info=ops).run([{"id": 1}], table_name="orders")

    threads = [threading.Thread(target=load, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for name in ("one", "two", "three"):
        assert rows(f"SELECT outcome FROM traces.{name}_trace", "ops.duckdb") == [("completed",)]


# -- when that fails ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_cannot_be_stored_is_kept_with_one_warning_and_stored_later(
    pipeline: MakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    ops = ops_into(dlt.destinations.duckdb("ops.duckdb"))
    run = runner(pipeline(), store_trace_info=ops, **TWICE)

    with locked("ops.duckdb"), pytest.raises(PipelineStepFailed):
        run.run(failing_source())

    first, second = kept(run.pipeline)
    assert run.record is not None
    assert [path.name.partition("_")[2] for path in (first, second)] in (
        ["attempt_1_trace.json", "attempt_2_trace.json"],
        ["attempt_2_trace.json", "attempt_1_trace.json"],
    )
    assert first.stat().st_mode & 0o777 == 0o600
    assert json.loads(first.read_text(encoding="utf-8"))["outcome"] == "failed"
    (warning,) = warnings(caplog)
    assert str(run.pipeline.working_dir) in warning
    assert "_attempt_1_trace.json" in warning
    assert "lock" in warning
    assert "Traceback" not in warning
    assert "\n" not in warning

    runner(pipeline(), store_trace_info=ops).run(shop())

    assert attempts("ops.duckdb", "traces") == [(1, "run", "failed"), (2, "run", "failed"), (1, "run", "completed")]
    assert kept(run.pipeline) == []


@pytest.mark.slow
def test_a_postgresql_that_comes_back_gets_the_traces_that_it_missed(
    pipeline: MakePipeline, make_database: Callable[[str], str]
) -> None:
    address = make_database("traces_back")
    down = ops_into(dlt.destinations.postgres(address.replace("host=", "host=/nowhere")))
    runner(pipeline(), store_trace_info=down).run(shop())
    assert len(kept(pipeline())) == 1

    ops = ops_into(dlt.destinations.postgres(address))
    runner(pipeline(), store_trace_info=ops).run(shop())

    with ops.sql_client() as client:
        found = client.execute_sql(
            "SELECT DISTINCT s.state FROM shop_trace JOIN shop_trace__steps s USING (transaction_id)"
        )
        assert found == [("completed",)]
        assert client.execute_sql("SELECT count(*), count(DISTINCT transaction_id) FROM shop_trace") == [(2, 2)]
    assert kept(pipeline()) == []


@pytest.mark.slow
def test_a_file_of_what_is_stored_already_is_stored_once(pipeline: MakePipeline) -> None:
    """As after a process that was killed when a part or all of it was stored, and before its file was removed."""
    with locked("ops.duckdb"):
        ops = ops_into(dlt.destinations.duckdb("ops.duckdb"))
        runner(pipeline(), store_trace_info=ops).run(shop())
    (path,) = kept(pipeline())
    content = path.read_text(encoding="utf-8")
    runner(pipeline(), store_trace_info=ops).run(shop())
    rows("DELETE FROM traces.shop_trace WHERE true RETURNING 1", "ops.duckdb")
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")

    runner(pipeline(), store_trace_info=ops).run(shop())

    key = json.loads(content)
    for name, count in zip(NAMES, (1, 4, 7, 4), strict=True):
        found = rows(
            f"SELECT count(*) FROM traces.{name} WHERE transaction_id = '{key['transaction_id']}'", "ops.duckdb"
        )
        assert found == [(count,)], name


@pytest.mark.slow
@pytest.mark.parametrize("step", ["extract", "normalize"])
def test_a_process_that_died_while_it_stored_blocks_nothing(pipeline: MakePipeline, step: str) -> None:
    """The trace pipeline has a package then, and it can be one that is never going to load."""
    runner(pipeline(), store_trace_info=True).run(shop())
    store = traces.Traces(pipeline(), store=True).own_pipeline()
    store.extract([{"transaction_id": "half"}], table_name="shop_trace", schema=store.default_schema)
    if step == "normalize":
        store.normalize()
    store.deactivate()

    runner(pipeline(), store_trace_info=True).run(shop())

    assert attempts() == [(1, "run", "completed")] * 2
    assert not traces.Traces(pipeline(), store=True).own_pipeline().has_pending_data


def test_the_log_of_a_run_is_about_its_data_and_not_about_storing_its_trace(
    pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RUNTIME__LOG_LEVEL", "INFO")
    shop, of_dlt = pipeline(), logging.getLogger("dlt")
    monkeypatch.setattr(of_dlt, "handlers", [caplog.handler])

    with caplog.at_level(logging.INFO, "dlt"):
        runner(shop, store_trace_info=True).run([{"id": 1}], table_name="orders")
        of_dlt.info("Heard again")

    assert [line for line in caplog.messages if "table orders" in line.lower()]
    assert not [line for line in caplog.messages if "trace" in line]
    assert caplog.messages[-1] == "Heard again"


@pytest.mark.slow
def test_files_that_cannot_be_read_are_set_aside(pipeline: MakePipeline, caplog: pytest.LogCaptureFixture) -> None:
    with locked("ops.duckdb"):
        ops = ops_into(dlt.destinations.duckdb("ops.duckdb"))
        runner(pipeline(), store_trace_info=ops).run(shop())
    (good,) = kept(pipeline())
    content = json.loads(good.read_text(encoding="utf-8"))
    broken = {
        "half": json.dumps(content)[:100],
        "binary": "\udcff",
        "list": "[1]",
        "no_steps": json.dumps({**content, "steps": None}),
        "step": json.dumps({**content, "steps": ["extract"]}),
        "number": json.dumps({**content, "attempt": "one"}),
        "when": json.dumps({**content, "started_at": "yesterday"}),
        "flag": json.dumps({**content, "row_count": True}),
    }
    for name, text in broken.items():
        (good.parent / f"{name}_attempt_1_trace.json").write_text(text, "utf-8", "surrogateescape")
    caplog.clear()

    runner(pipeline(), store_trace_info=ops).run(shop())

    assert rows("SELECT count(*) FROM traces.shop_trace", "ops.duckdb") == [(2,)]
    aside = [path.name for path in kept(pipeline())]
    assert aside == sorted(f"{name}_attempt_1_trace.json.unreadable" for name in broken)
    assert len(warnings(caplog)) == len(broken)


@pytest.mark.slow
def test_a_store_that_is_gone_for_good_does_not_fill_the_disk(
    pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_files, "MOST_FILES", 3)
    folder = trace_files.folder_of(pipeline().working_dir)

    for number in range(5):
        trace_files.write(folder, {"transaction_id": f"t{number}", "attempt": 1})

    assert [path.name[:2] for path in kept(pipeline())] == ["t2", "t3", "t4"]


@pytest.mark.slow
@pytest.mark.parametrize("clean", [True, False], ids=["a clean folder", "a dataset that is gone"])
def test_files_survive_what_empties_the_working_directory(pipeline: MakePipeline, clean: bool) -> None:
    """dlt empties it as well when the dataset of an earlier run is not there."""
    ops = ops_into(dlt.destinations.duckdb("ops.duckdb"))
    with locked("ops.duckdb"):
        runner(pipeline(), store_trace_info=ops).run(shop())
        (before,) = kept(pipeline())
        if not clean:
            Path("warehouse.duckdb").unlink()

        runner(pipeline(), store_trace_info=ops, run_from_clean_folder=clean).run(shop())

    assert before in kept(pipeline())
    assert len(kept(pipeline())) == 2


def test_files_that_a_killed_process_had_moved_are_found_again(pipeline: MakePipeline) -> None:
    working_dir = Path(pipeline().working_dir)
    path = trace_files.write(trace_files.folder_of(working_dir), {"transaction_id": "t", "attempt": 1})
    path.parent.rename(working_dir.with_name(".shop.traces"))

    with trace_files.moved_through(str(working_dir)):
        assert not path.exists()

    assert path.exists()
    assert not working_dir.with_name(".shop.traces").exists()


@pytest.mark.slow
def test_a_trace_that_can_be_put_nowhere_is_a_warning_too(
    pipeline: MakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    shop_pipeline = pipeline()
    (Path(shop_pipeline.working_dir) / "traces").write_text("a file where the folder should be")

    with locked("ops.duckdb"):
        runner(shop_pipeline, store_trace_info=ops_into(dlt.destinations.duckdb("ops.duckdb"))).run(shop())

    (warning,) = warnings(caplog)
    assert "could not be kept" in warning


# -- stop requests -----------------------------------------------------------------------------------------------------


class StopsWhenArmed(duckdb_destination):
    """A destination where the program is asked to stop when it is to be reached."""

    stop: type[BaseException] | None = None

    def configuration(self, *args: Any, **options: Any) -> Any:
        if StopsWhenArmed.stop is not None:
            raise StopsWhenArmed.stop
        return super().configuration(*args, **options)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_request_while_a_trace_is_stored_is_passed_on(
    pipeline: MakePipeline, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop_pipeline = pipeline()
    ops = ops_into(StopsWhenArmed("ops.duckdb"))
    monkeypatch.setattr(StopsWhenArmed, "stop", stop)

    with pytest.raises(stop):
        runner(shop_pipeline, store_trace_info=ops).run(shop())

    assert len(kept(shop_pipeline)) == 1
    assert dlt.current.pipeline() is shop_pipeline


@pytest.mark.slow
def test_an_attempt_that_is_stopped_does_not_wait_for_the_store(
    pipeline: MakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    @dlt.resource
    def orders() -> Iterator[dict[str, int]]:
        yield {"id": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner(pipeline(), store_trace_info=True, **TWICE).run(orders)

    assert not Path("warehouse.duckdb").exists() or shape("warehouse.duckdb") == {}
    (path,) = kept(pipeline())
    told = json.loads(path.read_text(encoding="utf-8"))
    assert (told["outcome"], told["error_type"]) == ("stopped", "KeyboardInterrupt")
    assert warnings(caplog) == []

    runner(pipeline(), store_trace_info=True).run(shop())
    assert attempts() == [(1, "run", "stopped"), (1, "run", "completed")]


# -- several processes -------------------------------------------------------------------------------------------------


def store_one(address: str, number: int, ready: Any) -> None:
    shop_pipeline = dlt.pipeline(
        "shop",
        destination=dlt.destinations.dummy(completed_prob=1.0),
        dataset_name="shop_data",
        pipelines_dir="pipelines",
    )
    ops = ops_into(dlt.destinations.postgres(address))
    store = traces.Traces(shop_pipeline, ops)
    (path,) = [path for path in trace_files.waiting(store.folder) if "_attempt_0_" in path.name]
    record = json.loads(path.read_text(encoding="utf-8"))
    ready.wait()
    store.store({**record, "transaction_id": f"of_process_{number}", "attempt": number})


@pytest.mark.slow
def test_processes_that_store_at_the_same_time_store_each_trace_once(
    pipeline: MakePipeline, make_database: Callable[[str], str]
) -> None:
    """All of them find the same files, of the same pipeline."""
    address = make_database("traces_processes")
    own = dlt.pipeline(
        "shop",
        destination=dlt.destinations.dummy(completed_prob=1.0),
        dataset_name="shop_data",
        pipelines_dir="pipelines",
    )
    nowhere = ops_into(dlt.destinations.postgres(address.replace("host=", "host=/nowhere")))
    runner(own, store_trace_info=nowhere).run([{"id": 1}], table_name="orders")
    (path,) = kept(own)
    record = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    for number in range(5):
        steps = [{**step, "transaction_id": f"kept_{number}", "attempt": number} for step in record["steps"]]
        changed = {"transaction_id": f"kept_{number}", "attempt": number, "steps": steps, "tables": [], "jobs": []}
        trace_files.write(path.parent, {**record, **changed})

    # Not forked: a child of a process that has served Prefect is not what a worker is.
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    processes = [context.Process(target=store_one, args=(address, number, ready)) for number in (10, 11)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0]
    ops = ops_into(dlt.destinations.postgres(address))
    with ops.sql_client() as client:
        found = client.execute_sql("SELECT transaction_id, count(*) FROM shop_trace GROUP BY 1 ORDER BY 1")
        names = [*(f"kept_{number}" for number in range(5)), "of_process_10", "of_process_11"]
        assert found == [(name, 1) for name in names]
        steps = client.execute_sql("SELECT count(*), count(DISTINCT (transaction_id, position)) FROM shop_trace__steps")
        assert steps is not None
        assert steps[0][0] >= 5 * len(record["steps"])
    assert trace_files.waiting(trace_files.folder_of(own.working_dir)) == []
