"""Tasks that return what the run of a pipeline returns, importable from any process."""

from __future__ import annotations

from collections.abc import Iterator

import dlt
from dlt.common.pipeline import LoadInfo
from dlt.pipeline.pipeline import Pipeline
from prefect import task

from prefect_dlt import create_run_pipeline_task, runner

ROWS = [{"id": 1}, {"id": 2}]


def pipeline(folder: str, address: str) -> Pipeline:
    """Return a pipeline into PostgreSQL, whose address has a password in it."""
    return dlt.pipeline(
        "shop", pipelines_dir=folder, destination=dlt.destinations.postgres(address), dataset_name="shop_data"
    )


@task(log_prints=True, persist_result=True)
def load(folder: str, address: str) -> LoadInfo | None:
    """Load the rows, print what became of them, and return it."""
    info = runner(pipeline(folder, address)).run(ROWS, table_name="rows")
    print(info)  # noqa: T201 - it is what this is about
    return info


@task
def loads_of(info: LoadInfo) -> int:
    """Take it from another task."""
    return len(info.loads_ids)


@task
def break_off(folder: str, address: str) -> LoadInfo | None:
    """Fail to extract, because of a file that is not there."""

    def missing() -> Iterator[object]:
        yield ROWS
        raise FileNotFoundError(2, "No such file or directory", "orders.csv")

    return runner(pipeline(folder, address)).run(missing(), table_name="rows")


def made_task(folder: str, address: str) -> object:
    """Return the same as `load`, made by the package."""
    return create_run_pipeline_task(lambda: pipeline(folder, address), dlt.resource(ROWS, name="rows"))
