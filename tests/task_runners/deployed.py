"""Flows that are deployed, importable from any process."""

from __future__ import annotations

import os
from typing import Any

from dlt.pipeline.pipeline import Pipeline
from prefect import flow
from prefect.client.orchestration import get_client

from prefect_dlt import create_run_pipeline_flow
from tests.task_runners import parts

FOLDER = "DEPLOYED_FOLDER"
"""The variable in the environment that says which folder it is."""


def build_pipeline() -> Pipeline:
    """Return the pipeline."""
    return parts.into_postgres(os.environ[FOLDER])


def build_source() -> Any:
    """Return the source."""
    return parts.shop(os.environ[FOLDER], ["people", "places"])


load = create_run_pipeline_flow(
    build_pipeline,
    build_source,
    decompose="parallel",
    flow_name="load deployed shop",
    submit_to="load deployed shop/parts",
)


@flow
def another() -> None:
    """Do nothing with components."""


def deploy(pool: str, folder: str, limit: int | None = None) -> None:
    """Deploy both on a pool, as `parts`."""
    with get_client(sync_client=True) as client:
        for each, name in ((load, "load"), (another, "another")):
            client.create_deployment(
                client.create_flow(each),
                "parts",
                entrypoint=f"tests.task_runners.deployed.{name}",
                work_pool_name=pool,
                parameter_openapi_schema=each.parameters.model_dump_for_openapi(),
                concurrency_limit=limit,
                job_variables={"env": {FOLDER: folder}},
            )
