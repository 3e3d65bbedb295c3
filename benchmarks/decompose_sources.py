"""What `benchmarks/decompose.py` loads, and where to: importable, so that processes of a pool can build it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import dlt

SHARES = (1, 1, 2, 2, 4, 4, 8, 8)
"""Which part of the pages of the largest each table has, of the source that keeps its reader waiting."""

PAGE = 500
"""Nested rows that are made at a time."""

SLOW_PAGE = 2_000
"""Rows of a page that its source takes a quarter of a second for."""

TPCH = {
    "lineitem": (
        "l_orderkey bigint, l_partkey bigint, l_suppkey bigint, l_linenumber int, l_quantity numeric(15,2),"
        " l_extendedprice numeric(15,2), l_discount numeric(15,2), l_tax numeric(15,2), l_returnflag text,"
        " l_linestatus text, l_shipdate date, l_commitdate date, l_receiptdate date, l_shipinstruct text,"
        " l_shipmode text, l_comment text"
    ),
    "orders": (
        "o_orderkey bigint, o_custkey bigint, o_orderstatus text, o_totalprice numeric(15,2), o_orderdate date,"
        " o_orderpriority text, o_clerk text, o_shippriority int, o_comment text"
    ),
    "partsupp": "ps_partkey bigint, ps_suppkey bigint, ps_availqty int, ps_supplycost numeric(15,2), ps_comment text",
    "part": (
        "p_partkey bigint, p_name text, p_mfgr text, p_brand text, p_type text, p_size int, p_container text,"
        " p_retailprice numeric(15,2), p_comment text"
    ),
    "customer": (
        "c_custkey bigint, c_name text, c_address text, c_nationkey int, c_phone text, c_acctbal numeric(15,2),"
        " c_mktsegment text, c_comment text"
    ),
    "supplier": (
        "s_suppkey bigint, s_name text, s_address text, s_nationkey int, s_phone text, s_acctbal numeric(15,2),"
        " s_comment text"
    ),
    "nation": "n_nationkey int, n_name text, n_regionkey int, n_comment text",
    "region": "r_regionkey int, r_name text, r_comment text",
}
"""Columns of the tables of TPC-H, that with most rows first."""


def build_pipeline(destination: str, address: str, name: str = "bench", progress: Any = None) -> Any:
    """Return a pipeline that works in the current folder."""
    return dlt.pipeline(
        name,
        pipelines_dir="pipelines",
        destination=getattr(dlt.destinations, destination)(address),
        dataset_name="bench_data",
        progress=progress,
    )


@dlt.source(name="bench")
def nested(rows: int, parallel: bool) -> Any:
    """Return four resources of nested rows, which keep normalize busy."""
    found = [dlt.resource(_nested_rows, name=f"part_{number}")(rows // 4) for number in range(4)]
    return [each.parallelize() for each in found] if parallel else found


def _nested_rows(rows: int) -> Iterator[Any]:
    for start in range(0, rows, PAGE):
        yield [_order(number) for number in range(start, min(start + PAGE, rows))]


def _order(number: int) -> dict[str, Any]:
    """Return an order as the API of a shop tells it: objects in objects, timestamps as text, and lines."""
    return {
        "id": number,
        "created_at": "2026-01-02T03:04:05.678Z",
        "updated_at": "2026-01-02T04:04:05Z",
        "currency": "EUR",
        "note": None,
        "customer": {
            "id": number % 9_973,
            "name": f"name {number % 997}",
            "email": f"{number % 997}@example.com",
            "address": {
                "street": "Main Street 1",
                "city": "Springfield",
                "zip": "12345",
                "country": {"code": "US", "name": "United States"},
                "geo": {"latitude": 12.5, "longitude": 33.25},
            },
        },
        "payment": {
            "method": "card",
            "paid_at": "2026-01-02T03:05:05Z",
            "card": {"brand": "visa", "expires": {"month": 12, "year": 2030}},
            "amount": {"net": number * 0.25, "tax": number * 0.05, "gross": number * 0.3},
        },
        "shipping": {"carrier": "parcel", "code": f"T{number}", "weight": {"value": 1.5, "unit": "kg"}},
        "lines": [
            {
                "sku": f"S-{line}",
                "quantity": line + 1,
                "price": {"net": line * 0.25, "gross": line * 0.3},
                "product": {"id": line, "title": f"product {line}", "brand": {"id": 7, "name": "brand"}},
            }
            for line in range(2)
        ],
    }


@dlt.source(name="bench")
def waiting(pages: int, parallel: bool) -> Any:
    """Return resources whose source takes a quarter of a second for each page; some have more pages than others."""
    found = [dlt.resource(_slow_pages, name=f"part_{number}")(pages // part) for number, part in enumerate(SHARES)]
    return [each.parallelize() for each in found] if parallel else found


def _slow_pages(pages: int) -> Iterator[Any]:
    for page in range(pages):
        time.sleep(0.25)
        yield [{"id": page * SLOW_PAGE + number, "name": f"name {number}"} for number in range(SLOW_PAGE)]


def tpch(address: str, parallel: bool) -> Any:
    """Return the tables of TPC-H as they are in PostgreSQL."""
    from dlt.sources.sql_database import sql_database

    # SQLAlchemy 2.1 would take psycopg 3 for it.
    address = address.replace("postgresql://", "postgresql+psycopg2://", 1)
    found = sql_database(address, schema="public", table_names=list(TPCH), backend="pyarrow", chunk_size=50_000)
    return found.parallelize() if parallel else found


@dlt.source(name="bench")
def many(count: int) -> Any:
    """Return so many resources of one row each."""
    return [one(number) for number in range(count)]


def one(number: int) -> Any:
    """Return a resource of one row."""
    return dlt.resource([{"id": number}], name=f"part_{number:04}")
