"""The runs that the gallery takes pictures of: good and bad ones, a wide one, and one half-way.

Runs on the demo project's own Python, in the project's folder, against a Prefect server.
Usage: python gallery_runs.py <a file>; the last run is half-way until that file exists
       python gallery_runs.py cut; load in a process that is killed in the middle
"""

from __future__ import annotations

import importlib
import os
import platform
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import dlt
import duckdb
from dlt.common.storages.load_package import PackageStorage
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_dlt import CallbackCollector, PrefectCollector, create_run_pipeline_flow, runner
from prefect_dlt.retry import exponential_backoff

DATA = Path("data").resolve()
WIDE = 200
PAGE = 250
KILLED = 9
"""What the process ends with whose load is killed in the middle."""

LIVE_RESOURCES = {"sessions": 20, "carts": 30, "payments": 40, "page_views": None, "searches": None}
"""Pages of each resource of the run that is half-way; None for those that go on until it may end."""

Rows = list[dict[str, Any]]


def warehouse(name: str) -> str:
    """Return the DuckDB file that a pipeline loads to."""
    return str(DATA / f"{name}.duckdb")


def load(name: str, source: Any, collector: Any = None, **options: Any) -> None:
    """Load a source, with two retries at most."""
    pipeline = dlt.pipeline(
        name,
        pipelines_dir=str(DATA / "pipelines"),
        destination=dlt.destinations.duckdb(warehouse(name)),
        dataset_name=f"{name}_data",  # DuckDB would take a plain name for the database
        progress=collector or PrefectCollector(),
    )
    policy = exponential_backoff(attempts=3, max=2)
    steps = ["extract", "normalize", "load"]
    runner(pipeline, retry_policy=policy, retry_pipeline_steps=steps, **options).run(source)


# -- a shop whose source changes, and does not answer at first ---------------------------------------------------------


def orders(day: int) -> Rows:
    """Return the orders of a day; those of the second have a currency, and a reference that is not always a number."""
    found: Rows = [
        {
            "id": number,
            "placed_at": f"2013-11-0{day}T{number % 24:02d}:00:00Z",
            "total": number * 1.25,
            "reference": number,
            "items": [{"sku": f"sku-{number % 40}-{line}", "quantity": line} for line in range(1, 4)],
        }
        for number in range(1, 1201)
    ]
    if day > 1:
        for order in found:
            order |= {"currency": "EUR", "reference": f"web-{order['id']}"}
    return found


@dlt.source(name="shop")
def shop(day: int) -> list[Any]:
    """Return the resources of the shop; the second day brings one more, and a database that first does not answer."""
    tries = iter((False, True))

    def read_orders() -> Iterator[Rows]:
        if day > 1 and not next(tries):
            raise ConnectionError("connection to shop-db:5432 was reset while reading orders")
        yield orders(day)

    found = [
        dlt.resource(read_orders, name="orders", primary_key="id", write_disposition="merge"),
        dlt.resource([{"id": n, "name": f"Customer {n}"} for n in range(300)], name="customers", primary_key="id"),
    ]
    if day > 1:
        found.append(dlt.resource([{"id": n, "order_id": n, "reason": "late"} for n in range(25)], name="refunds"))
    return found


@task(task_run_name="load-shop")
def load_shop_data(day: int) -> None:
    """Load the shop."""
    load("shop", shop(day))


@flow(name="load-shop", flow_run_name="shop-day-{day}", log_prints=True)
def load_shop(day: int) -> None:
    """Load one day of the shop."""
    load_shop_data(day)


# -- a destination that no longer takes what it is sent ----------------------------------------------------------------


@dlt.source(name="crm")
def crm(day: int) -> list[Any]:
    """Return contacts and notes; on the second day, a contact has no address."""
    contacts: Rows = [{"id": n, "email": f"contact-{n}@example.com"} for n in range(500)]
    contacts[7]["email"] = None if day > 1 else contacts[7]["email"]
    return [
        dlt.resource(contacts, name="contacts", write_disposition="append"),
        dlt.resource([{"id": n, "text": "called"} for n in range(80)], name="notes", write_disposition="append"),
    ]


@task(task_run_name="load-crm")
def load_crm_data(day: int, name: str, **options: Any) -> None:
    """Load the contacts."""
    load(name, crm(day), **options)


@flow(name="load-crm", flow_run_name="{name}-day-{day}")
def load_crm(day: int, name: str = "crm", discard_pending: bool = False) -> None:
    """Load one day of the contacts."""
    load_crm_data(day, name, discard_pending=discard_pending, verify=True)


def forbid_missing_addresses(name: str = "crm") -> None:
    """Change the table as a well-meaning colleague would, at night, without a word."""
    with duckdb.connect(warehouse(name)) as connection:
        connection.execute(f"ALTER TABLE {name}_data.contacts ALTER COLUMN email SET NOT NULL")


# -- a load that is killed in the middle, and finished by the next run -------------------------------------------------


@dlt.source(name="bookings")
def bookings() -> list[Any]:
    """Return a few tables that only grow."""
    return [
        dlt.resource([{"id": n, "seat": n % 40} for n in range(size)], name=name, write_disposition="append")
        for name, size in {"bookings": 900, "payments": 700, "travellers": 1200}.items()
    ]


def cut_load() -> None:
    """Load the bookings in a process that is gone when the first job is loaded, before dlt has noted that."""
    PackageStorage.save_pending_transition = lambda *_, **__: os._exit(KILLED)  # type: ignore[method-assign]
    load("bookings", bookings(), CallbackCollector())


@flow(name="load-bookings", flow_run_name="bookings")
def load_bookings() -> None:
    """Load the bookings."""
    load("bookings", bookings(), verify=True)


# -- rows that go while they are loaded --------------------------------------------------------------------------------


class Colleague(PrefectCollector):
    """Deletes rows as a well-meaning colleague would, right when they are loaded."""

    def after_load(self, pipeline: Any, trace: Any) -> None:  # noqa: ARG002
        """Clean up what looks old."""
        with pipeline.sql_client() as client:
            client.execute_sql("DELETE FROM levels WHERE id % 10 = 3")


@flow(name="load-stock", flow_run_name="stock")
def load_stock() -> None:
    """Load the stock."""
    levels = dlt.resource([{"id": n, "pieces": n % 7} for n in range(800)], name="levels", write_disposition="append")
    load("stock", levels, Colleague(), verify=True)


# -- more tables than a page holds -------------------------------------------------------------------------------------


@dlt.source(name="erp")
def erp() -> list[Any]:
    """Return many small tables."""
    sizes = random.Random(2013)  # noqa: S311 - the same sizes each time, not a secret
    return [
        dlt.resource([{"id": n, "code": f"c{n}"} for n in range(sizes.randint(1, 400))], name=f"erp_table_{number:03d}")
        for number in range(1, WIDE + 1)
    ]


@flow(name="load-erp", flow_run_name="erp")
def load_erp() -> None:
    """Load many small tables."""
    load("erp", erp())


# -- a run that is half-way --------------------------------------------------------------------------------------------


@flow(name="load-web", flow_run_name="web")
def load_web(may_end: Path) -> None:
    """Load for as long as a file does not exist."""

    def read(pages: int | None) -> Iterator[Rows]:
        number = 0
        while number < pages if pages is not None else not may_end.exists():
            time.sleep(0.03)  # what a page of an API takes
            yield [{"id": number * PAGE + n, "path": f"/p/{n}"} for n in range(PAGE)]
            number += 1

    load("web", [dlt.resource(read(pages), name=name) for name, pages in LIVE_RESOURCES.items()])


# -- a source that is taken apart, and one part of it fails ------------------------------------------------------------


FLEET = {"trips": 14, "positions": 9, "vehicles": 3, "drivers": 2, "fuel_stops": 6, "repairs": 4, "tolls": 1}
"""Pages of each resource; a page takes its source a third of a second."""


@dlt.source(name="fleet")
def fleet() -> list[Any]:
    """Return the resources of a fleet; the repair shop does not answer."""

    def read(name: str, pages: int) -> Iterator[Rows]:
        for page in range(pages):
            time.sleep(0.33)
            if name == "repairs" and page:
                raise ConnectionError("connection to repairs-db:5432 was reset while reading repairs")
            yield [{"id": page * PAGE + number, "name": f"{name} {number}"} for number in range(PAGE)]

    return [dlt.resource(read(name, pages), name=name) for name, pages in FLEET.items()]


def load_fleet() -> None:
    """Load the fleet, four parts at a time."""

    def build_pipeline() -> Any:
        return dlt.pipeline(
            "fleet",
            pipelines_dir=str(DATA / "pipelines"),
            destination=dlt.destinations.duckdb(warehouse("fleet")),
            dataset_name="fleet_data",
        )

    load = create_run_pipeline_flow(
        build_pipeline,
        fleet,
        decompose="auto",
        flow_name="load-fleet",
        task_runner=cast("Any", ThreadPoolTaskRunner)(max_workers=4),
    )
    load()


def main(may_end: Path) -> None:
    """Make all the runs, one after the other."""
    # A picture is for everyone: it does not name the machine that it was taken on, nor its kernel.
    socket.gethostname = lambda: "loads-1"
    platform.release = lambda: "6.12"
    importlib.import_module("flows.load").load()
    load_shop(1)
    load_shop(2)
    load_crm(1)
    forbid_missing_addresses()
    with suppress(Exception):  # Prefect has logged what happened, and the failure is what is wanted
        load_crm(2)
    load_crm(1, name="hr")
    forbid_missing_addresses("hr")
    with suppress(Exception):
        load_crm(2, name="hr")
    load_crm(1, name="hr", discard_pending=True)
    cut = subprocess.run([sys.executable, __file__, "cut"], check=False)
    assert cut.returncode == KILLED  # noqa: S101 - or the picture shows something else
    load_bookings()
    with suppress(Exception):
        load_stock()
    with suppress(Exception):
        load_fleet()
    load_erp()
    load_web(may_end)


if __name__ == "__main__":
    if sys.argv[1] == "cut":
        cut_load()
    else:
        main(Path(sys.argv[1]))
