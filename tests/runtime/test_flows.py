"""Flows and tasks made from pipelines and sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import cloudpickle
import dlt
import pytest
from dlt.common.configuration.utils import get_resolved_traces
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from tenacity import Retrying, stop_after_attempt

from prefect_dlt import create_run_pipeline_flow, create_run_pipeline_task
from prefect_dlt.errors import ComponentsFailedError, ConfigurationError, NotASourceError, UnknownResourcesError
from tests.runtime.conftest import count
from tests.runtime.sources import shop

pytestmark = pytest.mark.usefixtures("prefect_api")

MODES = ["none", "sequential", "parallel"]

PARALLEL_EVERYWHERE = [pytest.param(mode, marks=[pytest.mark.slow] * (mode != "parallel")) for mode in MODES]
"""The first of these tests has every mode load on all versions; others do it in the others on the tested ones only."""


@dlt.source
def fragile() -> Any:
    """One resource that loads, and one that never does."""

    @dlt.resource
    def good() -> Iterator[Any]:
        yield [{"id": 1}]

    @dlt.resource
    def bad() -> Iterator[Any]:
        raise ConnectionError("the line to mysql://ada:s3cret@db is dead")
        yield

    return good, bad


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_loads_every_table_once(pipeline: Callable[..., Pipeline], mode: Any) -> None:
    load = create_run_pipeline_flow(pipeline, shop, decompose=mode, flow_name="load shop")

    result = load()

    assert get_resolved_traces().all_traces == []
    assert {table: count(pipeline(), table) for table in ("orders", "orders__items", "customers", "greetings")} == {
        "orders": 2,
        "orders__items": 3,
        "customers": 3,
        "greetings": 3,
    }
    assert {table.name: table.rows for table in result.tables} == {
        "orders": 2,
        "orders__items": 3,
        "customers": 3,
        "greetings": 3,
    }
    assert str(result).splitlines()[0].split() == ["table", "rows", "seconds"]


@pytest.mark.parametrize("mode", PARALLEL_EVERYWHERE)
def test_named_resources_are_loaded_and_no_others(pipeline: Callable[..., Pipeline], mode: Any) -> None:
    result = create_run_pipeline_flow(pipeline, shop, decompose=mode)(resources=["orders"])

    assert {table.name for table in result.tables} == {"orders", "orders__items"}


@pytest.mark.parametrize("mode", MODES)
def test_an_unknown_resource_is_refused_before_anything_runs(
    pipeline: Callable[..., Pipeline], own_folder: Path, mode: Any
) -> None:
    load = create_run_pipeline_flow(pipeline, shop, decompose=mode)

    with pytest.raises(UnknownResourcesError, match=r"no resource 'ordres'.*'orders'"):
        load(resources=["orders", "ordres"])
    assert not (own_folder / "warehouse.duckdb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_full_refresh_loads_anew_what_was_loaded_before(pipeline: Callable[..., Pipeline], mode: Any) -> None:
    @dlt.source
    def counter() -> Any:
        @dlt.resource(primary_key="id")
        def numbers(cursor: Any = dlt.sources.incremental("id")) -> Iterator[Any]:  # noqa: B008 - dlt's way
            yield [{"id": number} for number in range(3)]

        return numbers

    load = create_run_pipeline_flow(pipeline, counter, decompose=mode)
    load()
    assert not load().tables

    assert [(table.name, table.rows) for table in load(full_refresh=True).tables] == [("numbers", 3)]
    assert count(pipeline(), "numbers") == 3


@pytest.mark.slow
def test_parts_have_pipelines_of_their_own_and_transformers_stay_with_their_source(
    pipeline: Callable[..., Pipeline],
) -> None:
    result = create_run_pipeline_flow(pipeline, shop, decompose=True)()

    assert [(part.name, part.pipeline_name) for part in result.components] == [
        ("customers", "shop__customers"),
        ("orders", "shop__orders"),
    ]


def test_a_part_that_fails_stops_no_other(pipeline: Callable[..., Pipeline]) -> None:
    load = create_run_pipeline_flow(pipeline, fragile, decompose=True, flow_name="load fragile")
    with pytest.raises(ComponentsFailedError) as raised:
        load()

    assert set(raised.value.failures) == {"bad"}
    assert raised.value.loaded == ("good",)
    assert "is dead" in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert count(pipeline(), "good") == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", PARALLEL_EVERYWHERE[1:])
def test_what_a_part_has_extracted_is_loaded_by_a_later_run_without_extracting_it_again(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    extracted: list[str] = []

    @dlt.source
    def counted() -> Any:
        def resource(name: str) -> Any:
            def rows() -> Iterator[Any]:
                extracted.append(name)
                yield [{"id": 1}]

            return dlt.resource(rows, name=name)

        return [resource("first"), resource("second")]

    client = type(pipeline().destination_client())
    original = client.update_stored_schema

    def update_stored_schema(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "first" in self.schema.tables:
            raise ConnectionError("asleep")
        return original(self, *args, **kwargs)

    load = create_run_pipeline_flow(pipeline, counted, decompose=mode)
    with monkeypatch.context() as patch:
        patch.setattr(client, "update_stored_schema", update_stored_schema)
        with pytest.raises(ComponentsFailedError) as raised:
            load()
    if mode == "sequential":
        assert "'first' has extracted could not be loaded" in raised.value.not_loaded["second"]
        assert extracted == ["first"]
    else:
        assert set(raised.value.failures) == {"first"}
        assert sorted(extracted) == ["first", "second"]

    extracted.clear()
    load(resources=["second"] if mode == "sequential" else ["first"])

    # The pending rows of the first part, and of the part that was asked for now.
    assert count(pipeline(), "first") == (1 if mode == "sequential" else 2)
    assert count(pipeline(), "second") == 1


@pytest.mark.slow
def test_a_request_to_stop_starts_no_further_part(pipeline: Callable[..., Pipeline]) -> None:
    started: list[str] = []

    @dlt.source
    def stopping() -> Any:
        def resource(name: str) -> Any:
            def rows() -> Iterator[Any]:
                started.append(name)
                raise KeyboardInterrupt
                yield

            return dlt.resource(rows, name=name)

        return [resource("a"), resource("b")]

    with pytest.raises(KeyboardInterrupt):
        create_run_pipeline_flow(pipeline, stopping, decompose="sequential")()
    assert started == ["a"]


@pytest.mark.slow
def test_parts_share_a_pipeline_that_stores_their_traces(pipeline: Callable[..., Pipeline]) -> None:
    store = pipeline("traces")

    create_run_pipeline_flow(pipeline, shop, decompose=True, store_trace_info=store)()

    assert count(store, "shop__orders_trace") == 1
    assert count(store, "shop__customers_trace") == 1


def test_a_whole_source_that_fails_raises_its_own_error(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.resource
    def bad() -> Iterator[Any]:
        raise ConnectionError("the line is dead")
        yield

    with pytest.raises(PipelineStepFailed, match="the line is dead"):
        create_run_pipeline_flow(pipeline, bad)()


@pytest.mark.slow
def test_each_part_retries_by_itself(pipeline: Callable[..., Pipeline]) -> None:
    calls: dict[str, int] = {}

    @dlt.source
    def shaky() -> Any:
        def resource(name: str, failures: int) -> Any:
            def rows() -> Iterator[Any]:
                calls[name] = calls.get(name, 0) + 1
                if calls[name] <= failures:
                    raise ConnectionError("asleep")
                yield [{"id": 1}]

            return dlt.resource(rows, name=name)

        return [resource("steady", 0), resource("shaky", 2)]

    create_run_pipeline_flow(
        pipeline,
        shaky,
        decompose=True,
        retry_policy=Retrying(stop=stop_after_attempt(3), reraise=True),
        retry_pipeline_steps=["extract", "normalize", "load"],
    )()

    assert calls == {"steady": 1, "shaky": 3}
    assert count(pipeline(), "shaky") == 1


@pytest.mark.slow
def test_data_that_is_no_source_is_loaded_whole_and_not_taken_apart(pipeline: Callable[..., Pipeline]) -> None:
    rows = [{"id": 1}, {"id": 2}]

    result = create_run_pipeline_flow(pipeline, rows)(table_name="orders")

    assert [(table.name, table.rows) for table in result.tables] == [("orders", 2)]
    with pytest.raises(NotASourceError, match=r"@dlt\.source"):
        create_run_pipeline_flow(pipeline, rows, decompose=True)(table_name="orders")


def test_what_is_no_task_runner_is_refused_when_the_flow_is_made(pipeline: Callable[..., Pipeline]) -> None:
    with pytest.raises(ConfigurationError, match="task_runner cannot be 'threads'"):
        create_run_pipeline_flow(pipeline(), [1], task_runner=cast("Any", "threads"))
    create_run_pipeline_flow(pipeline(), [1], task_runner=cast("Any", ThreadPoolTaskRunner))


def test_a_mode_that_does_not_exist_is_refused_when_the_flow_is_made(pipeline: Callable[..., Pipeline]) -> None:
    with pytest.raises(ConfigurationError, match="'none', 'sequential', 'parallel', 'auto'"):
        create_run_pipeline_flow(pipeline, shop, decompose="serial")  # type: ignore[arg-type]


def test_a_task_loads_and_returns_dlts_own_info(pipeline: Callable[..., Pipeline]) -> None:
    load = create_run_pipeline_task(pipeline(), shop)

    @flow
    def main() -> Any:
        return load.submit(resources=["orders"], write_disposition="replace").result()

    info = main()

    assert load.name == "load shop"
    assert not info.has_failed_jobs
    assert count(pipeline(), "orders") == 2


def test_a_task_with_a_retry_policy_can_be_sent_to_another_process(pipeline: Callable[..., Pipeline]) -> None:
    policy = Retrying(stop=stop_after_attempt(3), reraise=True)
    load = create_run_pipeline_task(pipeline, shop, retry_policy=policy)

    twin = cloudpickle.loads(cloudpickle.dumps(load))

    assert not twin(resources=["orders"]).has_failed_jobs
    assert count(pipeline(), "orders") == 2


@pytest.mark.slow
def test_first_runs_of_many_parts_do_not_get_in_each_others_way(own_folder: Path) -> None:
    def resource(name: str) -> Any:
        return dlt.resource([{"id": number} for number in range(10)], name=name)

    @dlt.source
    def wide() -> Any:
        return [resource(f"part_{number:02}") for number in range(16)]

    def pipeline() -> Pipeline:
        return dlt.pipeline(
            "wide",
            pipelines_dir=str(own_folder / "pipelines"),
            destination=dlt.destinations.duckdb(str(own_folder / "warehouse.duckdb")),
            dataset_name="wide_data",
        )

    result = create_run_pipeline_flow(pipeline, wide, decompose=True)()

    assert [table.rows for table in result.tables] == [10] * 16


@pytest.mark.parametrize("mode", MODES)
def test_a_dataset_that_duckdb_cannot_tell_from_its_file_is_refused_by_name(own_folder: Path, mode: Any) -> None:
    same = dlt.pipeline("orders", destination=dlt.destinations.duckdb("shop.duckdb"), dataset_name="shop")

    with pytest.raises(ConfigurationError, match=r"dataset_name cannot be 'shop'.*shop\.duckdb.*rename"):
        create_run_pipeline_flow(same, shop, decompose=mode)()
    assert not (own_folder / "shop.duckdb").exists()
