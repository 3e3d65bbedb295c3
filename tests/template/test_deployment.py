"""Generated projects at work: a Prefect server, a work pool, a worker, and deployments that run to the end."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import duckdb
import psycopg2
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, Log
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.template.conftest import Generate, users_environment
from tests.template.databases import shop_database
from tests.template.services import running

FLIGHTS = {"flights": 336_776, "airlines": 16, "airports": 1_458, "planes": 3_322, "weather": 26_115}

ARTIFACTS = (
    *("extract", "normalize", "load"),
    *("extract-report", "normalize-report", "load-report"),
    *("schema-changes", "summary"),
)
"""What a first load leaves for each pipeline, after its name."""


class Project:
    """A generated project with an environment of its own, that reports to a server."""

    def __init__(self, folder: Path, api: str, home: Path, **variables: str) -> None:
        own = {"PREFECT_API_URL": api, "PREFECT_HOME": str(home / ".prefect"), "DLT_DATA_DIR": str(home / "dlt")}
        self.folder = folder
        self.environment = {**users_environment(), **own, **variables}
        self.uv("sync", "--no-dev", "--python", sys.executable)

    def uv(self, *arguments: str) -> str:
        """Run uv in the project, as a user would; return what it printed."""
        done = subprocess.run(
            ["uv", *arguments],
            cwd=self.folder,
            env=self.environment,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"uv {' '.join(arguments)}\n{done.stdout}"
        return done.stdout

    def prefect(self, *arguments: str) -> str:
        """Run Prefect's command line in the project."""
        return self.uv("run", "--no-sync", "prefect", *arguments)


def deploy_and_run(project: Project, name: str, client: SyncPrefectClient) -> FlowRun:
    """Make the work pool, deploy everything, and have a worker run the deployment once; return the finished run."""
    project.prefect("work-pool", "create", "--type", "process", f"pool-{name}")
    project.prefect("--no-prompt", "deploy", "--all")
    worker = ["uv", "run", "--no-sync", "prefect", "worker", "start", "--pool", f"pool-{name}"]
    log = project.folder.parent / "worker.log"
    with running(worker, log, cwd=project.folder, env={**project.environment, "PREFECT_WORKER_QUERY_SECONDS": "1"}):
        # --watch ends with the run, with an error when it failed.
        try:
            project.prefect("deployment", "run", f"{name}/load", "--watch", "--watch-interval", "1")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{log.read_text(errors='replace')}") from None
    (run,) = client.read_flow_runs(limit=1, sort="START_TIME_DESC")  # type: ignore[arg-type]
    assert run.state is not None
    assert run.state.is_completed(), run.state
    return run


def artifact_keys(client: SyncPrefectClient, flow_run_id: UUID) -> set[str]:
    """Return the keys of the artifacts of a flow run."""
    filters = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    return {str(artifact.key) for artifact in client.read_artifacts(artifact_filter=filters)}


def summary_of(client: SyncPrefectClient, flow_run_id: UUID) -> str:
    """Return the page about the run of a flow run's only pipeline."""
    filters = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    found = client.read_artifacts(artifact_filter=filters)
    (page,) = [str(artifact.data) for artifact in found if str(artifact.key).endswith("-summary")]
    return page


def logs_of(client: SyncPrefectClient, flow_run_id: UUID) -> list[Log]:
    """Return all lines in the log of a flow run, those of its tasks included."""
    lines: list[Log] = []
    while page := client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])), 200, len(lines)):
        lines += page
    return lines


def task_run_ids(client: SyncPrefectClient, flow_run_id: UUID) -> set[UUID | None]:
    """Return the task runs of a flow run."""
    runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
    return {run.id for run in runs}


LOAD_THREADS_SPEAK = """

# dlt writes nothing on its load threads as long as all goes well.
import threading
from dlt.common import logger
from dlt.destinations.impl.duckdb.duck import DuckDbCopyJob

def run(self, run=DuckDbCopyJob.run):
    logger.info("%s on %s", self.file_name(), threading.current_thread().name)
    run(self)

DuckDbCopyJob.run = run
"""


@pytest.fixture
def client(prefect_server: str) -> SyncPrefectClient:
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        return get_client(sync_client=True)


def test_the_demo_is_deployed_and_runs_in_a_worker(
    generate: Generate, tmp_path: Path, prefect_server: str, client: SyncPrefectClient
) -> None:
    project = Project(generate(project_name="flights", source="demo"), prefect_server, tmp_path / "home")
    with (project.folder / "flows" / "load.py").open("a", encoding="utf-8") as program:
        program.write(LOAD_THREADS_SPEAK)

    run = deploy_and_run(project, "flights", client)

    with duckdb.connect(str(project.folder / "data" / "local-warehouse.duckdb"), read_only=True) as connection:
        counts = {table: connection.execute(f"SELECT count(*) FROM flights.{table}").fetchone() for table in FLIGHTS}
        without_load_id = connection.execute(
            "SELECT count(*) FROM flights.flights WHERE _dlt_load_id IS NULL"
        ).fetchone()
    assert {table: found[0] for table, found in counts.items() if found} == FLIGHTS
    assert without_load_id == (0,)
    # Of a first load of so many columns, all are in a list.
    kinds = (*ARTIFACTS, "schema-columns", "flow-report")
    assert artifact_keys(client, run.id) == {f"flights-{kind}" for kind in kinds}
    summary = summary_of(client, run.id)
    for name, value in {"Flow run": run.name, "Deployment": "flights/load", "Work pool": "pool-flights"}.items():
        assert f"| {name} | `{value}` |" in summary
    logs = logs_of(client, run.id)
    (task_run_id,) = task_run_ids(client, run.id)
    of_load_threads = [line for line in logs if "on dlt-pool-" in line.message]
    loaded = Counter(line.message.partition(".")[0] for line in of_load_threads)
    assert loaded == Counter(["_dlt_pipeline_state", *FLIGHTS])
    assert {(line.name, line.task_run_id) for line in of_load_threads} == {("dlt", task_run_id)}
    assert any(line.name == "dlt" and line.message.startswith("Created new load package") for line in logs)
    assert not [line.message for line in logs if "|[INFO]|" in line.message]
    output = (project.folder.parent / "worker.log").read_text(encoding="utf-8", errors="replace").splitlines()
    in_terminal = [line for line in output if "on dlt-pool-" in line and "|[INFO]|" in line]
    assert len(in_terminal) == len(of_load_threads)


def test_a_database_taken_apart_is_deployed_and_runs_in_a_worker(
    generate: Generate,
    tmp_path: Path,
    prefect_server: str,
    client: SyncPrefectClient,
    make_database: Callable[[str], str],
) -> None:
    warehouse = make_database("warehouse-of-a-deployment")
    project = Project(
        generate(project_name="shop", source="sql_database", destination="postgres", decompose="parallel"),
        prefect_server,
        tmp_path / "home",
        SOURCES__SQL_DATABASE__CREDENTIALS=shop_database("sqlite", tmp_path, make_database, "unused"),
        DESTINATION__POSTGRES__CREDENTIALS=warehouse,
    )

    run = deploy_and_run(project, "shop", client)

    with psycopg2.connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT (SELECT count(*) FROM shop.items), (SELECT count(*) FROM shop.orders)")
        assert cursor.fetchone() == (3, 1000)
    of_parts = {f"shop--{part}-{kind}" for part in ("items", "orders") for kind in ARTIFACTS}
    # A part that was loaded within 5 seconds has its summary alone.
    summaries = {f"shop--{part}-summary" for part in ("items", "orders")}
    assert {*summaries, "shop-flow-report"} <= artifact_keys(client, run.id) <= {*of_parts, "shop-flow-report"}
    of_dlt = Counter(line.task_run_id for line in logs_of(client, run.id) if line.name == "dlt")
    assert set(of_dlt) >= task_run_ids(client, run.id)
