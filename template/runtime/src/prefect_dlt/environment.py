"""Where a run takes place: host, Python, and the versions of the packages that take part in it."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import socket

PACKAGES = ("dlt", "prefect", "prefect-dlt")
"""Packages that are always named."""

DRIVERS = (
    "adbc-driver-postgresql",
    "clickhouse-connect",
    "connectorx",
    "databricks-sql-connector",
    "duckdb",
    "google-cloud-bigquery",
    "pandas",
    "polars",
    "psycopg",
    "psycopg2",
    "psycopg2-binary",
    "pyarrow",
    "redshift-connector",
    "s3fs",
    "snowflake-connector-python",
    "sqlalchemy",
)
"""Packages whose versions matter to a load; those that are installed are named."""


@functools.cache
def _environment() -> dict[str, str]:
    packages = {name: version(name) for name in PACKAGES}
    drivers = [f"{name} {found}" for name in DRIVERS if (found := version(name))]
    return {
        "Host": socket.gethostname(),
        "System": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": platform.python_version(),
        **{name: found for name, found in packages.items() if found},
        "Packages": ", ".join(drivers),
    }


def environment() -> dict[str, str]:
    """Return names and values, as text, of what this process runs on."""
    return dict(_environment())


def version(package: str) -> str:
    """Return the version of an installed package; empty when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
