"""Tasks that load a small source, importable from any process, each into a DuckDB file of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dlt
from dlt.pipeline.pipeline import Pipeline
from prefect import task
from prefect.context import TaskRunContext
from tenacity import Retrying, stop_after_attempt

from prefect_dlt import PrefectCollector, create_run_pipeline_task

ROWS = 100


@dataclass
class Told:
    """What a task says of itself: its task run, its process, and what was warned of meanwhile."""

    task_run_id: str
    process: int
    warnings: list[str] = field(default_factory=list[str])


@dlt.source
def shop() -> Any:
    """Orders, each with two lines."""

    @dlt.resource
    def orders() -> Iterator[Any]:
        yield [{"id": number, "lines": [{"sku": "a"}, {"sku": "b"}]} for number in range(ROWS)]

    return orders


def shaky_shop(folder: str) -> Any:
    """Build the same source, but fail at the first call."""
    been_here = Path(folder) / "been_here"
    if not been_here.exists():
        been_here.touch()
        raise ConnectionError("the shop does not answer")
    return shop()


def build_pipeline(folder: str, name: str, collector: PrefectCollector | None = None) -> Pipeline:
    """Return a pipeline into a file of its own: DuckDB lets one process write at a time."""
    return dlt.pipeline(
        name,
        pipelines_dir=f"{folder}/pipelines",
        destination=dlt.destinations.duckdb(f"{folder}/{name}.duckdb"),
        dataset_name="shop_data",
        progress=collector or PrefectCollector(),
    )


@task
def load(folder: str, name: str, collector: PrefectCollector | None = None) -> Told:
    with told() as result:
        build_pipeline(folder, name, collector).run(shop())
    return result


@task
async def load_async(folder: str, name: str) -> Told:
    with told() as result:
        build_pipeline(folder, name).run(shop())
    return result


@task
def load_in_vain(folder: str, name: str) -> None:
    @dlt.resource
    def orders() -> Iterator[Any]:
        raise ConnectionError("the line to postgres://ada:s3cret@db/shop is dead")
        yield

    build_pipeline(folder, name).run(orders)


def task_with_factories(folder: str, name: str) -> Any:
    """Return a task that builds pipeline and source where it runs, and needs a second attempt."""
    return create_run_pipeline_task(
        partial(build_pipeline, folder, name),
        partial(shaky_shop, folder),
        retry_policy=Retrying(stop=stop_after_attempt(2), reraise=True),
        retry_pipeline_steps=["extract", "normalize", "load"],
    )


@contextmanager
def told() -> Iterator[Told]:
    """Yield what the current task says of itself, and write down in it what is warned of inside."""
    context = TaskRunContext.get()
    assert context is not None
    result = Told(str(context.task_run.id), os.getpid())
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: result.warnings.append(record.getMessage())  # type: ignore[method-assign]
    # Those that hand nothing on to the root logger, and the root logger for all others.
    loggers = [logging.getLogger(name) for name in ("", "dlt", "prefect", "prefect.flow_runs", "prefect.task_runs")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield result
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
