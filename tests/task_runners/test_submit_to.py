"""Parts of a source in flow runs of their own, on two workers that share nothing but Prefect's API and a database."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from prefect import Flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import TerminationSignal
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled

from prefect_dlt import create_run_pipeline_flow, signs_of_life, submit_to
from prefect_dlt.decompose import derived_name
from prefect_dlt.errors import CallableNeededError, ComponentsFailedError, ConfigurationError
from tests.task_runners import deployed, parts
from tests.task_runners.ends import terminated_at

ROOT = Path(__file__).parents[2]
NAMES = ["people", "places"]
POOL = "hosts"

PULLED_FUNCTIONS = """
from tests.task_runners import deployed

def build_pipeline():
    return deployed.build_pipeline()

def build_source():
    return deployed.build_source()
"""

PULLED_FLOW = f"""
from prefect_dlt import create_run_pipeline_flow
from pulled_functions import build_pipeline, build_source

load = create_run_pipeline_flow(
    build_pipeline, build_source, decompose="parallel", flow_name="load pulled shop", submit_to="{POOL}"
)
"""


class Host:
    """A worker with a folder and a dlt home of its own, as on a machine of its own; it takes one flow run at a time."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.home = folder / name
        self.home.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
        settings = {
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DLT_DATA_DIR": str(self.home / "dlt"),
            "PYTHONPATH": str(ROOT),
            "LOAD__WORKERS": "1",
        }
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--name", self.name, "--limit", "1"],
                cwd=self.home,
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """End it, and all that it has started, as a power cut does."""
        assert self.process is not None
        worker = psutil.Process(self.process.pid)
        for each in [worker, *worker.children(recursive=True)]:
            each.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.kill()


@pytest.fixture(scope="module")
def pool(prefect_api: None) -> str:
    """A work pool."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    return POOL


@pytest.fixture(scope="module")
def database(make_database: Callable[[str], str]) -> Iterator[str]:
    """The address of a database, in the environment of this process and of the workers that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        url = make_database("submitted")
        patch.setenv("DESTINATION__POSTGRES__CREDENTIALS", url)
        yield url


@pytest.fixture(scope="module")
def hosts(pool: str, database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Two hosts, which are there for all tests."""
    folder = tmp_path_factory.mktemp("hosts")
    both = [Host("one", folder), Host("two", folder)]
    for host in both:
        host.start()
    yield both
    for host in both:
        host.stop()


def flow_of(folder: Path, target: str = POOL, **options: Any) -> Flow[..., Any]:
    """Return a flow that loads two parts, added to what is there."""
    return create_run_pipeline_flow(
        functools.partial(parts.into_postgres, str(folder)),
        functools.partial(parts.shop, str(folder), NAMES, options.pop("together", False)),
        decompose=options.pop("decompose", "parallel"),
        flow_name="load shop",
        submit_to=target,
        **options,
    )


def loaded(database: str, folder: Path) -> dict[str, tuple[int, int]]:
    """Return how many rows each table has, and how many different ones."""
    found: dict[str, tuple[int, int]] = {}
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        for name in NAMES:
            cursor.execute(f'SELECT count(*), count(DISTINCT id) FROM "{folder.name}".{name}')
            found[name] = cursor.fetchall()[0]
            cursor.execute(
                f'SELECT count(*), count(DISTINCT (id, line)) FROM "{folder.name}".{name}__lines AS l '
                f'JOIN "{folder.name}".{name} AS p ON l._dlt_parent_id = p._dlt_id'
            )
            found[f"{name}__lines"] = cursor.fetchall()[0]
    # And none without a parent.
    for name in NAMES:
        assert rows_of(database, folder, f"{name}__lines") == [found[f"{name}__lines"][0]]
    return found


def rows_of(database: str, folder: Path, *tables: str) -> list[int]:
    """Return how many rows tables have."""
    found: list[int] = []
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f'SELECT count(*) FROM "{folder.name}".{table}')
            found.append(int(cursor.fetchall()[0][0]))
    return found


def each_once(count: int) -> dict[str, tuple[int, int]]:
    return {table: (rows, rows) for name in NAMES for table, rows in ((name, count), (f"{name}__lines", 2 * count))}


def children(flow_run_name: str) -> list[FlowRun]:
    """Return the flow runs of the parts, by name."""
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs(limit=200) if run.name.endswith(f" of {flow_run_name}")]
    return sorted(runs, key=lambda run: run.name)


def wait_until(holds: Callable[[], Any]) -> None:
    ends_at = time.monotonic() + parts.LONG
    while not holds():
        assert time.monotonic() < ends_at
        time.sleep(0.5)  # each look reads up to 200 flow runs


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_an_object_is_refused_when_the_flow_is_made(tmp_path: Path) -> None:
    pipeline = parts.into_duckdb(str(tmp_path))
    with pytest.raises(CallableNeededError, match=r"Flow runs of 'hosts'[\s\S]*def build_pipeline"):
        create_run_pipeline_flow(pipeline, parts.shop, decompose=True, submit_to="hosts")
    with pytest.raises(CallableNeededError, match="a lambda"):
        create_run_pipeline_flow(lambda: pipeline, parts.shop, decompose=True, submit_to="hosts")
    with pytest.raises(CallableNeededError, match="Flow runs of 'load/parts'"):
        create_run_pipeline_flow(pipeline, parts.shop, decompose=True, submit_to="load/parts")


def test_parts_in_turn_cannot_be_submitted(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="share one working directory"):
        flow_of(tmp_path, decompose="sequential")
    with pytest.raises(ConfigurationError, match="submit_to cannot be ''"):
        flow_of(tmp_path, "")


def test_a_pool_or_deployment_that_is_not_there_is_refused(pool: str, database: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no work pool of that name \(there are: hosts\)"):
        flow_of(tmp_path, "nowhere", decompose="none")()
    with pytest.raises(ConfigurationError, match="no deployment of that name"):
        flow_of(tmp_path, "no/where", decompose="none")()


def test_what_is_refused_leaves_what_was_loaded(pool: str, database: str, tmp_path: Path) -> None:
    create_run_pipeline_flow(
        functools.partial(parts.into_postgres, str(tmp_path)),
        functools.partial(parts.shop, str(tmp_path), NAMES),
        decompose="parallel",
    )()

    with pytest.raises(ConfigurationError, match="no work pool of that name"):
        flow_of(tmp_path, "nowhere")(full_refresh=True)

    assert loaded(database, tmp_path) == each_once(parts.ROWS)


def test_a_deployment_of_another_flow_is_refused(pool: str, database: str, tmp_path: Path) -> None:
    deployed.deploy(POOL, str(tmp_path))

    with pytest.raises(ConfigurationError, match="its flow takes no component"):
        flow_of(tmp_path, "another/parts", decompose="none")()


def run_on_pool(load: Flow[..., Any]) -> Any:
    """Run a flow here, in a flow run that a worker of the pool would have taken; return its state."""
    with get_client(sync_client=True) as client:
        deployment_id = client.create_deployment(client.create_flow(load), "on the pool", work_pool_name=POOL)
        flow_run = client.create_flow_run_from_deployment(deployment_id)
    return run_flow(load, flow_run=flow_run, parameters={}, return_type="state")


def test_a_pool_with_no_room_beside_this_flow_run_is_refused(pool: str, database: str, tmp_path: Path) -> None:
    deployed.deploy(POOL, str(tmp_path))
    targets = [POOL, "load deployed shop/parts"]
    with get_client(sync_client=True) as client:
        client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=1))
        try:
            states = [run_on_pool(flow_of(tmp_path, target, decompose="none")) for target in targets]
        finally:
            client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=None))

    for state in states:
        with pytest.raises(ConfigurationError, match=r"the only place .* prefect work-pool set-concurrency-limit"):
            state.result()


@pytest.mark.parametrize(
    ("is_paused", "advice"),
    [(False, "has none. Start one: prefect worker start --pool idle"), (True, "prefect work-pool resume idle")],
)
def test_it_is_told_why_no_worker_takes_a_part(
    is_paused: bool,
    advice: str,
    pool: str,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(submit_to, "TELLS_AFTER", 0.0)
    monkeypatch.setattr(submit_to, "POLL_SECONDS", 0.1)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="idle", type="process", is_paused=is_paused), overwrite=True)

        def cancel_when_told(seconds: float) -> None:
            if len(caplog.messages) > 1 or len(looks) > 100:
                for each in children(f"idle {is_paused}"):
                    client.set_flow_run_state(each.id, Cancelled(), force=True)
            looks.append(seconds)

        looks: list[float] = []
        monkeypatch.setattr(submit_to, "pause", cancel_when_told)
        caplog.set_level("WARNING", "prefect_dlt")
        with pytest.raises(ComponentsFailedError, match="2 of 2 parts of 'load shop' were not loaded"):
            flow_of(tmp_path, "idle").with_options(flow_run_name=f"idle {is_paused}")()

    (told,) = [message for message in caplog.messages if "wait for a worker" in message]
    assert told.startswith("2 of the components' flow runs")
    assert advice in told


def test_flow_runs_are_cancelled_when_not_all_can_be_submitted(
    pool: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="idle", type="process"), overwrite=True)
    run_deployment, submitted = submit_to.run_deployment, list[str]()

    def lose_the_api(*args: Any, **options: Any) -> Any:
        if submitted:
            raise ConnectionError("the API is away")
        submitted.append(options["flow_run_name"])
        return run_deployment(*args, **options)

    monkeypatch.setattr(submit_to, "run_deployment", lose_the_api)
    with pytest.raises(ConnectionError):
        flow_of(tmp_path, "idle").with_options(flow_run_name="half")()

    assert submitted
    assert [(run.name, run.state.is_cancelled()) for run in children("half") if run.state] == [(submitted[0], True)]


# -- on two hosts ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_part_is_loaded_where_a_worker_takes_it(hosts: list[Host], database: str, tmp_path: Path) -> None:
    # Each waits until the other one extracts as well: with one run for each worker, they are on both.
    load = flow_of(tmp_path, together=True, verify=True)

    result = load.with_options(flow_run_name="wide")()

    assert [part.name for part in result.components] == NAMES
    assert [part.pipeline_name for part in result.components] == [derived_name(tmp_path.name, name) for name in NAMES]
    assert {table.name: table.rows for table in result.tables} == {
        "people": 40, "people__lines": 80, "places": 40, "places__lines": 80,
    }  # fmt: skip
    assert all(part.seconds > 0 and part.load_info is None for part in result.components)
    assert loaded(database, tmp_path) == each_once(40)
    homes = {(tmp_path / f"extracts_{name}").read_text(encoding="utf-8") for name in NAMES}
    assert homes == {str(host.home / "dlt") for host in hosts}
    assert [run.name for run in children("wide")] == ["people of wide", "places of wide"]
    with get_client(sync_client=True) as client:
        assert len([each for each in client.read_deployments() if each.name == POOL]) == 1


@pytest.mark.slow
def test_a_part_that_fails_fails_the_flow_with_its_message_after_the_others(
    hosts: list[Host], database: str, tmp_path: Path
) -> None:
    (tmp_path / "fails_people").touch()

    with pytest.raises(ComponentsFailedError) as raised:
        flow_of(tmp_path)()

    assert set(raised.value.failures) == {"people"}
    assert "the line to mysql://" in raised.value.failures["people"]
    assert "s3cret" not in str(raised.value)
    assert raised.value.loaded == ("places",)
    assert rows_of(database, tmp_path, "places", "places__lines") == [40, 80]


@pytest.mark.slow
def test_what_is_refreshed_in_one_attempt_is_not_dropped_by_the_next(
    hosts: list[Host], database: str, tmp_path: Path
) -> None:
    fails = tmp_path / "fails_people"
    fails.touch()

    def mend() -> None:
        wait_until(lambda: [run for run in children("anew") if run.state and run.state.is_completed()])
        wait_until(lambda: [run for run in children("anew") if run.state and run.state.is_failed()])
        fails.unlink()

    mends = threading.Thread(target=mend)
    mends.start()
    flow_of(tmp_path).with_options(flow_run_name="anew", retries=1, retry_delay_seconds=5)(full_refresh=True)
    mends.join()

    assert [run.name for run in children("anew")] == [*["people of anew"] * 2, "places of anew"]
    assert loaded(database, tmp_path) == each_once(parts.ROWS)


@pytest.mark.slow
def test_a_deployment_of_the_same_flow_loads_the_parts_too(
    hosts: list[Host], database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(deployed.FOLDER, str(tmp_path))
    deployed.deploy(POOL, str(tmp_path))

    result = deployed.load(write_disposition="replace")

    assert [part.pipeline_name for part in result.components] == [derived_name(tmp_path.name, name) for name in NAMES]
    assert loaded(database, tmp_path) == each_once(40)


@pytest.mark.slow
def test_flow_runs_of_other_parts_are_cancelled_when_one_fails(
    hosts: list[Host], database: str, tmp_path: Path
) -> None:
    (tmp_path / "fails_people").touch()
    (tmp_path / "waits_places").touch()

    with pytest.raises(ComponentsFailedError) as raised:
        flow_of(tmp_path, together=True, on_failure="cancel")()

    assert (tmp_path / "told_places").exists()
    assert [(each.name, each.outcome) for each in raised.value.results] == [
        ("people", "failed"),
        ("places", "interrupted"),
    ]


@pytest.mark.slow
def test_flow_runs_of_parts_have_the_code_and_the_settings_of_a_flow_that_is_deployed(
    hosts: list[Host], database: str, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    # Nowhere but in the folder that the pull step of the deployment makes the current one.
    (code / "pulled_functions.py").write_text(PULLED_FUNCTIONS, encoding="utf-8")
    (code / "pulled_flow.py").write_text(PULLED_FLOW, encoding="utf-8")
    with get_client(sync_client=True) as client:
        client.create_deployment(
            client.create_flow_from_name("load pulled shop"),
            "daily",
            entrypoint="pulled_flow.py:load",
            work_pool_name=POOL,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(code)}}],
            job_variables={"env": {deployed.FOLDER: str(tmp_path)}},
        )

    run: Any = run_deployment("load pulled shop/daily", flow_run_name="pulled", timeout=parts.LONG, poll_interval=1)

    assert run.state.is_completed(), run.state.message
    assert loaded(database, tmp_path) == each_once(40)
    with get_client(sync_client=True) as client:
        submitted = {client.read_deployment(each.deployment_id).name for each in children("pulled")}
    assert submitted == {f"{POOL}, with the code of daily of load pulled shop"}


@pytest.mark.slow
def test_flow_runs_of_parts_are_cancelled_with_the_flow(hosts: list[Host], database: str, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"waits_{name}").touch()

    began = [tmp_path / f"extracts_{name}" for name in NAMES]
    with terminated_at(*began), pytest.raises(TerminationSignal):
        flow_of(tmp_path).with_options(flow_run_name="ended")()

    wait_until(lambda: all(run.state and run.state.is_cancelled() for run in children("ended")))
    assert len(children("ended")) == len(NAMES)
    assert all((tmp_path / f"told_{name}").exists() for name in NAMES)


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_costs_a_retry_and_no_row(
    hosts: list[Host], database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays = tmp_path / f"stays_{derived_name(tmp_path.name, 'people')}"
    stays.touch()
    killed: list[Host] = []
    half: list[int] = []

    def kill() -> None:
        parts.wait_for(tmp_path / "in_the_middle")
        home = (tmp_path / "in_the_middle").read_text(encoding="utf-8")
        (host,) = [host for host in hosts if home == str(host.home / "dlt")]
        host.kill()
        killed.append(host)
        half.extend(rows_of(database, tmp_path, "people", "people__lines"))
        stays.unlink()
        # Only now, so that nothing but the dead is taken for it, however busy the machine is.
        wait_until(lambda: [run for run in children("killed") if run.state and run.state.is_completed()])
        monkeypatch.setattr(signs_of_life, "LOST_AFTER", 5.0)
        wait_until(lambda: [run for run in children("killed") if run.state and run.state.is_crashed()])
        monkeypatch.undo()

    kills = threading.Thread(target=kill)
    kills.start()
    flow_of(tmp_path).with_options(flow_run_name="killed", retries=1)()
    kills.join()

    # It was in the middle of its load step, with two of three jobs done: some of the rows were there, or all.
    assert sum(half) >= parts.ROWS
    assert loaded(database, tmp_path) == each_once(parts.ROWS)
    # What was loaded in the first attempt was not loaded again in the second.
    runs = children("killed")
    assert [run.name for run in runs] == [*["people of killed"] * 2, "places of killed"]
    lost = [run.state for run in runs if run.state and run.state.is_crashed()]
    assert ["No sign of life" in str(state.message) for state in lost] == [True]

    # The one that was killed comes back, with what it had in its folder; and the other one has gone.
    (other,) = [host for host in hosts if host not in killed]
    other.stop()
    killed[0].start()
    (tmp_path / "rows").write_text(str(parts.ROWS + 10), encoding="utf-8")
    flow_of(tmp_path)()

    assert loaded(database, tmp_path) == each_once(parts.ROWS + 10)
    other.start()
