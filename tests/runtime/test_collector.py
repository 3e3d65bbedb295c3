"""What a run leaves in a real Prefect server."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import dlt
import prefect
import pytest
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import FlowRunContext, TaskRunContext
from tenacity import Retrying, stop_after_attempt

from prefect_dlt import PrefectCollector, runner
from tests.runtime.sources import shop


def artifacts_of(flow_run_id: UUID) -> dict[str, Artifact]:
    """Return the artifacts of a flow run by key; a key that comes twice is an error."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        )
    # Prefect keeps the results of tasks as artifacts without a key.
    keys = [artifact.key for artifact in found if artifact.key is not None]
    assert len(keys) == len(set(keys)), keys
    return {str(artifact.key): artifact for artifact in found if artifact.key is not None}


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
        stages = ("extract", "normalize", "load")
        assert set(artifacts) == {
            *(f"shop-{stage}" for stage in stages),
            *(f"shop-{stage}-report" for stage in stages),
            "shop-schema-changes",
            "shop-summary",
        }
        assert {artifact.task_run_id for artifact in artifacts.values()} == {task_run_id}
        for stage in stages:
            assert artifacts[f"shop-{stage}"].type == "progress"
            assert artifacts[f"shop-{stage}"].data == 100.0
            assert artifacts[f"shop-{stage}-report"].type == "markdown"
            assert str(artifacts[f"shop-{stage}-report"].description).startswith(f"{stage} done · ")
        assert "2 of 2 resources · 8 rows" in str(artifacts["shop-extract"].description)
        summary = artifacts["shop-summary"]
        assert summary.type == "markdown"
        assert str(summary.description).startswith("Loaded · 11 rows · 4 tables · ")
        assert "| `orders__items` | 3 |" in str(summary.data)
        for artifact in artifacts.values():
            if artifact.type == "markdown":
                assert f"| prefect | `{prefect.__version__}` |" in str(artifact.data)
                assert "| Memory, MiB | " in str(artifact.data)
        assert artifacts["shop-schema-changes"].description == "Schema changed · 4 new tables"

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

    def test_every_failed_attempt_leaves_a_report_and_the_summary_is_the_last(
        self, pipeline: Callable[..., Pipeline]
    ) -> None:
        runs: list[UUID] = []
        tries: list[int] = []

        @dlt.resource
        def orders() -> Iterator[Any]:
            tries.append(len(tries))
            raise ConnectionError(f"asleep at try {len(tries)}")
            yield

        @flow
        def main() -> None:
            runs.append(current_flow_run_id())
            policy = Retrying(stop=stop_after_attempt(2), reraise=True)
            runner(pipeline(progress=PrefectCollector()), retry_policy=policy, retry_pipeline_steps=["extract"]).run(
                orders
            )

        with pytest.raises(PipelineStepFailed):
            main()

        artifacts = artifacts_of(runs[0])
        assert set(artifacts) == {
            *("shop-extract", "shop-extract-report", "shop-summary"),
            *("shop-failed-attempt-1", "shop-failed-attempt-2"),
        }
        first, second = (artifacts[f"shop-failed-attempt-{number}"] for number in (1, 2))
        assert str(first.description).startswith("Attempt 1 of 2 failed in extract · ConnectionError: asleep at try 1")
        assert "asleep at try 1" in str(first.data)
        assert "The next attempt starts in 0.0 s, and begins with extract" in str(first.data)
        assert "asleep at try 2" in str(second.data)
        assert "No further attempt: the retry policy allows no more (2 attempts)." in str(second.data)
        for artifact in (first, second, artifacts["shop-summary"], artifacts["shop-extract-report"]):
            assert "| Retry policy | `2 attempts` |" in str(artifact.data)
        assert str(artifacts["shop-summary"].description).startswith("Failed in extract · ConnectionError: asleep")

    @pytest.mark.slow
    def test_a_first_load_of_many_tables_is_listed_in_table_artifacts(self, pipeline: Callable[..., Pipeline]) -> None:
        runs: list[UUID] = []

        @dlt.resource(table_name=lambda row: f"t_{row['id']:03}")
        def many() -> Iterator[Any]:
            yield [{"id": number} for number in range(60)]

        @flow
        def main() -> None:
            runs.append(current_flow_run_id())
            pipeline(progress=PrefectCollector()).run(many)

        main()

        artifacts = artifacts_of(runs[0])
        rows = {key: json.loads(str(artifact.data)) for key, artifact in artifacts.items() if artifact.type == "table"}
        assert {key: len(found) for key, found in rows.items()} == {
            "shop-normalize-tables": 60,
            "shop-load-tables": 60,
            "shop-summary-tables": 60,
            "shop-schema-columns": 180,
        }
        assert rows["shop-normalize-tables"][0] == {"Table": "t_000", "Rows": 1, "Files": 1, "Seconds": 0.0}

    def test_no_secret_is_in_any_artifact(
        self, pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        runs: list[UUID] = []
        secrets = {"api": "k9Qe77-orders", "password": "hunter2&co", "name": "Zq8rT5vW2x"}
        monkeypatch.setenv("SOURCES__ORDERS__API_KEY", secrets["api"])
        monkeypatch.setenv("SOURCES__ORDERS__TABLE_TOKEN", secrets["name"])

        @dlt.source(section="orders")
        def guarded(api_key: str = dlt.secrets.value, table_token: str = dlt.secrets.value) -> Any:
            @dlt.resource(name=f"orders_{table_token}")
            def orders() -> Iterator[Any]:
                yield {"id": 1, f"col {table_token}": 1}
                if api_key:
                    raise ConnectionError(f"401 for {api_key} at postgresql://ada:{secrets['password']}@db/shop")

            return orders

        @flow
        def main() -> None:
            runs.append(current_flow_run_id())
            policy = Retrying(stop=stop_after_attempt(2), reraise=True)
            collector = PrefectCollector()
            load = runner(pipeline(progress=collector), retry_policy=policy, retry_pipeline_steps=["extract"])
            load.run(guarded)

        with pytest.raises(PipelineStepFailed):
            main()

        artifacts = artifacts_of(runs[0])
        assert "shop-failed-attempt-2" in artifacts
        for artifact in artifacts.values():
            for secret in secrets.values():
                assert secret not in f"{artifact.key} {artifact.description} {artifact.data}"
        assert "401 for ***" in str(artifacts["shop-summary"].data)

    @pytest.mark.slow
    def test_a_thread_with_a_copy_of_the_context_reports_for_its_run(self, pipeline: Callable[..., Pipeline]) -> None:
        runs: list[UUID] = []

        @flow
        def main() -> None:
            runs.append(current_flow_run_id())
            load = partial(pipeline(progress=PrefectCollector()).run, shop())
            thread = threading.Thread(target=contextvars.copy_context().run, args=(load,))
            thread.start()
            thread.join()

        main()

        assert "shop-summary" in artifacts_of(runs[0])

    @pytest.mark.slow
    def test_steps_that_are_called_one_by_one_leave_one_summary(self, pipeline: Callable[..., Pipeline]) -> None:
        runs: list[UUID] = []

        @flow
        def main() -> None:
            runs.append(current_flow_run_id())
            shop_pipeline = pipeline(progress=PrefectCollector())
            shop_pipeline.extract(shop())
            shop_pipeline.normalize()
            shop_pipeline.load()

        main()

        artifacts = artifacts_of(runs[0])
        assert str(artifacts["shop-summary"].description).startswith("Loaded · 11 rows · 4 tables · ")
        assert {"shop-extract-report", "shop-normalize-report", "shop-load-report"} < set(artifacts)

    @pytest.mark.slow
    def test_one_collector_given_to_two_pipelines_reports_each_as_itself(
        self, pipeline: Callable[..., Pipeline], tmp_path: Path
    ) -> None:
        runs: list[UUID] = []
        collector = PrefectCollector()
        together = threading.Barrier(2, timeout=60)

        @task
        def load(name: str, rows: int) -> None:
            @dlt.resource(name=f"{name}_rows")
            def data() -> Iterator[Any]:
                together.wait()
                yield [{"id": number} for number in range(rows)]
                together.wait()

            database = dlt.destinations.duckdb(str(tmp_path / f"{name}_file.duckdb"))
            options = {"pipelines_dir": str(tmp_path / name), "destination": database, "dataset_name": "d"}
            dlt.pipeline(name, progress=collector, **options).run(data)

        @flow
        def main() -> None:
            runs.append(current_flow_run_id())
            for future in [load.submit("one", 1), load.submit("two", 2)]:
                future.result()

        main()

        artifacts = artifacts_of(runs[0])
        assert "| `one_rows` | 1 |" in str(artifacts["one-summary"].data)
        assert "| `two_rows` | 2 |" in str(artifacts["two-summary"].data)
        assert artifacts["one-summary"].task_run_id != artifacts["two-summary"].task_run_id

    @pytest.mark.slow
    def test_a_pipeline_that_ends_leaves_the_artifacts_of_its_neighbour_in_the_same_run_alone(
        self, pipeline: Callable[..., Pipeline]
    ) -> None:
        runs: list[UUID] = []
        long_began, short_ended = threading.Event(), threading.Event()

        @dlt.resource
        def orders() -> Iterator[Any]:
            yield [{"id": 1}]
            long_began.set()
            assert short_ended.wait(60)
            yield [{"id": 2}]

        @flow
        def main() -> None:
            runs.append(current_flow_run_id())
            long, short = (pipeline(name, progress=PrefectCollector()) for name in ("long", "short"))
            thread = threading.Thread(target=contextvars.copy_context().run, args=(long.run, orders))
            thread.start()
            assert long_began.wait(60)
            short.run([{"id": 3}], table_name="returns")
            short_ended.set()
            thread.join()

        main()

        artifacts = artifacts_of(runs[0])
        assert artifacts["long-extract"].data == 100
        assert str(artifacts["long-summary"].description).startswith("Loaded · 2 rows")
        assert str(artifacts["short-summary"].description).startswith("Loaded · 1 row")

    def test_an_async_flow_reports_as_well(self, pipeline: Callable[..., Pipeline]) -> None:
        runs: list[UUID] = []

        @flow
        async def main() -> None:
            runs.append(current_flow_run_id())
            pipeline(progress=PrefectCollector()).run(shop())

        asyncio.run(main())

        assert "shop-summary" in artifacts_of(runs[0])

    @pytest.mark.slow
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

    @pytest.mark.slow
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


@pytest.mark.slow
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


def current_flow_run_id() -> UUID:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.id
