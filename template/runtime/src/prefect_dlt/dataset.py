"""Prepare a dataset for pipelines that load into it at the same time."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import tempfile
from collections.abc import Generator
from typing import cast

import dlt
from dlt.pipeline.pipeline import Pipeline
from tenacity import Retrying

from prefect_dlt.retry import RETRYABLE_STEPS
from prefect_dlt.runner import runner

# dlt imports these when it needs them; several threads that do so at once find half-imported modules.
_LAZY_IMPORTS = ("numpy", "pandas", "pyarrow", "pyarrow.parquet", "pyarrow.compute")


@contextlib.contextmanager
def shared_dataset(
    pipeline: Pipeline, dataset_name: str | None = None, retry_policy: Retrying | None = None
) -> Generator[None]:
    """Make it safe, inside, that pipelines in threads of this process load into the dataset of `pipeline` at once.

    An empty seed run creates what all first loads would otherwise race to create: the dataset and dlt's own tables.
    On DuckDB one connection stays open meanwhile: the last one to close detaches the file under the next one's feet.

    Args:
        pipeline: The pipeline that the others derive from.
        dataset_name: The dataset they load into; that of `pipeline` by default.
        retry_policy: How often the seed run is made again when it fails; not at all by default.
    """
    for module in _LAZY_IMPORTS:
        if importlib.util.find_spec(module.partition(".")[0]):
            importlib.import_module(module)
    with _seeded(pipeline, dataset_name or pipeline.dataset_name, retry_policy) as seed:
        is_duckdb = bool(seed.destination) and seed.destination.destination_type.endswith(".duckdb")
        with seed.sql_client() if is_duckdb else contextlib.nullcontext():
            yield


@contextlib.contextmanager
def _seeded(pipeline: Pipeline, dataset_name: str | None, retry_policy: Retrying | None) -> Generator[Pipeline]:
    """Create the dataset of a pipeline and dlt's own tables in it, and give the pipeline that did so."""
    # A working directory of its own, and gone afterwards: a seed run has nothing to remember.
    with tempfile.TemporaryDirectory(prefix="prefect-dlt-seed-") as folder:
        seed = dlt.pipeline(
            pipeline_name=f"_seed_{pipeline.pipeline_name}",
            pipelines_dir=folder,
            destination=pipeline.destination,
            staging=pipeline.staging,
            dataset_name=cast("str", dataset_name),
        )
        runner(seed, retry_policy=retry_policy, retry_pipeline_steps=RETRYABLE_STEPS).run([], table_name="seed")
        yield seed


def derive(pipeline: Pipeline, name: str) -> Pipeline:
    """Return a pipeline of another name, and so with a state of its own, that loads to the same place.

    Not `pipeline.drop(pipeline_name=…)`: that empties the working directory of the pipeline it derives from.
    """
    return dlt.pipeline(
        pipeline_name=name,
        pipelines_dir=pipeline.pipelines_dir,
        destination=pipeline.destination,
        staging=pipeline.staging,
        dataset_name=pipeline.dataset_name,
    )
