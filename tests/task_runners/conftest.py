"""One Dask cluster and one Ray instance for all tests: each takes seconds to start. Both on the loopback only."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest


@pytest.fixture(scope="session")
def home_of_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where what outlives a test keeps its data: a worker has the environment of the time when it was started."""
    home = tmp_path_factory.mktemp("workers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("DLT_DATA_DIR", str(home / "dlt"))
        yield home


@pytest.fixture(scope="session")
def dask_address(home_of_workers: Path) -> Iterator[str]:
    """The address of a Dask scheduler with one worker, a process of its own."""
    from distributed import LocalCluster

    before = processes()
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        local_directory=str(home_of_workers),
    ) as cluster:
        assert {address for address in listening() if not ip_address(address).is_loopback} == set()
        yield cluster.scheduler_address
    assert processes() <= before


@pytest.fixture(scope="session")
def ray_instance(home_of_workers: Path) -> Iterator[None]:
    """A Ray instance that runs one task at a time; Ray's task runner takes the one that its process has started."""
    before = processes()
    # The paths of Ray's sockets may have 107 characters, and a folder of pytest's is too long for that.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as folder:
        # Otherwise Ray makes a token up and leaves it in the user's home.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray listens on the address that it takes for the machine's own; on Linux, this alone makes it the loopback.
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Ray's workers are nice to others by default: beside tests on all cores they take minutes to begin.
        patch.setenv("RAY_worker_niceness", "0")
        # Its workers import from where they are told to, and not from where this process does.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        import ray

        ray.init(
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            namespace="prefect",
            _temp_dir=folder,
        )
        try:
            assert {address for address in listening() if not ip_address(address).is_loopback} == set()
            yield
        finally:
            ray.shutdown()
    assert processes() <= before


def processes() -> set[int]:
    """Return the processes that this one has started, but for the one that multiprocessing keeps."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "resource_tracker" not in " ".join(child.cmdline())}


def listening() -> set[str]:
    """Return the addresses at which this process and those it has started wait for connections."""
    this = psutil.Process()
    open_sockets = [socket for each in (this, *this.children(recursive=True)) for socket in each.net_connections()]
    addresses = [socket.laddr.ip for socket in open_sockets if socket.status == psutil.CONN_LISTEN]
    return {address.removeprefix("::ffff:") for address in addresses}
