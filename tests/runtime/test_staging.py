"""Parts that merge and replace at the same time, into one dataset, lose nothing and double nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import create_run_pipeline_flow
from prefect_dlt.dataset import derive
from prefect_dlt.errors import SharedStagingError
from tests.runtime.conftest import count

PARTS = 4
ROWS = 200


@dlt.source
def changing(run: int, strategy: str = "delete-insert") -> Any:
    """Half of the resources merge and half replace; each run brings as many new rows as old ones, with nested ones."""

    def resource(number: int) -> Any:
        merges = number % 2 == 0
        rows = [
            {"id": each + run * ROWS // 2, "run": run, "lines": [{"line": line} for line in range(2)]}
            for each in range(ROWS)
        ]
        disposition: Any = {"disposition": "merge", "strategy": strategy} if merges else "replace"
        return dlt.resource(
            rows, name=f"part_{number}", primary_key="id" if merges else None, write_disposition=disposition
        )

    return [resource(number) for number in range(PARTS)]


def held(pipeline: Pipeline) -> dict[str, int]:
    return {
        table: count(pipeline, table)
        for number in range(PARTS)
        for table in (f"part_{number}", f"part_{number}__lines")
    }


def expected(runs: int) -> dict[str, int]:
    rows = {number: ROWS + (runs - 1) * ROWS // 2 if number % 2 == 0 else ROWS for number in range(PARTS)}
    return {
        **{f"part_{number}": each for number, each in rows.items()},
        **{f"part_{number}__lines": 2 * each for number, each in rows.items()},
    }


@pytest.fixture
def postgres(make_database: Callable[[str], str], own_folder: Path) -> Callable[..., Pipeline]:
    def make(name: str = "shop", **options: Any) -> Pipeline:
        return dlt.pipeline(
            name,
            pipelines_dir=str(own_folder / "pipelines"),
            destination=dlt.destinations.postgres(
                make_database(own_folder.name), replace_strategy="insert-from-staging", **options
            ),
            dataset_name="shop_data",
        )

    return make


def staging_datasets(pipeline: Pipeline) -> set[str]:
    with pipeline.sql_client() as client:
        found = client.execute_sql(
            "SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE '%staging%'"
        )
    return {str(row[0]) for row in found or ()}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_merges_and_replaces_at_the_same_time_on_postgres(postgres: Callable[..., Pipeline]) -> None:
    for run in range(2):
        create_run_pipeline_flow(postgres, lambda run=run: changing(run), decompose="parallel", verify=True)()
        assert held(postgres()) == expected(run + 1)
    assert staging_datasets(postgres()) == {f"shop_data_staging_part_{number}" for number in range(PARTS)}


@pytest.mark.usefixtures("prefect_api")
def test_merges_and_replaces_at_the_same_time_on_duckdb_that_the_pipeline_or_the_run_names(own_folder: Path) -> None:
    warehouse = dlt.destinations.duckdb(str(own_folder / "warehouse.duckdb"), replace_strategy="insert-from-staging")

    def pipeline(destination: Any = None) -> Pipeline:
        return dlt.pipeline(
            "shop", pipelines_dir=str(own_folder / "pipelines"), destination=destination, dataset_name="shop_data"
        )

    for run, (of_pipeline, of_run) in enumerate([(warehouse, None), (None, warehouse)]):
        load = create_run_pipeline_flow(
            partial(pipeline, of_pipeline), partial(changing, run), decompose="parallel", verify=True
        )
        load(destination=of_run)
        assert held(pipeline(warehouse)) == expected(run + 1)
        datasets = {name.rpartition(".")[2] for name in staging_datasets(pipeline(warehouse))}
        assert datasets == {f"shop_data_staging_part_{number}" for number in range(PARTS)}


@pytest.mark.usefixtures("prefect_api")
def test_one_staging_dataset_for_all_is_refused_where_it_would_be_used(postgres: Callable[..., Pipeline]) -> None:
    def shared() -> Pipeline:
        return postgres(staging_dataset_name_layout="all_staging")

    flow = create_run_pipeline_flow(shared, changing(0), decompose="parallel")

    with pytest.raises(SharedStagingError, match=r"'all_staging', without '%s'"):
        flow()
    assert not staging_datasets(postgres())
    assert len(flow.plan(write_disposition="append").components) == PARTS
    assert create_run_pipeline_flow(shared, changing(0), decompose="auto").plan().mode == "sequential"


def test_what_is_configured_of_the_staging_dataset_stays_its_beginning(
    postgres: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESTINATION__POSTGRES__STAGING_DATASET_NAME_LAYOUT", "stage_of_%s")
    base = postgres()

    part = derive(base, "shop__orders", "orders", ("orders",))

    assert part.destination_client().config.staging_dataset_name_layout == "stage_of_%s_orders"
    assert base.destination_client().config.staging_dataset_name_layout == "stage_of_%s"


def test_files_on_a_staging_destination_are_in_a_folder_of_the_part(own_folder: Path) -> None:
    base = dlt.pipeline(
        "staged",
        pipelines_dir=str(own_folder / "pipelines"),
        destination="redshift",
        staging=dlt.destinations.filesystem((own_folder / "files").as_uri()),
        dataset_name="shop_data",
    )

    part = derive(base, "staged__Orders", "Orders", ("Orders",))

    assert str(part.staging.config_params["bucket_url"]).endswith("/files/b7e8acdd_orders")
    assert str(base.staging.config_params["bucket_url"]).endswith("/files")
