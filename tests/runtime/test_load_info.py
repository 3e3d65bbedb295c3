"""dlt's `LoadInfo`, as what a Prefect task returns: printed, persisted, handed on, and read in another process."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from dlt.common.pipeline import LoadInfo
from dlt.extract.exceptions import ResourceExtractionError
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline
from prefect import flow, task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH
from prefect.task_runners import ProcessPoolTaskRunner

from prefect_dlt import runner
from tests.runtime import load_infos

pytestmark = pytest.mark.usefixtures("prefect_api")

ROOT = Path(__file__).parents[2]
READ = """
import sys
from prefect import get_client
for task_run_id in sys.argv[1:]:
    with get_client(sync_client=True) as client:
        info = client.read_task_run(task_run_id).state.result(_sync=True)
    print(type(info).__name__, info.pipeline.pipeline_name, len(info.loads_ids), info.has_failed_jobs)
    print(info)
"""


def key_of_its_own(context: TaskRunContext, _: dict[str, Any]) -> str:
    """Return under which key the result of a task run is kept: one that no other run takes for its own."""
    return str(context.task_run.id)


def troubles(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what Prefect has complained of."""
    return [each.getMessage() for each in caplog.records if each.levelno > logging.INFO and "prefect" in each.name]


@pytest.mark.slow
def test_a_task_may_return_it_and_another_process_reads_it_and_no_password_is_in_it(
    own_folder: Path, make_database: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    address = make_database("load_info")
    made: Any = load_infos.made_task(str(own_folder), address)
    made = made.with_options(persist_result=True, cache_policy=CachePolicy.from_cache_key_fn(key_of_its_own))

    @flow(log_prints=True)
    def main() -> list[Any]:
        loaded = load_infos.load.submit(str(own_folder), address)
        # One after the other: they are one pipeline.
        loaded.wait()
        again = made.submit()
        print(again.result())  # noqa: T201 - it is what this is about
        loads = load_infos.loads_of.submit(loaded).result()
        return [loaded.result(), again.result(), loads, [loaded.task_run_id, again.task_run_id]]

    loaded, again, loads, task_run_ids = main()

    assert isinstance(loaded, LoadInfo)
    assert isinstance(again, LoadInfo)
    assert loads == 1
    assert troubles(caplog) == []
    printed = [each.getMessage() for each in caplog.records if each.name in {"prefect.task_runs", "prefect.flow_runs"}]
    assert {str(loaded), str(again)} <= set(printed)

    stored = [path for path in Path(str(PREFECT_LOCAL_STORAGE_PATH.value())).rglob("*") if path.is_file()]
    for written in (*(path.read_text(encoding="utf-8") for path in stored), *printed):
        assert "secret-of-load_info" not in written
    # Pickled, it is base64 in the file, which hides a password from the search above.
    assert b"secret-of-load_info" not in cloudpickle.dumps([loaded, again])
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, task_run_ids)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("LoadInfo shop 1 False") == 2
    assert str(loaded) in done.stdout


@pytest.mark.slow
def test_it_comes_back_from_another_process_and_so_does_the_error_of_dlt_with_its_cause(
    own_folder: Path, make_database: Callable[[str], str]
) -> None:
    address = make_database("load_info_pool")

    @flow(task_runner=ProcessPoolTaskRunner(max_workers=1))
    def main() -> tuple[Any, Any]:
        loaded = load_infos.load.submit(str(own_folder), address).result()
        return loaded, load_infos.break_off.submit(str(own_folder), address).result(raise_on_failure=False)

    loaded, error = main()

    assert isinstance(loaded, LoadInfo)
    assert loaded.pipeline.pipeline_name == "shop"
    assert not loaded.has_failed_jobs
    assert isinstance(error, PipelineStepFailed)
    assert error.step == "extract"
    assert isinstance(error.exception, ResourceExtractionError)
    assert "No such file or directory: 'orders.csv'" in str(error)
    assert "secret-of-load_info_pool" not in str(error)


def test_as_json_it_is_persisted_as_a_dictionary(
    pipeline: Callable[..., Pipeline], caplog: pytest.LogCaptureFixture
) -> None:
    @task(persist_result=True, result_serializer="json", result_storage_key="as-json.json")
    def load() -> Any:
        info = runner(pipeline()).run([{"id": 1}], table_name="rows")
        assert info is not None
        return info.asdict()

    @flow
    def main() -> Any:
        return load.submit().result()

    assert main()["loads_ids"]
    assert troubles(caplog) == []
    assert (Path(str(PREFECT_LOCAL_STORAGE_PATH.value())) / "as-json.json").exists()


def test_it_can_be_sent_on_from_where_it_has_arrived(pipeline: Callable[..., Pipeline]) -> None:
    info = runner(pipeline()).run([{"id": 1}], table_name="rows")
    assert info is not None

    arrived = copy.deepcopy(cloudpickle.loads(cloudpickle.dumps(cloudpickle.loads(cloudpickle.dumps(info)))))

    assert isinstance(arrived, LoadInfo)
    assert str(arrived) == str(info)
    assert arrived.load_packages[0].schema.to_dict() == info.load_packages[0].schema.to_dict()
    assert arrived.load_packages[0].schema.naming.normalize_identifier("Order Id") == "order_id"


def test_an_error_of_dlt_can_be_sent_on_from_where_it_has_arrived(pipeline: Callable[..., Pipeline]) -> None:
    with pytest.raises(PipelineStepFailed) as raised:
        runner(pipeline()).run([{"id": 1}], table_name="rows", columns={"id": {"data_type": "wei", "precision": "x"}})

    arrived = copy.deepcopy(cloudpickle.loads(cloudpickle.dumps(cloudpickle.loads(cloudpickle.dumps(raised.value)))))

    assert (str(arrived), arrived.step) == (str(raised.value), raised.value.step)
