"""On a machine that has not loaded a part before, its pipeline restores the schema that it has stored itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import create_run_pipeline_flow
from prefect_dlt.dataset import derive

pytestmark = pytest.mark.usefixtures("prefect_api")


@dlt.source(name="shop")
def shop(amount: float = 1) -> Any:
    """Orders with an amount, of one type or another, and customers."""

    @dlt.resource
    def orders(cursor: Any = dlt.sources.incremental("id", initial_value=0)) -> Iterator[Any]:  # noqa: B008 - dlt's way
        yield [{"id": cursor.last_value + 1, "amount": amount}]

    @dlt.resource
    def customers(cursor: Any = dlt.sources.incremental("id", initial_value=0)) -> Iterator[Any]:  # noqa: B008
        yield [{"id": cursor.last_value + 1}]

    return orders, customers


def on_another_machine(folder: Path) -> None:
    """Leave nothing of what pipelines remember here."""
    shutil.rmtree(folder / "pipelines")


def rows(pipeline: Pipeline, query: str) -> Any:
    with pipeline.sql_client() as client:
        return client.execute_sql(query)


@pytest.mark.slow
def test_a_value_of_another_type_is_not_pressed_into_the_column(
    pipeline: Callable[..., Pipeline], own_folder: Path
) -> None:
    create_run_pipeline_flow(pipeline, shop(), decompose="parallel")()
    on_another_machine(own_folder)

    create_run_pipeline_flow(pipeline, shop(2.5), decompose="parallel")()

    assert rows(pipeline(), "SELECT amount, amount__v_double FROM orders ORDER BY id") == [(1, None), (None, 2.5)]


@pytest.mark.parametrize("first", ["orders", pytest.param("customers", marks=pytest.mark.slow)])
def test_each_part_has_its_own_tables_again(pipeline: Callable[..., Pipeline], own_folder: Path, first: str) -> None:
    second = "customers" if first == "orders" else "orders"
    for resource in (first, second):
        create_run_pipeline_flow(pipeline, shop(), decompose="parallel")(resources=[resource])
    on_another_machine(own_folder)

    for resource in (first, second):
        part = derive(pipeline(), f"shop__{resource}", resource, (resource,))
        part.sync_destination()
        assert part.default_schema.data_table_names() == [resource]


@pytest.mark.slow
def test_a_refresh_drops_what_another_machine_has_loaded(pipeline: Callable[..., Pipeline], own_folder: Path) -> None:
    load = create_run_pipeline_flow(pipeline, shop(), decompose="parallel")
    for _ in range(2):
        load()
    on_another_machine(own_folder)

    load(full_refresh=True)

    assert rows(pipeline(), "SELECT id FROM orders") == [(1,)]
    assert rows(pipeline(), "SELECT id FROM customers") == [(1,)]
