"""What a run leaves in a real Prefect server."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import dlt
import pytest
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import FlowRunContext, TaskRunContext

from prefect_dlt import PrefectCollector
from prefect_dlt.collector import artifact_key
from tests.runtime.sources import shop


def artifacts_of(flow_run_id: UUID) -> dict[str, Artifact]:
    """Return the artifacts of a flow run by key; a key that comes twice is an error."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        )
    keys = [artifact.key for artifact in found]
    assert len(keys) == len(set(keys)), keys
    return {str(artifact.key): artifact for artifact in found}


@pytest.mark.usefixtures("prefect_api")
class TestArtifacts:
    def test_a_run_leaves_progress_per_stage_and_one_summary(self, pipeline: Callable[..., Pipeline]) -> None:
        runs: list[tuple[UUID, UUID]] = []

        @task
        def load() -> None:
            context = TaskRunContext.get()
            assert context is not None
            assert context.task_run.flow_run_id is not None
            runs.append((context.task_run.flow_run_id, context.task_run.id))
            pipeline(progress=PrefectCollector()).run(shop())

        @flow
        def main() -> None:
            load.submit().result()

        main()

        ((flow_run_id, task_run_id),) = runs
        artifacts = artifacts_of(flow_run_id)
        assert set(artifacts) == {"shop-extract", "shop-normalize", "shop-load", "shop-summary"}
        assert {artifact.task_run_id for artifact in artifacts.values()} == {task_run_id}
        for stage in ("extract", "normalize", "load"):
            assert artifacts[f"shop-{stage}"].type == "progress"
            assert artifacts[f"shop-{stage}"].data == 100.0
        assert "2 of 2 resources · 8 rows" in str(artifacts["shop-extract"].description)
        summary = artifacts["shop-summary"]
        assert summary.type == "markdown"
        assert str(summary.description).startswith("Loaded · 11 rows · 4 tables · ")
        assert "| `orders__items` | 3 |" in str(summary.data)

    def test_a_failed_run_leaves_its_error(self, pipeline: Callable[..., Pipeline]) -> None:
        runs: list[UUID] = []

        @dlt.resource
        def orders() -> Iterator[Any]:
            raise ConnectionError("the line to postgres://ada:s3cret@db/shop is dead")
            yield

        @flow
        def main() -> None:
            runs.append(current_flow_run_id())
            pipeline(progress=PrefectCollector()).run(orders)

        with pytest.raises(PipelineStepFailed):
            main()

        artifacts = artifacts_of(runs[0])
        assert "failed" in str(artifacts["shop-extract"].description)
        data = str(artifacts["shop-summary"].data)
        assert "Traceback" in data
        assert "is dead" in data
        assert "s3cret" not in data

    def test_an_async_flow_reports_as_well(self, pipeline: Callable[..., Pipeline]) -> None:
        runs: list[UUID] = []

        @flow
        async def main() -> None:
            runs.append(current_flow_run_id())
            pipeline(progress=PrefectCollector()).run(shop())

        asyncio.run(main())

        assert "shop-summary" in artifacts_of(runs[0])

    def test_a_second_run_is_a_new_version_of_the_same_artifact(self, pipeline: Callable[..., Pipeline]) -> None:
        runs: list[UUID] = []

        @flow
        def main() -> None:
            runs.append(current_flow_run_id())
            pipeline(progress=PrefectCollector()).run(shop())

        main()
        main()

        first, second = (artifacts_of(run)["shop-summary"] for run in runs)
        assert first.key == second.key
        assert first.id != second.id

    def test_a_pipeline_and_its_copy_each_report_as_their_own(self, pipeline: Callable[..., Pipeline]) -> None:
        runs: list[UUID] = []

        @flow
        def main() -> None:
            runs.append(current_flow_run_id())
            first = pipeline(progress=PrefectCollector(7.0))
            first.run(shop())
            # dlt copies the collector with the pipeline, here after a run.
            other = first.drop(pipeline_name="other")
            assert isinstance(other.collector, PrefectCollector)
            assert other.collector is not first.collector
            assert other.collector.log_period == 7.0
            other.run([{"id": 1}], table_name="returns")
            first.run([{"id": 9}, {"id": 10}], table_name="orders")

        main()

        with get_client(sync_client=True) as client:
            found = client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=runs)),
                sort=ArtifactSort.CREATED_DESC,
            )
        latest = {str(artifact.key): str(artifact.description) for artifact in reversed(found)}
        assert latest["shop-summary"].startswith("Loaded · 2 rows")
        assert latest["other-summary"].startswith("Loaded · 1 row")
        for stage in ("extract", "normalize", "load"):
            assert {f"shop-{stage}", f"other-{stage}"} <= set(latest)

    def test_progress_reaches_the_log_of_the_run(
        self, pipeline: Callable[..., Pipeline], caplog: pytest.LogCaptureFixture
    ) -> None:
        @flow
        def main() -> None:
            pipeline(progress=PrefectCollector()).run(shop())

        with caplog.at_level(logging.INFO, logger="prefect.flow_runs"):
            main()

        lines = [record.getMessage() for record in caplog.records if record.name == "prefect.flow_runs"]
        assert "load · 5 of 5 jobs" in lines


def test_outside_of_prefect_it_is_quiet_and_starts_nothing(own_folder: Path) -> None:
    program = textwrap.dedent(
        """
        import threading

        import dlt

        from prefect_dlt import PrefectCollector

        pipeline = dlt.pipeline(
            "quiet", destination=dlt.destinations.duckdb("quiet_file.duckdb"), progress=PrefectCollector()
        )
        pipeline.run([{"id": 1}], table_name="orders")
        print(sorted(thread.name for thread in threading.enumerate()))
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['MainThread']\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("shop", "extract"), "shop-extract"),
        (("a_b", "load"), "a-b-load"),
        (("shop__orders", "summary"), "shop--orders-summary"),
    ],
)
def test_a_plain_name_makes_a_readable_key(names: tuple[str, ...], key: str) -> None:
    assert artifact_key(*names) == key


def test_no_two_names_share_a_key() -> None:
    names = [
        "a_b",
        "a-b",
        "a--b",
        "a__b",
        "A_B",
        "a b",
        "ab",
        "käse",
        "kase",
        "x" * 80,
        "x" * 81,
        "日本",
        "中国",
        "_",
        "-",
    ]

    keys = [artifact_key(name, "extract") for name in names]

    assert len(set(keys)) == len(names)
    for key in keys:
        assert len(key) < 60
        assert key.replace("-", "").isalnum()
        assert key.isascii()
        assert key == key.lower()


def current_flow_run_id() -> UUID:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.id
