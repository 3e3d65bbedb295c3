"""What a destination holds is compared with what was normalised: right where it is right, and each difference seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.verification import EARLIER_PACKAGE, Verification
from prefect_dlt.verify import EMPTIED, Verifier

Make = Callable[..., Pipeline]

NESTED = ["orders", "orders__lines", "orders__lines__discounts"]


@pytest.fixture(params=["duckdb", pytest.param("postgres", marks=pytest.mark.slow)])
def shop(request: pytest.FixtureRequest, pipeline: Make, tmp_path: Path) -> Pipeline:
    """A pipeline into a database of its own, once for each kind."""
    if request.param == "duckdb":
        return pipeline()
    make_database: Callable[[str], str] = request.getfixturevalue("make_database")
    return dlt.pipeline(
        "shop",
        pipelines_dir=str(tmp_path / "pipelines"),
        destination=dlt.destinations.postgres(make_database(f"verify-{uuid4().hex}")),
        dataset_name="shop_data",
    )


def orders(version: int) -> list[dict[str, Any]]:
    """Orders with lines, and in them discounts."""
    lines = [{"sku": "a", "discounts": [{"of": 1}, {"of": 2}]}, {"sku": "b"}]
    return [{"id": key, "shop": key % 2, "version": version, "lines": lines} for key in range(4)]


def execute(pipeline: Pipeline, sql: str) -> None:
    """Change a table, written as `{orders}`, behind the pipeline's back."""
    with pipeline.sql_client() as client:
        names = {name: client.make_qualified_table_name(name) for name in pipeline.default_schema.tables}
        client.execute_many([statement.format(**names) for statement in sql.split(";")])


def found(verification: Verification, table: str) -> list[tuple[str, int, int]]:
    """Return what differs in a table: what was counted, how many were expected and found."""
    return [(each.what, each.expected, each.found) for each in verification.differences if each.table == table]


MERGE: dict[str, dict[str, Any]] = {
    "by a primary key": {"primary_key": "id"},
    "by two primary keys": {"primary_key": ["id", "shop"]},
    "by a merge key": {"merge_key": "shop"},
    "by both": {"primary_key": "id", "merge_key": "shop"},
    "with upsert": {"primary_key": "id", "write_disposition": {"disposition": "merge", "strategy": "upsert"}},
    "with insert-only": {"primary_key": "id", "write_disposition": {"disposition": "merge", "strategy": "insert-only"}},
    "with scd2": {"write_disposition": {"disposition": "merge", "strategy": "scd2"}},
    "without a key": {},
}
HINTS: dict[str, dict[str, Any]] = {
    "append": {"write_disposition": "append"},
    "replace": {"write_disposition": "replace"},
    **{f"merge {how}": {"write_disposition": "merge", **hints} for how, hints in MERGE.items()},
}


@pytest.mark.parametrize("how", HINTS)
def test_each_disposition_is_right_and_each_difference_is_seen(shop: Pipeline, how: str) -> None:
    first, nested, doubled, root = (Verifier(shop) for _ in range(4))
    shop.run(dlt.resource(orders(1), name="orders", **HINTS[how]))
    right = [first.verify()]
    if how != "merge with insert-only":  # it leaves those of the first load as they are
        nested, doubled, root = (Verifier(shop) for _ in range(3))
        shop.run(dlt.resource(orders(2), name="orders", **HINTS[how]))
        right.append(first.verify())
    keeps_versions = how in ("append", "merge without a key", "merge with scd2")
    of_load = "version = 2 AND" if keeps_versions else ""
    is_by_row = how == "merge with scd2"

    execute(shop, 'DELETE FROM {orders__lines__discounts} WHERE "of" = 1')
    without_nested = nested.verify()
    twin = "" if is_by_row else "; UPDATE twin SET _dlt_id = 'twin'"
    # An upsert updates each row with its key, however many there are. PostgreSQL takes no row twice.
    if how != "merge with upsert" and (not is_by_row or shop.destination.destination_name == "duckdb"):
        execute(
            shop,
            f"CREATE TABLE twin AS SELECT * FROM {{orders}} WHERE {of_load} id = 1{twin}; "
            "INSERT INTO {orders} SELECT * FROM twin; DROP TABLE twin",
        )
        ((what, expected, held),) = found(doubled.verify(), "orders")
        assert (expected, held) == ((0, 1) if what == "keys in several rows" else (4, 5))
    execute(shop, f"DELETE FROM {{orders}} WHERE {of_load} id IN (1, 3)")
    without_root = root.verify()

    for verification in right:
        assert verification.tables == NESTED
        assert (verification.differences, verification.not_verified) == ((), ())
    assert {each.table for each in without_nested.differences} == {"orders__lines__discounts"}
    ((_, expected, left),) = found(without_root, "orders")
    assert (expected, left) == (4, 2)


def test_a_key_that_was_there_twice_before_an_upsert_is_no_difference(pipeline: Callable[..., Pipeline]) -> None:
    """On DuckDB; PostgreSQL would give both rows one id, and refuses."""
    shop = pipeline()
    shop.run([{"id": 1}, {"id": 1}], table_name="visits")
    upserted = Verifier(shop)
    upsert = {"disposition": "merge", "strategy": "upsert"}
    shop.run(dlt.resource([{"id": 1}], name="visits", primary_key="id", write_disposition=upsert))

    verification = upserted.verify()

    assert (verification.tables, verification.differences) == (["visits"], ())


@pytest.mark.parametrize("strategy", ["truncate-and-insert", "insert-from-staging", "staging-optimized"])
def test_a_table_that_is_replaced_is_counted_whole_and_so_is_what_is_nested_in_it(
    shop: Pipeline, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    if strategy == "staging-optimized" and shop.destination.destination_name == "duckdb":
        pytest.skip("dlt's DuckDB has no such strategy")
    monkeypatch.setenv("DESTINATION__REPLACE_STRATEGY", strategy)
    shop.run(orders(1), table_name="orders", write_disposition="replace")
    emptied, filled = Verifier(shop), Verifier(shop)
    shop.run([{"id": 1}], table_name="orders", write_disposition="replace")

    right = emptied.verify()
    execute(shop, "INSERT INTO {orders__lines} (_dlt_id, _dlt_parent_id, _dlt_list_idx) VALUES ('x', 'y', 0)")

    assert (right.tables, right.differences) == (NESTED, ())
    assert found(filled.verify(), "orders__lines") == [("rows in all", 0, 1)]


@pytest.mark.parametrize("strategy", ["delete-insert", pytest.param("upsert", marks=pytest.mark.slow)])
def test_rows_that_are_marked_as_deleted_are_not_expected(shop: Pipeline, strategy: str) -> None:
    @dlt.resource(
        name="orders",
        write_disposition={"disposition": "merge", "strategy": strategy},  # type: ignore[typeddict-item]
        primary_key="id",
        columns={"gone": {"hard_delete": True, "data_type": "bool"}},
    )
    def changed(*keys_gone: int) -> Any:
        yield [{**row, "gone": row["id"] in keys_gone} for row in orders(len(keys_gone))]

    shop.run(changed())
    right, kept, lost = (Verifier(shop) for _ in range(3))
    shop.run(changed(2, 3))

    assert (right.verify().tables, kept.verify().differences) == (NESTED, ())
    execute(shop, "UPDATE {orders} SET id = 3 WHERE id = 1")
    deleted = [("keys that were marked as deleted", 0, 1)] if strategy == "delete-insert" else []
    assert found(lost.verify(), "orders") == [("distinct keys", 2, 1), *deleted]


def test_the_last_of_several_rows_decides_whether_a_key_is_deleted(shop: Pipeline) -> None:
    @dlt.resource(
        write_disposition="merge",
        primary_key="id",
        columns={
            "gone": {"hard_delete": True, "data_type": "bool"},
            "at": {"dedup_sort": "desc", "data_type": "bigint"},
        },
    )
    def events() -> Any:
        yield [{"id": 1, "at": 1, "gone": False}, {"id": 1, "at": 2, "gone": True}]
        yield [{"id": 2, "at": 1, "gone": True}, {"id": 2, "at": 2, "gone": False}]
        yield [{"id": 3, "at": 1, "gone": True}, {"id": 3, "at": 1, "gone": False}]

    verifier = Verifier(shop)
    shop.run(events())
    verification = verifier.verify()

    assert verification.differences == ()
    assert [each.expected for each in verification.held if each.table == "events"] == [1]
    assert [each.reason[:9] for each in verification.not_verified] == ["1 of its "]  # dlt picks either row of the third


def test_a_load_that_is_entered_twice_or_not_at_all_is_seen(pipeline: Make) -> None:
    shop = pipeline()
    twice, never = Verifier(shop), Verifier(shop)
    shop.run(orders(1), table_name="orders")

    execute(shop, "INSERT INTO {_dlt_loads} SELECT * FROM {_dlt_loads}")
    assert found(twice.verify(), "_dlt_loads") == [("entries of the load", 1, 2)]
    execute(shop, "DELETE FROM {_dlt_loads}")
    assert found(never.verify(), "_dlt_loads") == [("entries of the load", 1, 0)]


def test_a_table_that_is_gone_holds_nothing(shop: Pipeline) -> None:
    verifier = Verifier(shop)
    shop.run(orders(1), table_name="orders")
    execute(shop, "DROP TABLE {orders__lines__discounts}")

    assert found(verifier.verify(), "orders__lines__discounts") == [("rows of the load", 8, 0)]


def test_rows_lost_on_the_way_into_the_staging_dataset_are_seen(
    shop: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOAD__TRUNCATE_STAGING_DATASET", "false")
    verifier, emptied = Verifier(shop), Verifier(shop)
    shop.run(orders(1), table_name="orders", write_disposition="merge", primary_key="id")
    with shop.sql_client() as client, client.with_staging_dataset():
        client.execute_sql(f"DELETE FROM {client.make_qualified_table_name('orders')} WHERE id = 1")

    assert found(verifier.verify(), "orders") == [("staged rows", 4, 3)]

    monkeypatch.setenv("SHOP__LOAD__TRUNCATE_STAGING_DATASET", "true")
    assert set(emptied.verify().reasons()) == {EMPTIED}


def test_nothing_to_load_is_nothing_to_verify(pipeline: Make) -> None:
    shop = pipeline()
    verifier = Verifier(shop)
    assert verifier.verify() == Verification()

    shop.run([], table_name="orders")
    only_state = verifier.verify()

    assert (only_state.tables, only_state.differences, only_state.not_verified) == ([], (), ())
    assert {each.table for each in only_state.held} == {"_dlt_loads", "_dlt_pipeline_state"}
    shop.run([], table_name="orders")
    assert verifier.verify() == Verification()


def test_what_another_process_normalised_is_verified_as_well(pipeline: Make) -> None:
    shop = pipeline()
    shop.extract(orders(1), table_name="orders")
    shop.normalize()
    again = pipeline()
    verifier = Verifier(again)
    again.load()

    verification = verifier.verify()

    assert (verification.tables, verification.differences) == (NESTED, ())


def test_where_job_files_are_removed_what_this_process_normalised_is_known(
    pipeline: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOAD__DELETE_COMPLETED_JOBS", "true")
    shop = pipeline()
    here, elsewhere = Verifier(shop), Verifier(shop)
    shop.extract(orders(1), table_name="orders")
    info = shop.normalize()
    shop.load()

    assert here.verify([info]).tables == NESTED
    verification = elsewhere.verify()
    assert verification.tables == []
    assert set(verification.reasons()["its job files are removed after the load (load.delete_completed_jobs)"]) > set(
        NESTED
    )


@pytest.mark.slow
def test_arrow_tables_without_load_ids_are_listed_with_the_way_to_get_them(pipeline: Make) -> None:
    pa: Any = pytest.importorskip("pyarrow")
    shop = pipeline()
    verifier = Verifier(shop)
    shop.run(pa.table({"id": [1, 2]}), table_name="arrow")
    ((reason, tables),) = verifier.verify().reasons().items()
    assert tables == ["arrow"]
    assert "add_dlt_load_id" in reason

    shop.run(pa.table({"id": [1, 2]}), table_name="arrow", write_disposition="replace")
    assert verifier.verify().tables == ["arrow"]
    shop.run(pa.table({"id": [1, 1]}), table_name="merged", write_disposition="merge", primary_key="id")
    assert verifier.verify().tables == ["merged"]


def test_ids_that_the_data_brings_along_are_no_difference(pipeline: Make) -> None:
    """Data that dlt has loaded elsewhere, and that is copied from there."""
    pa: Any = pytest.importorskip("pyarrow")
    shop = pipeline()
    verifier = Verifier(shop)
    shop.run(pa.table({"id": [1], "_dlt_load_id": ["1700000000.1"]}), table_name="arrow")
    told = verifier.verify()
    assert not told.differences
    assert [each.table for each in told.not_verified] == ["arrow"]

    rows = [{"id": 1, "_dlt_id": "brought along", "lines": [{"sku": "a"}]}]
    shop.run(rows, table_name="orders")
    assert verifier.verify().tables == ["orders", "orders__lines"]
    shop.run(rows, table_name="orders")
    told = verifier.verify()
    assert not told.differences
    assert told.tables == ["orders"]
    assert [each.table for each in told.not_verified] == ["orders__lines"]


@pytest.mark.slow
def test_of_several_packages_the_last_one_is_verified_and_appended_rows_of_all(pipeline: Make) -> None:
    shop = pipeline()
    verifier = Verifier(shop)
    for disposition, table in (
        ("append", "events"),
        ("replace", "orders"),
        ("replace", "orders"),
        ("append", "events"),
    ):
        shop.extract(orders(1), table_name=table, write_disposition=disposition)  # type: ignore[arg-type]
        shop.normalize()
    shop.load()

    verification = verifier.verify()

    assert verification.differences == ()
    assert verification.reasons() == {EARLIER_PACKAGE: NESTED}
    counted = [each.load_id for each in verification.held if each.table == "events"]
    assert len(set(counted)) == 2
    assert [each.table for each in verification.held if each.table == "orders"] == ["orders"]


def test_after_a_refresh_only_the_new_rows_are_expected(shop: Pipeline) -> None:
    shop.run(orders(1), table_name="orders")
    verifier = Verifier(shop)
    shop.run(orders(2), table_name="orders", refresh="drop_sources")

    verification = verifier.verify()

    assert (verification.tables, verification.differences) == (NESTED, ())


def test_rows_and_values_that_a_contract_discards_are_not_expected(pipeline: Make) -> None:
    shop = pipeline()
    shop.run([{"id": 1}], table_name="orders")
    verifier = Verifier(shop)
    rows = [{"id": 1}, {"id": 2, "new": True}]
    shop.run(rows, table_name="orders", schema_contract={"columns": "discard_row"})
    discarded = verifier.verify()
    shop.run(rows, table_name="orders", schema_contract={"columns": "discard_value"})

    assert [each.expected for each in discarded.held if each.table == "orders"] == [1]
    assert [each.expected for each in verifier.verify().held if each.table == "orders"] == [2]
    assert discarded.differences == ()


def test_a_destination_without_sql_is_told_and_no_error(tmp_path: Path) -> None:
    files = dlt.pipeline("files", destination=dlt.destinations.filesystem(str(tmp_path / "lake")))
    verifier = Verifier(files)
    files.run(orders(1), table_name="orders")

    verification = verifier.verify()

    assert (
        verification.line()
        == "0 tables verified; 4 not verified: "
        + ", ".join(verification.reasons()["the destination filesystem cannot be asked with SQL"])
        + ", because the destination filesystem cannot be asked with SQL"
    )
    assert not verification.is_trouble


def test_a_destination_that_cannot_be_asked_costs_the_verification_only(pipeline: Make) -> None:
    shop = pipeline()
    verifier, later = Verifier(shop), Verifier(shop)
    shop.run(orders(1), table_name="orders")
    shop.destination = dlt.destinations.duckdb("/nowhere/warehouse.duckdb")  # type: ignore[assignment]

    verification = verifier.verify()

    assert verification.is_trouble
    assert {each.table for each in verification.not_verified} >= set(NESTED)
    assert "the destination could not be asked (" in verification.line()

    shop.destination = dlt.destinations.duckdb(str(Path.cwd() / "warehouse.duckdb"))  # type: ignore[assignment]
    assert later.verify().tables == NESTED
