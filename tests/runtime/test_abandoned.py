"""What a load has left that ended elsewhere is taken back, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.abandoned import begun, home_of, take_back
from prefect_dlt.told import Begun
from tests.runtime.conftest import count

ROWS = [{"id": number, "lines": [{"line": 1, "parts": [{"part": 1}]}, {"line": 2}]} for number in range(3)]
TABLES = {"orders": 3, "orders__lines": 6, "orders__lines__parts": 3}


def rows_of(pipeline: Pipeline) -> dict[str, int]:
    return {table: count(pipeline, table) for table in TABLES}


@pytest.fixture
def loaded(pipeline: Callable[..., Pipeline]) -> tuple[Pipeline, Begun]:
    """Return a pipeline that has loaded rows twice, and what its second load step began with."""
    shop = pipeline()
    shop.run(ROWS, table_name="orders")
    shop.extract(ROWS, table_name="orders")
    shop.normalize()
    (package,) = begun(shop)
    shop.load()
    return shop, package


def test_a_load_step_tells_its_packages_and_the_tables_it_adds_to(loaded: tuple[Pipeline, Begun]) -> None:
    _, package = loaded

    assert [chain[-1] for chain in package.tables] == list(TABLES)


def test_what_was_loaded_completely_stays(loaded: tuple[Pipeline, Begun]) -> None:
    shop, package = loaded

    assert take_back(shop, [package]) == []
    assert rows_of(shop) == {table: 2 * rows for table, rows in TABLES.items()}


def test_what_was_loaded_in_part_is_taken_back_with_what_is_nested_in_it(
    loaded: tuple[Pipeline, Begun], pipeline: Callable[..., Pipeline], tmp_path: Path
) -> None:
    shop, package = loaded
    with shop.sql_client() as client:
        client.execute_sql("DELETE FROM shop_data._dlt_loads WHERE load_id = %s", package.load_id)
    # On another machine nothing of it is known: not even the schema.
    elsewhere = dlt.pipeline(
        "shop", pipelines_dir=str(tmp_path / "elsewhere"), destination=shop.destination, dataset_name="shop_data"
    )
    assert home_of(elsewhere) != home_of(shop)

    lines = take_back(elsewhere, [package])

    assert lines[0] == f"Took back 3 rows of load {package.load_id} from table 'orders'"
    assert rows_of(shop) == TABLES
    assert take_back(elsewhere, [package]) == []


def test_rows_that_were_loaded_before_those_they_are_nested_in_are_taken_back(loaded: tuple[Pipeline, Begun]) -> None:
    shop, package = loaded
    with shop.sql_client() as client:
        for table, column in (("_dlt_loads", "load_id"), ("orders", "_dlt_load_id")):
            client.execute_sql(f"DELETE FROM shop_data.{table} WHERE {column} = %s", package.load_id)
    assert rows_of(shop) == {**{table: 2 * rows for table, rows in TABLES.items()}, "orders": 3}

    take_back(shop, [package])

    assert rows_of(shop) == TABLES


def test_a_table_without_load_ids_is_told(loaded: tuple[Pipeline, Begun]) -> None:
    shop, _ = loaded
    with shop.sql_client() as client:
        client.execute_sql("CREATE TABLE shop_data.bare AS SELECT 1 AS id")

    (line,) = take_back(shop, [Begun("17.1", (("bare",), ("not_there",)))])

    assert line == "Table 'bare' does not tell which of its rows are of load 17.1"
    assert count(shop, "bare") == 1


def test_a_destination_without_sql_is_told(tmp_path: Path) -> None:
    files = dlt.pipeline("shop", destination=dlt.destinations.filesystem(str(tmp_path / "files")), dataset_name="shop")

    lines: Any = take_back(files, [Begun("17.1", (("orders",),))])

    assert "cannot delete what load 17.1 may have left" in lines[0]


def test_a_working_directory_is_known_again_after_it_was_removed(pipeline: Callable[..., Pipeline]) -> None:
    shop, other = pipeline(), pipeline("other")
    home = home_of(shop)
    shutil.rmtree(shop.working_dir)

    assert home_of(pipeline()) == home != home_of(other)
    assert sorted(path.name for path in Path(shop.pipelines_dir).glob(".*.home*")) == [".other.home", ".shop.home"]


@pytest.mark.parametrize("has_links", [True, False])
def test_two_that_name_a_working_directory_at_the_same_time_agree(
    has_links: bool, pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, homes = pipeline(), list[str]()
    link = Path.hardlink_to

    def after_another(self: Path, target: Path) -> None:
        monkeypatch.setattr(Path, "hardlink_to", link if has_links else no_links)
        homes.append(home_of(shop))
        Path.hardlink_to(self, target)

    def no_links(self: Path, target: Path) -> None:
        raise OSError("not here")

    monkeypatch.setattr(Path, "hardlink_to", after_another if has_links else no_links)

    homes.append(home_of(shop))

    assert {*homes, home_of(shop)} == {homes[0]}
