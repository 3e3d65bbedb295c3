"""Prepare a dataset for pipelines that load into it at the same time."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import tempfile
from collections.abc import Collection, Generator
from pathlib import Path
from typing import Any

import dlt
from dlt.pipeline.pipeline import Pipeline
from tenacity import Retrying

from prefect_dlt.capabilities import with_remembered_capabilities
from prefect_dlt.configuration import RunnerSettings
from prefect_dlt.errors import ConfigurationError
from prefect_dlt.own_schema import with_own_schema
from prefect_dlt.retry import RETRYABLE_STEPS
from prefect_dlt.runner import PipelineRunner
from prefect_dlt.scoped_config import Scope, scoped_config
from prefect_dlt.staging import StagingAreas, with_own_staging
from prefect_dlt.turns import taking_turns

# dlt imports these when it needs them; several threads that do so at once find half-imported modules.
_LAZY_IMPORTS = ("numpy", "pandas", "pyarrow", "pyarrow.parquet", "pyarrow.compute")


@contextlib.contextmanager
def shared_dataset(
    pipeline: Pipeline, retry_policy: Retrying | None = None, *, elsewhere: bool = False
) -> Generator[None]:
    """Make it safe, inside, that several pipelines load into the dataset of `pipeline` at once.

    An empty seed run creates what all first loads would otherwise race to create: the dataset and dlt's own tables.
    On DuckDB one connection stays open meanwhile: the last one to close detaches the file under the next one's feet.

    Args:
        pipeline: The pipeline that the others derive from.
        retry_policy: How often the seed run is made again when it fails; not at all by default.
        elsewhere: Whether the others are in other processes, which could not open the DuckDB file meanwhile.
    """
    for module in _LAZY_IMPORTS:
        if importlib.util.find_spec(module.partition(".")[0]):
            importlib.import_module(module)
    seeded = _seeded(pipeline, retry_policy)
    if elsewhere:
        with seeded:
            pass
        yield
        return
    with seeded as seed, seed.sql_client() if _is_duckdb(seed) else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _seeded(pipeline: Pipeline, retry_policy: Retrying | None) -> Generator[Pipeline]:
    """Create the dataset of a pipeline and dlt's own tables in it, and give the pipeline that did so."""
    name = f"_seed_{pipeline.pipeline_name}"
    # A working directory of its own, and gone afterwards: a seed run has nothing to remember. Where the destination is
    # may be configured for the pipeline alone.
    with (
        tempfile.TemporaryDirectory(prefix="prefect-dlt-seed-") as folder,
        scoped_config(name, Scope(base=pipeline.pipeline_name)),
    ):
        seed = dlt.pipeline(
            pipeline_name=name,
            pipelines_dir=folder,
            destination=pipeline.destination,
            staging=pipeline.staging,
            dataset_name=pipeline.dataset_name,
        )
        # Not as the configuration says: its traces are not worth storing, and there is nothing in it to verify.
        settings = RunnerSettings(retry_policy=retry_policy, retry_pipeline_steps=RETRYABLE_STEPS)
        with taking_turns(seed):
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


def derive(
    pipeline: Pipeline,
    name: str,
    component: str,
    resources: Collection[str],
    staging_areas: StagingAreas | None = None,
) -> Pipeline:
    """Return a pipeline of another name, and so with a state of its own, that loads to the same place.

    It has a staging area of its own, and restores the schema that it has stored itself. Not
    `pipeline.drop(pipeline_name=…)`: that empties the working directory of the pipeline it derives from.

    Args:
        pipeline: The pipeline that it derives from.
        name: What it is called.
        component: The part of the source that it loads.
        resources: All resources of that part, those that are not selected too.
        staging_areas: What the staging areas of `pipeline` are called, where that is known.
    """
    destination, staging = with_own_staging(pipeline, component, staging_areas)
    return dlt.pipeline(
        pipeline_name=name,
        pipelines_dir=pipeline.pipelines_dir,
        destination=_for_one_part(destination, resources) if destination is not None else None,
        staging=staging,
        dataset_name=pipeline.dataset_name,
    )


def _for_one_part(destination: Any, resources: Collection[str]) -> Any:
    return with_remembered_capabilities(with_own_schema(destination, resources))
