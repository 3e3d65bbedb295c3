"""Which assets a run tells of: their keys, their rows and columns, and where they come from."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from dlt.common.pipeline import ExtractInfo, LoadInfo
from dlt.common.schema import Schema
from dlt.common.storages.load_package import LoadJobInfo, LoadPackageInfo, ParsedLoadJobFileName
from dlt.pipeline.pipeline import Pipeline
from dlt.pipeline.trace import PipelineStepTrace
from dlt.sources.sql_database import sql_database
from prefect.assets import Asset
from prefect.settings import PREFECT_EVENTS_MAXIMUM_SIZE_BYTES

from prefect_dlt import CallbackCollector
from prefect_dlt.assets import asset_events, asset_key
from prefect_dlt.emitter import to_events
from prefect_dlt.events import EventDraft
from prefect_dlt.record import RunRecord, Table
from tests.runtime.sources import shop

SECRET = "tr0ub4dor-and-3"


class Keeper(CallbackCollector):
    """Keeps the record of a run."""

    def run_ended(self, pipeline: Any, record: RunRecord) -> None:
        self.record = record


def materialized(record: RunRecord) -> dict[str, EventDraft]:
    """Return the events about tables that were loaded, by table."""
    return {
        draft.resource["dlt.table"]: draft
        for draft in asset_events(record)
        if draft.name == "prefect.asset.materialization.succeeded"
    }


def upstream(draft: EventDraft) -> list[str]:
    return [each["prefect.resource.id"] for each in draft.related if each["prefect.resource.role"] == "asset"]


class TestOfARun:
    def test_each_table_is_an_asset_behind_its_source(self, pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
        keeper = Keeper()
        (load_id,) = pipeline(progress=keeper).run(shop()).loads_ids

        events = asset_events(keeper.record)

        place = f"duckdb://{tmp_path}/warehouse.duckdb/shop_data"
        assert [(event.name, event.resource["prefect.resource.id"]) for event in events] == [
            ("prefect.asset.referenced", "dlt://shop"),
            *(
                ("prefect.asset.materialization.succeeded", f"{place}/{table}")
                for table in ("customers", "greetings", "orders", "orders__items")
            ),
        ]
        items = materialized(keeper.record)["orders__items"]
        assert upstream(items) == ["dlt://shop"]
        assert items.related[-1] == {
            "prefect.resource.id": "dlt",
            "prefect.resource.role": "asset-materialized-by",
        }
        assert items.payload["rows"] == 3
        assert items.payload["parent"] == "orders"
        assert items.payload["load_id"] == load_id
        assert items.payload["loads"] == [{"load_id": load_id, "rows": 3}]
        assert items.payload["columns"] == [
            {"name": "sku", "type": "text", "data_type": "text", "nullable": True},
            {"name": "_dlt_parent_id", "type": "text not null", "data_type": "text", "nullable": False}
            | {"parent_key": True},
            {"name": "_dlt_list_idx", "type": "bigint not null", "data_type": "bigint", "nullable": False},
            {"name": "_dlt_id", "type": "text not null", "data_type": "text", "nullable": False}
            | {"unique": True, "row_key": True},
        ]

    def test_rows_of_a_database_come_from_its_tables(self, pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
            connection.executescript("CREATE TABLE orders (id INTEGER); INSERT INTO orders VALUES (1)")
        keeper = Keeper()

        pipeline(progress=keeper).run(sql_database(f"sqlite:///{tmp_path}/shop.db", table_names=["orders"]))

        assert upstream(materialized(keeper.record)["orders"]) == [f"sqlite://{tmp_path}/shop.db/orders"]

    def test_what_an_earlier_run_normalised_is_loaded_with_rows_unknown(
        self, pipeline: Callable[..., Pipeline]
    ) -> None:
        earlier = pipeline()
        earlier.extract(shop())
        earlier.normalize()
        keeper = Keeper()

        pipeline(progress=keeper).load()

        orders = materialized(keeper.record)["orders"]
        assert orders.payload["rows"] is None
        assert upstream(orders) == []
        assert [column["name"] for column in orders.payload["columns"]] == ["id", "_dlt_load_id", "_dlt_id"]


class TestKeys:
    @pytest.mark.parametrize(
        ("address", "key"),
        [
            ("duckdb:////data/shop.duckdb", "duckdb:///data/shop.duckdb/shop/orders"),
            ("duckdb:///C:\\data\\shop.duckdb", "duckdb:///C:/data/shop.duckdb/shop/orders"),
            ("postgresql://ada:***@db.example.com:5432/x", "postgres://db.example.com:5432/x/shop/orders"),
            ("postgresql+psycopg2://ada@db/x?sslmode=off", "postgres://db/x/shop/orders"),
            ("s3://bucket/raw/", "s3://bucket/raw/shop/orders"),
            ("abfss://raw@lake.dfs.core.windows.net/in", "abfss://lake.dfs.core.windows.net/raw/in/shop/orders"),
            ("bigquery://my-project", "bigquery://my-project/shop/orders"),
            ("file:///data/lake", "file:///data/lake/shop/orders"),
        ],
    )
    def test_it_says_where_a_table_is_and_not_who_loads_it(self, address: str, key: str) -> None:
        assert asset_key(address, "shop", "orders") == key

    def test_any_name_makes_a_key_of_its_own_that_prefect_takes(self) -> None:
        names = ["a b", "a/b", "a#b", "a?b", "a%b", 'a"b', "a[b]", "a|b", "a\\b", "a\x00b", "a\ud800b", "ä", "x" * 600]
        keys = {asset_key("postgres://db/shop", "data", name) for name in [*names, "x" * 601, "a-b"]}

        assert len(keys) == len(names) + 2
        assert {Asset(key=key).key for key in keys} == keys


def job(table: str, state: Any = "completed_jobs") -> LoadJobInfo:
    return LoadJobInfo(state, "", 1, datetime.now(timezone.utc), 0.0, ParsedLoadJobFileName(table, "1", 0, "jsonl"), "")


def loaded(
    tables: dict[str, Table],
    address: str = "duckdb:////data/shop.duckdb",
    kind: str = "duckdb",
    state: Any = "loaded",
    failed: tuple[str, ...] = (),
    **known: Any,
) -> RunRecord:
    """Return the record of a run that loaded one file into each of these tables, as dlt tells of it."""
    now = datetime.now(timezone.utc)
    record = RunRecord("shop", kind, "shop_data", {}, now, tables_known=tables, **known)
    jobs: Any = {
        "completed_jobs": [job(name) for name in tables],
        "failed_jobs": [job(name, "failed_jobs") for name in failed],
    }
    package = LoadPackageInfo("1", "", state, Schema("shop"), {}, now, jobs)
    where = (f"dlt.destinations.{kind}", address, "warehouse", "", "", "", "", "")
    info: Any = LoadInfo(None, {}, *where, "shop_data", ["1"], [package], first_run=True)
    record.add_step(PipelineStepTrace("1", "load", now, now, info))
    return record


TABLES = {name: Table(name, "shop", name, None, {}) for name in ("orders", "customers")}


def test_a_package_that_was_not_loaded_to_its_end_has_no_assets() -> None:
    assert asset_events(loaded(TABLES, state="normalized")) == []


def test_a_table_with_a_failed_job_is_no_asset() -> None:
    assert materialized(loaded(TABLES, failed=("orders",))).keys() == {"customers"}


@pytest.mark.parametrize(
    ("kind", "shown", "place"),
    [
        ("bigquery", "loader@my-project.iam.gserviceaccount.com@my-project", "bigquery://my-project"),
        ("destination", "<dlt.common.CredentialsConfiguration object at 0x7fca1bf189d0>", "destination://warehouse"),
        ("motherduck", "", "motherduck://warehouse"),
    ],
)
def test_a_destination_without_an_address_goes_by_its_project_or_its_name(kind: str, shown: str, place: str) -> None:
    orders = materialized(loaded(TABLES, shown, kind))["orders"]

    assert orders.resource["prefect.resource.id"] == f"{place}/shop_data/orders"


def extracted(inputs: list[dict[str, Any]], dag: list[tuple[str, str]]) -> PipelineStepTrace:
    """Return the step of an extract with one resource, orders, that reads these locations."""
    now = datetime.now(timezone.utc)
    metrics: Any = {"inputs": inputs, "dag": dag, "resource_metrics": {"orders": None}, "schema_name": "shop"}
    info: Any = ExtractInfo(None, {"1": [metrics]}, [], [], [], True)
    return PipelineStepTrace("0", "extract", now, now, info)


class TestOrigins:
    @pytest.mark.parametrize(
        ("location", "key"),
        [
            (
                {"kind": "sql_database", "location": "postgresql://db:5432", "database": "x"}
                | {"db_schema": "shop", "tables": ["orders"]},
                asset_key("postgresql://ada:***@db:5432/x", "shop", "orders"),
            ),
            (
                {"kind": "dataset", "location": "db:5432/x", "destination_type": "dlt.destinations.postgres"}
                | {"physical_dataset_name": "shop", "tables": ["orders"]},
                asset_key("postgresql://ada:***@db:5432/x", "shop", "orders"),
            ),
            (
                {"kind": "rest_api", "location": "https://api.example.com/v1", "endpoints": ["shops/{id}/orders"]},
                "https://api.example.com/v1/shops/-id--c1ee52471fbd/orders",
            ),
            ({"kind": "filesystem", "location": "s3://bucket/raw", "glob": "**/*.csv"}, "s3://bucket/raw/**/*.csv"),
            ({"kind": "something new", "location": "kafka://broker:9092"}, "kafka://broker:9092"),
            ({"kind": "dataset", "destination_type": "dlt.destinations.destination"}, "dlt://shop"),
        ],
    )
    def test_they_are_what_the_resource_read(self, location: dict[str, Any], key: str) -> None:
        record = loaded({"orders": Table("orders", "shop", "orders", None, {})})
        record.add_step(extracted([{**location, "resource_name": "orders"}], []))

        assert upstream(materialized(record)["orders"]) == [key]

    def test_a_transformer_and_a_nested_table_come_from_what_feeds_them(self) -> None:
        orders = Table("orders", "shop", "orders", None, {})
        record = loaded({"orders": orders, "orders__items": Table("orders__items", "shop", None, "orders", {})})
        read = {"kind": "rest_api", "location": "https://api.example.com", "resource_name": "ids"}
        record.add_step(extracted([read], [("ids", "pages"), ("pages", "orders"), ("orders", "ids")]))

        assert [upstream(draft) for draft in materialized(record).values()] == [["https://api.example.com"]] * 2


def columns(count: int) -> Any:
    return {f"column_{number}": {"name": f"column_{number}", "data_type": "text"} for number in range(count)}


@pytest.mark.parametrize(("count", "width"), [(1_000, 10), (1, 10_000)])
def test_many_tables_and_columns_stay_within_prefects_limits(count: int, width: int) -> None:
    names = [f"table_{number}" for number in range(count)]
    record = loaded({name: Table(name, "shop", name, None, columns(width)) for name in names})

    events = to_events(asset_events(record), [])

    assert len(events) == count
    assert {len(event.payload["columns"]) for event in events} == {width}
    assert max(event.size_bytes for event in events) < PREFECT_EVENTS_MAXIMUM_SIZE_BYTES.value()


def test_no_secret_is_in_an_event() -> None:
    hints: Any = {f"c {SECRET}": {"data_type": SECRET, "description": f"as in postgres://ada:{SECRET}@db/shop"}}
    table = Table(f"t {SECRET}", f"s {SECRET}", f"r {SECRET}", f"p {SECRET}", hints)
    record = loaded({table.name: table}, f"postgresql://ada:hunter2hunter2@db/{SECRET}", secrets={SECRET})

    text = json.dumps([(draft.resource, draft.related, draft.payload) for draft in asset_events(record)])

    assert "postgres://db/***/shop_data/" in text
    assert SECRET not in text
    assert "hunter2" not in text
