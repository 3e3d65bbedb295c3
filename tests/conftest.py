"""What every test has: a machine of its own. No test reads or writes the home, the settings or the keys of a user."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Set before dlt or Prefect are imported, and handed to every process that a test starts.
os.environ.update(
    DO_NOT_TRACK="1",
    PREFECT_LOGGING_LEVEL="INFO",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    RUNTIME__DLTHUB_TELEMETRY="false",
)
for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def own_prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home of its own for Prefect, for the whole session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        yield


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder is the current one, for relative paths, and where dlt keeps its data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLT_DATA_DIR", str(tmp_path / "dlt"))
    return tmp_path


@pytest.fixture(scope="session")
def prefect_database(pytestconfig: pytest.Config, own_prefect_home: None) -> Path:
    """A database for servers to be started with a copy of; pytest keeps it for later."""
    from tests.prefect_database import migrated

    assert pytestconfig.cache is not None
    return migrated(pytestconfig.cache.mkdir("prefect"))


@pytest.fixture(scope="session")
def prefect_api(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Prefect server with a database of its own; it takes some five seconds to start."""
    from prefect.testing import utilities

    folder = tmp_path_factory.mktemp("prefect-api")
    shutil.copyfile(prefect_database, folder / "prefect-test.db")
    with pytest.MonkeyPatch.context() as patch:
        # Where it has its database; by default, it makes an empty one in a new folder.
        patch.setattr(utilities, "mkdtemp", lambda: str(folder))
        with utilities.prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture(scope="session")
def make_database() -> Iterator[Callable[[str], str]]:
    """Return a function that makes a PostgreSQL database, on a server that takes two seconds to start."""
    from tests.postgres import postgres_server

    with postgres_server() as make:
        yield make


@pytest.fixture
def no_active_pipeline() -> Iterator[None]:
    """No pipeline stays active after a test."""
    from dlt.common.configuration.container import Container
    from dlt.common.pipeline import PipelineContext

    yield
    Container()[PipelineContext].deactivate()
