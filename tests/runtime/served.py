"""A program whose flow stays in the load step of a pipeline until it is told to end.

`python -m tests.runtime.served FOLDER serve` serves it as the deployment "load until told/served"; with "run" for
"serve" it runs it once.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import dlt
from dlt.common.runtime import signals
from dlt.pipeline.pipeline import Pipeline
from prefect import flow, task
from typing_extensions import override

from prefect_dlt import CallbackCollector, runner

LONG = 120.0
"""Seconds that the load step lasts when nobody ends it."""

ROWS = [{"id": number} for number in range(5)]


class Waits(CallbackCollector):
    """Leaves the id of its process in a file when a step begins, and waits there for a request to stop."""

    def __init__(self, folder: Path, counter: str) -> None:
        super().__init__()
        self.reached = folder / "reached"
        self.counter = counter

    @override
    def update(self, name: str, *args: Any, **kwargs: Any) -> None:
        super().update(name, *args, **kwargs)
        if name != self.counter or self.reached.exists():
            return
        # Moved into place, so that whoever finds it can read it.
        Path(f"{self.reached}_").write_text(str(os.getpid()), encoding="utf-8")
        Path(f"{self.reached}_").rename(self.reached)
        ends_at = time.monotonic() + LONG
        while not signals.was_signal_received() and time.monotonic() < ends_at:
            time.sleep(0.02)


def pipeline(folder: Path, **options: Any) -> Pipeline:
    """Return the pipeline, as the test wants it as well."""
    return dlt.pipeline(
        "shop",
        pipelines_dir=str(folder / "pipelines"),
        destination=dlt.destinations.duckdb(str(folder / "warehouse.duckdb")),
        dataset_name="shop_data",
        **options,
    )


@task
def load(folder: str, counter: str = "Jobs") -> None:
    """Load the rows, and wait in the step that counts this."""
    shop = pipeline(Path(folder), progress=Waits(Path(folder), counter))
    runner(shop).run(ROWS, table_name="rows")


@flow(name="load until told")
def load_until_told(folder: str, submits: bool = True) -> None:
    """Load the rows in a task."""
    if submits:
        load.submit(folder).result()
    else:
        load(folder)


if __name__ == "__main__":
    if sys.argv[2] == "serve":
        load_until_told.serve("served", print_starting_message=False)  # pyright: ignore[reportUnknownMemberType]
    else:
        load_until_told(sys.argv[1])
