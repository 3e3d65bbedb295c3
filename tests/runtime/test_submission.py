"""What is submitted, by which deployments, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate

from prefect_dlt import submit_to

pytestmark = pytest.mark.usefixtures("prefect_api")

POOL = "submission"


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def pool(client: SyncPrefectClient) -> Iterator[str]:
    """A work pool without workers."""
    client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    yield POOL
    client.delete_work_pool(POOL)


def test_projects_whose_deployments_have_one_name_keep_their_code_apart(
    client: SyncPrefectClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for project in ("shop", "crm"):
        running = client.create_deployment(
            client.create_flow_from_name(f"load-{project}"),
            "load",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": f"/{project}"}}],
        )
        monkeypatch.setattr(submit_to, "running_deployment", SimpleNamespace(id=str(running), name="load"))
        submit_to._deployment_on_pool(client, pool)

    folders = {each.name: str(each.pull_steps) for each in client.read_deployments() if each.work_pool_name == pool}
    assert sorted(folders) == [f"{POOL}, with the code of load of load-{project}" for project in ("crm", "shop")]
    assert all(f"/{name.rpartition('-')[2]}" in steps for name, steps in folders.items())
