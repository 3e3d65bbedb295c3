"""What tasks and flows take for others: all that the runner and `pipeline.run` take, and no secret into Prefect."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_dlt import create_run_pipeline_flow, create_run_pipeline_task, runner
from prefect_dlt.limits import LIMITS
from prefect_dlt.options import HELD_BACK, RUN_OPTIONS, RUNNER_OPTIONS
from tests.runtime.conftest import count
from tests.runtime.sources import shop

FACTORIES = [create_run_pipeline_task, create_run_pipeline_flow]


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


@pytest.mark.parametrize("factory", FACTORIES)
def test_tasks_and_flows_take_all_that_the_runner_takes_and_all_limits(factory: Any) -> None:
    assert set(RUNNER_OPTIONS) == parameters(runner) - {"pipeline"}
    assert {*RUNNER_OPTIONS, *LIMITS} - parameters(factory) == set()


def test_a_flow_takes_all_that_this_version_of_dlt_takes_for_a_run() -> None:
    taken = parameters(create_run_pipeline_flow(shop, shop).fn)

    assert set(RUN_OPTIONS) == parameters(Pipeline.run) - {"self", "data"}
    assert {*RUN_OPTIONS, "resources", "full_refresh"} - taken == set()
    assert set(HELD_BACK) - taken == set()


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    "mode", ["none", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("sequential", "parallel"))]
)
def test_a_run_may_say_where_it_loads_to_and_prefect_does_not_learn_how(own_folder: Path, mode: Any) -> None:
    stored: list[dict[str, Any]] = []

    def look_up(_flow: Any, flow_run: Any, _state: Any) -> None:
        with get_client(sync_client=True) as client:
            stored.append(client.read_flow_run(flow_run.id).parameters)

    def build() -> Pipeline:
        return dlt.pipeline("shop", pipelines_dir=str(own_folder / "pipelines"))

    file = own_folder / "s3cret.duckdb"
    schema = dlt.Schema("books")
    load = create_run_pipeline_flow(build, shop, decompose=mode).with_options(on_completion=[look_up])

    load(
        destination=dlt.destinations.duckdb(str(file)),
        credentials=str(file),
        dataset_name="another",
        schema=schema,
        write_disposition="append",
    )
    load(destination="duckdb", credentials=str(file), dataset_name="another", write_disposition="replace")

    target = dlt.pipeline("look", destination=dlt.destinations.duckdb(str(file)), dataset_name="another")
    assert (count(target, "orders"), count(target, "customers")) == (2, 3)
    with target.sql_client() as client:
        names = client.execute_sql("SELECT DISTINCT schema_name FROM _dlt_version")
    assert ("books",) in (names or [])
    # The one that was given is not written into, by several parts at a time.
    assert schema.data_table_names() == []
    first, second = stored
    assert (first["destination"], first["credentials"], first["schema"]) == ("<duckdb>", "<str>", "<Schema>")
    assert (second["destination"], second["staging"], second["dataset_name"]) == ("<str>", None, "another")
    assert "s3cret" not in str(stored)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_flow_with_other_options_still_runs_as_its_caller_and_holds_back_the_same(
    pipeline: Callable[..., Pipeline],
) -> None:
    widths: list[int | None] = []

    def source() -> Any:
        context = FlowRunContext.get()
        assert context is not None
        widths.append(getattr(context.task_runner, "_max_workers", None))
        return shop()

    load = create_run_pipeline_flow(pipeline, source).with_options(name="other")
    own = load.with_options(task_runner=ThreadPoolTaskRunner(max_workers=3))  # pyright: ignore[reportArgumentType]

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))  # pyright: ignore[reportArgumentType]
    def main() -> None:
        load(resources=["orders"])
        own(resources=["orders"])

    main()

    assert widths == [2, 3]
    assert load.serialize_parameters({"credentials": "s3cret"}) == {"credentials": "<str>"}
