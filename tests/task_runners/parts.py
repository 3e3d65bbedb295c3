"""A source that is taken apart, importable from any process, whose parts do as the files in a folder tell them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlt
from dlt.pipeline.pipeline import Pipeline
from typing_extensions import override

from prefect_dlt import PrefectCollector

ROWS = 40
"""Rows of each part in the first run."""

LONG = 120.0
"""Seconds that something is waited for at most."""


def wait_for(path: Path) -> None:
    """Wait for a file."""
    ends_at = time.monotonic() + LONG
    while not path.exists():
        if time.monotonic() > ends_at:
            raise TimeoutError(path.name)
        time.sleep(0.02)


def note(path: Path, text: str = "") -> None:
    """Leave a file, whole from the first moment on."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def _until_told(told: Path) -> Iterator[Any]:
    """Yield rows for a long time, and leave a file when the pipeline stops to take them."""
    ends_at = time.monotonic() + LONG
    try:
        while time.monotonic() < ends_at:
            time.sleep(0.02)
            yield []
    finally:
        if time.monotonic() < ends_at:
            note(told)


@dlt.source
def shop(folder: str, names: list[str], together: bool = False) -> Any:
    """Rows with lines, added to those of earlier runs.

    Args:
        folder: Where `rows` may say how many rows there are, and `fails` which part fails.
        names: The parts.
        together: Whether each part waits until all others extract as well.
    """
    here = Path(folder)

    def part(name: str) -> Any:
        def rows(cursor: Any = dlt.sources.incremental("id")) -> Iterator[Any]:  # noqa: B008 - dlt's way
            note(here / f"extracts_{name}", os.environ.get("DLT_DATA_DIR", ""))
            for other in names if together else ():
                wait_for(here / f"extracts_{other}")
            if (here / f"fails_{name}").exists():
                raise ConnectionError("the line to mysql://ada:s3cret@db is dead")
            if (here / f"waits_{name}").exists():
                yield from _until_told(here / f"told_{name}")
            told = here / "rows"
            count = int(told.read_text(encoding="utf-8")) if told.exists() else ROWS
            yield [
                {"id": number, "lines": [{"line": 1}, {"line": 2}]} for number in range(cursor.start_value or 0, count)
            ]

        return dlt.resource(rows, name=name)

    return [part(name) for name in names]


class Stays(PrefectCollector):
    """Stays in the load step of a part when two of its three jobs are done, where a file says so."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.loads = ""
        self.done = 0

    @override
    def before_load(self, pipeline: Any, trace: Any) -> None:
        self.loads = pipeline.pipeline_name

    @override
    def update(self, name: str, inc: int = 1, *args: Any, **kwargs: Any) -> None:
        super().update(name, inc, *args, **kwargs)
        here = Path(self.folder)
        if self.loads and name == "Jobs":
            self.done += inc
            if self.done > 1 and (here / f"stays_{self.loads}").exists():
                note(here / "in_the_middle", os.environ["DLT_DATA_DIR"])
                wait_for(here / "never")


def into_postgres(folder: str) -> Pipeline:
    """Return the pipeline; where it loads to is in the environment, and its working directory in dlt's home."""
    # By the name of the dataset, since the homes of the workers outlive a test.
    name = Path(folder).name
    return dlt.pipeline(name, destination="postgres", dataset_name=name, progress=Stays(folder))


def into_postgres_at(folder: str, url: str) -> Pipeline:
    """Return the pipeline; with the address given, and its working directory in the folder."""
    return dlt.pipeline(
        "shop",
        pipelines_dir=f"{folder}/pipelines",
        destination=dlt.destinations.postgres(url),
        dataset_name=Path(folder).name,
        progress=PrefectCollector(),
    )


class Meets(PrefectCollector):
    """Leaves a file while it loads, and says when another process has one."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    @override
    def after_normalize(self, pipeline: Any, trace: Any) -> None:
        note(Path(self.folder) / f"normalized_{pipeline.pipeline_name}")

    @override
    def before_load(self, pipeline: Any, trace: Any) -> None:
        here = Path(self.folder)
        if list(here.glob("loads_*")):
            note(here / "overlap")
        note(here / f"loads_{pipeline.pipeline_name}")
        # Loading goes on only when the other one could begin with it.
        ends_at = time.monotonic() + LONG
        while len(list(here.glob("normalized_*"))) < len(list(here.glob("extracts_*"))) and time.monotonic() < ends_at:
            time.sleep(0.02)

    @override
    def after_load(self, pipeline: Any, trace: Any) -> None:
        (Path(self.folder) / f"loads_{pipeline.pipeline_name}").unlink()


def into_duckdb(folder: str) -> Pipeline:
    """Return a pipeline into one file for all processes."""
    return dlt.pipeline(
        "shop",
        pipelines_dir=f"{folder}/pipelines",
        destination=dlt.destinations.duckdb(f"{folder}/warehouse.duckdb"),
        dataset_name="shop_data",
        progress=Meets(folder),
    )
