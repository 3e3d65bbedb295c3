"""Prepare a dataset for pipelines that load into it at the same time."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import dlt
from dlt.pipeline.pipeline import Pipeline
from tenacity import Retrying

from prefect_dlt.configuration import RunnerSettings
from prefect_dlt.errors import ConfigurationError
from prefect_dlt.retry import RETRYABLE_STEPS
from prefect_dlt.runner import PipelineRunner

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
    seeded = _seeded(pipeline, dataset_name or pipeline.dataset_name, retry_policy)
    with seeded as seed, seed.sql_client() if _is_duckdb(seed) else contextlib.nullcontext():
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
        # Not as the configuration says: its traces are not worth storing, and there is nothing in it to verify.
        settings = RunnerSettings(retry_policy=retry_policy, retry_pipeline_steps=RETRYABLE_STEPS)
        PipelineRunner(seed, settings).run([], table_name="seed")
        yield seed


def check_dataset_name(pipeline: Pipeline) -> None:
    """Refuse a dataset that DuckDB would take for the database that it is in.

    Raises:
        ConfigurationError: If the dataset is called as the file of the database is. DuckDB answers "Ambiguous reference
            to catalog or schema", and dlt takes that for a race that a retry may win.
    """
    if not _is_duckdb(pipeline):
        return
    database: Any = pipeline.destination_client().config.credentials
    if Path(str(database.database)).stem.lower() == str(pipeline.dataset_name).lower():
        expected = f"DuckDB calls the database in {database.database} so too, and cannot tell them apart; rename either"
        raise ConfigurationError("dataset_name", pipeline.dataset_name, expected)


def _is_duckdb(pipeline: Pipeline) -> bool:
    return bool(pipeline.destination) and pipeline.destination.destination_type.endswith(".duckdb")


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
