"""Where a run takes place is told by what is installed, and found out once."""

from __future__ import annotations

import platform
from importlib.metadata import version as installed

from prefect_dlt import __version__
from prefect_dlt.environment import environment, version


def test_host_python_and_packages_are_named_with_their_versions() -> None:
    found = environment()

    assert found["Host"] == platform.node()
    assert found["Python"] == platform.python_version()
    assert (found["dlt"], found["prefect"], found["prefect-dlt"]) == (
        installed("dlt"),
        installed("prefect"),
        __version__,
    )
    assert f"duckdb {installed('duckdb')}" in found["Packages"].split(", ")


def test_what_is_not_installed_is_not_named() -> None:
    assert version("no-such-package") == ""
    assert "snowflake" not in environment()["Packages"]


def test_each_run_has_an_environment_of_its_own() -> None:
    environment()["Deployment"] = "load/prod"

    assert "Deployment" not in environment()
