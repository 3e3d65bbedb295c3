"""What was loaded is dropped once, before the first part is loaded, whatever the mode."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import create_run_pipeline_flow
from prefect_dlt.errors import ComponentsFailedError
from prefect_dlt.refresh import is_older
from tests.runtime.conftest import count

pytestmark = pytest.mark.usefixtures("prefect_api")

TABLES = ("orders", "orders__lines", "customers")


@dlt.source
def shop() -> Any:
    """Two incremental resources, which load their rows once."""

    @dlt.resource
    def orders(cursor: Any = dlt.sources.incremental("id")) -> Iterator[Any]:  # noqa: B008 - dlt's way
        yield [{"id": 1, "lines": [{"sku": "a"}, {"sku": "b"}]}, {"id": 2, "lines": []}]

    @dlt.resource
    def customers(cursor: Any = dlt.sources.incremental("id")) -> Iterator[Any]:  # noqa: B008 - dlt's way
        yield [{"id": 1}, {"id": 2}, {"id": 3}]

    return orders, customers


def held(pipeline: Pipeline) -> dict[str, int]:
    return {table: count(pipeline, table) for table in TABLES}


@pytest.mark.parametrize(
    ("mode", "refresh"),
    [
        pytest.param("sequential", "drop_sources", marks=pytest.mark.slow),
        ("parallel", "drop_sources"),
        pytest.param("parallel", "drop_resources", marks=pytest.mark.slow),
        pytest.param("parallel", "drop_data", marks=pytest.mark.slow),
    ],
)
def test_a_refresh_leaves_what_this_run_has_loaded(pipeline: Callable[..., Pipeline], mode: Any, refresh: str) -> None:
    load = create_run_pipeline_flow(pipeline, shop, decompose=mode)
    load()

    result = load(refresh=refresh)

    # Each part loads again, since its state was dropped, and no part drops what another has loaded.
    assert held(pipeline()) == {"orders": 2, "orders__lines": 2, "customers": 3}
    assert {table.name: table.rows for table in result.tables} == {"orders": 2, "orders__lines": 2, "customers": 3}


@pytest.mark.slow
def test_a_refresh_of_some_resources_leaves_the_others_and_that_of_the_source_does_not(
    pipeline: Callable[..., Pipeline],
) -> None:
    load = create_run_pipeline_flow(pipeline, shop, decompose="parallel")
    load()

    load(resources=["orders"], full_refresh=True)
    assert held(pipeline()) == {"orders": 2, "orders__lines": 2, "customers": 3}

    load(resources=["orders"], refresh="drop_sources")
    assert {"orders", "orders__lines"} == _tables(pipeline()) & set(TABLES)


def _tables(pipeline: Pipeline) -> set[str]:
    with pipeline.sql_client() as client:
        found = client.execute_sql("SELECT table_name FROM information_schema.tables WHERE table_schema = 'shop_data'")
    return {str(row[0]) for row in found or ()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_a_pipeline_that_refreshes_at_every_run_does_so_once(pipeline: Callable[..., Pipeline], mode: Any) -> None:
    given = pipeline(refresh="drop_sources")
    load = create_run_pipeline_flow(given, shop, decompose=mode)

    for _ in range(2):
        load()

    assert held(pipeline()) == {"orders": 2, "orders__lines": 2, "customers": 3}
    assert given.refresh == "drop_sources"


def test_a_refresh_is_where_the_given_pipeline_is_configured_to_load(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP__DESTINATION__DUCKDB__CREDENTIALS", str(own_folder / "there.duckdb"))

    def build() -> Pipeline:
        return dlt.pipeline(
            "shop", pipelines_dir=str(own_folder / "pipelines"), destination="duckdb", dataset_name="shop_data"
        )

    load = create_run_pipeline_flow(build, shop, decompose="parallel")
    load()
    load(full_refresh=True)

    assert held(build()) == {"orders": 2, "orders__lines": 2, "customers": 3}
    assert [file.name for file in own_folder.glob("*.duckdb")] == ["there.duckdb"]


@pytest.mark.slow
def test_a_refresh_of_what_was_never_loaded_drops_nothing(pipeline: Callable[..., Pipeline]) -> None:
    create_run_pipeline_flow(pipeline, shop, decompose="parallel")(full_refresh=True)

    assert held(pipeline()) == {"orders": 2, "orders__lines": 2, "customers": 3}


@pytest.mark.slow
def test_what_was_pending_is_dropped_too(pipeline: Callable[..., Pipeline]) -> None:
    load = create_run_pipeline_flow(pipeline, shop, decompose="parallel")
    load()
    pipeline("shop__orders").extract([{"id": 9, "lines": []}], table_name="orders")

    load(full_refresh=True)

    assert held(pipeline()) == {"orders": 2, "orders__lines": 2, "customers": 3}


@pytest.mark.slow
def test_a_part_that_fails_after_a_refresh_loads_all_of_it_with_the_next_run(pipeline: Callable[..., Pipeline]) -> None:
    broken: list[bool] = []

    @dlt.source(name="shop")
    def shaky() -> Any:
        def orders(cursor: Any = dlt.sources.incremental("id")) -> Iterator[Any]:  # noqa: B008 - dlt's way
            if broken:
                raise ConnectionError("asleep")
            yield [{"id": 1}, {"id": 2}]

        return [dlt.resource(orders, name="orders"), dlt.resource([{"id": 1}], name="others")]

    load = create_run_pipeline_flow(pipeline, shaky, decompose="parallel")
    load()
    broken.append(True)
    with pytest.raises(ComponentsFailedError):
        load(full_refresh=True)
    broken.clear()

    load()

    assert count(pipeline(), "orders") == 2


def test_what_waits_elsewhere_from_before_a_refresh_is_told_from_what_came_after(
    pipeline: Callable[..., Pipeline],
) -> None:
    part = pipeline("shop__orders")
    assert not is_older(part, time.time())
    part.extract([{"id": 1}], table_name="orders")

    assert is_older(part, time.time())
    assert not is_older(part, float(part.list_extracted_load_packages()[0]) - 1)
    assert not is_older(part, None)
