"""How much a pipeline does at a time: what is given reaches the part it is for, and nothing else."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import CallbackCollector, create_run_pipeline_flow, create_run_pipeline_task
from prefect_dlt.component_load import ComponentLoad
from prefect_dlt.errors import ConfigurationError
from prefect_dlt.limits import LIMITS, MOST_IN_A_FILE, MOST_WORKERS, Limits
from tests.runtime import noted_names
from tests.runtime.sources import shop

PIECES = {"file_max_bytes": 1, "buffer_max_items": 10}
"""What makes ten files of 100 rows: each time ten rows are held they are written, and end the file."""


@dlt.source
def numbers() -> Any:
    """Two resources of 100 rows each."""

    def resource(name: str) -> Any:
        def rows() -> Iterator[Any]:
            for number in range(100):
                yield {"id": number}

        return dlt.resource(rows, name=name)

    return [resource("even"), resource("odd")]


def files_of(load_info: Any) -> dict[str, int]:
    """Return how many files each table was loaded from."""
    jobs = [job for package in load_info.load_packages for job in package.jobs["completed_jobs"]]
    tables = Counter(job.job_file_info.table_name for job in jobs)
    return {table: count for table, count in tables.items() if not table.startswith("_dlt")}


def load(pipeline: Pipeline, source: Any, **limits: Any) -> None:
    """Load as a task does, outside of any and with nothing to tell Prefect."""
    pipeline.collector = CallbackCollector()
    ComponentLoad(pipeline, source, {}, Limits(**limits)).run(None, {})


@pytest.mark.parametrize("make", [create_run_pipeline_task, create_run_pipeline_flow])
@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, "10", True, False, [1], float("inf"), MOST_IN_A_FILE + 1])
def test_a_limit_that_cannot_work_is_refused_when_task_or_flow_is_made(make: Any, name: str, value: Any) -> None:
    def build() -> Any:
        raise AssertionError("nothing is to be built")

    with pytest.raises(ConfigurationError, match=f"{name} cannot be .*whole number from 1 to 1,000"):
        make(build, build, **{name: value})


def test_there_are_no_thousand_workers_and_one() -> None:
    create_run_pipeline_flow(shop, shop, normalize_workers=MOST_WORKERS, file_max_items=MOST_IN_A_FILE)
    with pytest.raises(ConfigurationError, match="normalize_workers cannot be 1001"):
        create_run_pipeline_flow(shop, shop, normalize_workers=MOST_WORKERS + 1)


@pytest.mark.parametrize("workers", [2, 24])
def test_as_many_are_extracted_at_a_time_as_there_are_workers(pipeline: Callable[..., Pipeline], workers: int) -> None:
    together, running = threading.Barrier(workers), _Most()

    @dlt.defer
    def fetch(number: int) -> dict[str, int]:
        with running:
            # As many at a time are reached: they wait for one another, not for a clock.
            together.wait(60)
            return {"id": number}

    @dlt.source
    def deferring() -> Any:
        return dlt.resource((fetch(number) for number in range(workers * 3)), name="rows")

    load(pipeline(), deferring, extract_workers=workers)

    assert running.most == workers


@pytest.mark.parametrize("workers", [1, 2])
def test_as_many_are_loaded_at_a_time_as_there_are_workers(own_folder: Path, workers: int) -> None:
    together, running, threads, loaded = threading.Barrier(workers), _Most(), set[str](), Counter[str]()

    @dlt.destination(
        batch_size=0, loader_file_format="typed-jsonl", loader_parallelism_strategy="parallel", name="noted"
    )
    def noted(_path: str, table: Any) -> None:
        with running:
            together.wait(60)
            threads.add(threading.current_thread().name)
            loaded[table["name"]] += 1

    shop = dlt.pipeline("shop", pipelines_dir=str(own_folder), destination=noted(), dataset_name="shop_data")
    load(shop, numbers, load_workers=workers, file_max_items=5)

    assert loaded == {"even": 20, "odd": 20}
    assert running.most == workers
    # Of one worker dlt makes no pool at all.
    assert len(threads) == workers
    assert all(name.startswith("dlt-pool-") == (workers > 1) for name in threads)


@pytest.mark.usefixtures("prefect_api")
class TestWithPrefect:
    """What dlt does, in a run of Prefect."""

    @pytest.mark.parametrize(
        ("limits", "files"),
        [
            (PIECES, 10),
            pytest.param({"file_max_items": 25}, 4, marks=pytest.mark.slow),
            pytest.param({}, 1, marks=pytest.mark.slow),
        ],
    )
    @pytest.mark.parametrize(
        "mode", [*(pytest.param(mode, marks=pytest.mark.slow) for mode in ("none", "sequential")), "parallel"]
    )
    def test_files_are_as_large_as_they_may_be_in_every_mode(
        self, pipeline: Callable[..., Pipeline], mode: Any, limits: Any, files: int
    ) -> None:
        result = create_run_pipeline_flow(pipeline, numbers, decompose=mode, **limits)()

        found = [files_of(part.load_info) for part in result.components]
        assert {table: count for tables in found for table, count in tables.items()} == {"even": files, "odd": files}

    @pytest.mark.slow
    def test_a_task_takes_limits_as_well(self, pipeline: Callable[..., Pipeline]) -> None:
        shop = pipeline()

        info = create_run_pipeline_task(shop, numbers, **PIECES)(resources=["odd"])

        assert files_of(info) == {"odd": 10}
        extracted: Any = shop.last_trace.last_extract_info.load_packages[0].jobs["new_jobs"]
        assert [job.job_file_info.table_name for job in extracted].count("odd") == 10

    @pytest.mark.slow
    @pytest.mark.parametrize(("limits", "files"), [(PIECES, 10), ({"file_max_items": 25}, 4)])
    def test_normalize_workers_see_the_limits_of_their_part_and_a_pipeline_beside_it_does_not(
        self,
        pipeline: Callable[..., Pipeline],
        own_folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        limits: Any,
        files: int,
    ) -> None:
        (own_folder / "processes").mkdir()
        monkeypatch.setenv(noted_names.FOLDER, str(own_folder / "processes"))
        monkeypatch.setenv(noted_names.EXPECTED, "2")
        both_extract = threading.Barrier(2)

        def met() -> Iterator[Any]:
            both_extract.wait(60)
            for number in range(100):
                yield {"id": number}

        @dlt.source
        def one() -> Any:
            return dlt.resource(met, name="even")

        def build() -> Pipeline:
            return dlt.pipeline(
                "shop",
                pipelines_dir=str(own_folder / "pipelines"),
                destination=dlt.destinations.duckdb(
                    str(own_folder / "warehouse.duckdb"), naming_convention=noted_names.__name__
                ),
                dataset_name="shop_data",
            )

        def beside() -> Any:
            # Of the same name as the part's pipeline, in another folder.
            twin = dlt.pipeline(
                "shop__even",
                pipelines_dir=str(own_folder / "other"),
                destination=dlt.destinations.duckdb(str(own_folder / "other.duckdb")),
                dataset_name="other_data",
            )
            return twin.run(met(), table_name="even")

        load = create_run_pipeline_flow(build, one, decompose=True, normalize_workers=2, **limits)
        with ThreadPoolExecutor(1) as other_thread:
            twin = other_thread.submit(beside)
            [part] = load().components

        assert part.pipeline_name == "shop__even"
        assert files_of(part.load_info) == {"even": files}
        assert files_of(twin.result()) == {"even": 1}
        assert len(list((own_folder / "processes").iterdir())) == 2

    @pytest.mark.slow
    def test_what_is_configured_for_a_pipeline_counts_for_the_parts_of_its_source(
        self, own_folder: Path, make_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @dlt.source(section="numbers")
        def counted(until: int = dlt.config.value) -> Any:
            return [dlt.resource(range(until), name="even"), dlt.resource(range(until), name="odd")]

        settings = {
            "DESTINATION__POSTGRES__CREDENTIALS": make_database("configured_for_the_base"),
            "SOURCES__NUMBERS__UNTIL": "30",
            "DATA_WRITER__FILE_MAX_ITEMS": "10",
            "RUNNER__STORE_TRACE_INFO": "true",
        }
        for name, value in settings.items():
            monkeypatch.setenv(f"SHOP__{name}", value)

        shop = dlt.pipeline("shop", pipelines_dir=str(own_folder), destination="postgres", dataset_name="shop_data")
        result = create_run_pipeline_flow(shop, counted, decompose=True)()

        assert [files_of(part.load_info) for part in result.components] == [{"even": 3}, {"odd": 3}]
        with shop.sql_client() as client:
            assert client.execute_sql("SELECT count(*) FROM shop__even_trace")


class _Most:
    """How many were inside at the same time at most."""

    def __init__(self) -> None:
        self.most = self._now = 0
        self._counting = threading.Lock()

    def __enter__(self) -> None:
        with self._counting:
            self._now += 1
            self.most = max(self.most, self._now)

    def __exit__(self, *_error: object) -> None:
        with self._counting:
            self._now -= 1
