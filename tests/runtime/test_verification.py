"""What verification decides and says, and what the runner makes of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import CallbackCollector, runner
from prefect_dlt.errors import VerificationError
from prefect_dlt.report import summary
from prefect_dlt.verification import Expected, Held, NotVerified, Verification, written_again
from tests.runtime.conftest import count
from tests.runtime.reports import cells
from tests.runtime.sources import shop

Make = Callable[..., Pipeline]


def losing_a_row(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """Make the destination lose rows of a table just when a load is done."""
    client = type(pipeline.destination_client())
    original = client.complete_load

    def complete_load(self: Any, load_id: str) -> None:
        original(self, load_id)
        name = self.sql_client.make_qualified_table_name(table)
        self.sql_client.execute_sql(f"DELETE FROM {name} WHERE id = 1")

    monkeypatch.setattr(client, "complete_load", complete_load)


# -- what it says ------------------------------------------------------------------------------------------------------


def test_the_outcome_is_told_in_a_line_with_each_reason_once() -> None:
    held = [Held("1", name, "rows of the load", 3, 3) for name in ("items", "orders", "_dlt_loads")]
    missed = [NotVerified("1", f"arrow_{number}", "its rows carry no load id") for number in range(7)]

    assert Verification(tuple(held)).line() == "2 tables verified"
    assert Verification((held[0],)).line() == "1 table verified"
    assert Verification((*held, Held("2", "orders", "rows of the load", 3, 2))).line() == (
        "1 table verified; 1 different: orders"
    )
    told = Verification(tuple(held), tuple(missed))
    assert told.line() == (
        "2 tables verified; 7 not verified: arrow_0, arrow_1, arrow_2, arrow_3, arrow_4 and 2 more, because its rows "
        "carry no load id"
    )
    assert told.outcome() == "2 tables verified; 7 not verified"


def test_verifications_add_up() -> None:
    first = Verification((Held("1", "orders", "rows of the load", 3, 3),))
    second = Verification(not_verified=(NotVerified("2", "orders", "no reason", is_trouble=True),))

    both = first + second

    assert both.load_ids == ("1", "2")
    assert both.is_trouble
    assert not first.is_trouble


@pytest.mark.parametrize(
    ("earlier", "later", "is_again"),
    [
        ("append", "append", False),
        ("append", "merge", True),
        ("append", "replace", True),
        ("merge", "append", True),
        ("merge", "merge", True),
        ("replace", "append", True),
    ],
)
def test_what_a_later_package_may_have_changed_is_not_looked_at(earlier: str, later: str, is_again: bool) -> None:
    first = Expected("1", {}, {"orders": ("orders", earlier), "items": ("items", earlier)})
    second = Expected("2", {}, {"orders__lines": ("orders", later)})

    assert written_again([first, second]) == ({("1", "orders")} if is_again else set())


def test_what_a_later_package_has_dropped_is_not_looked_at() -> None:
    first = Expected("1", {}, {"orders": ("orders", "append")})

    assert written_again([first, Expected("2", {}, {}, frozenset({"orders"}))]) == {("1", "orders")}


def test_an_error_names_what_differs_and_what_to_do() -> None:
    error = VerificationError(
        "shop", (("17.1", "orders", "rows of the load", 1003, 2), ("17.2", "_dlt_loads", "entries of the load", 1, 2))
    )

    assert str(error).splitlines()[:3] == [
        "Pipeline 'shop' has loaded, and the destination does not hold what was normalised:",
        "  table 'orders' of load package 17.1: expected 1,003 rows of the load, found 2: 1,001 missing",
        "  table '_dlt_loads' of load package 17.2: expected 1 entries of the load, found 2: 1 too many",
    ]
    assert "no later run loads it again" in str(error)
    assert error.load_ids == ("17.1", "17.2")


# -- what the runner makes of it ---------------------------------------------------------------------------------------


def test_a_difference_fails_the_run_and_is_not_retried(pipeline: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = pipeline(progress=CallbackCollector())
    losing_a_row(loads, monkeypatch, "customers")
    run = runner(loads, verify=True, retry_policy="fixed_attempts", retry_pipeline_steps=["extract", "load"])

    with pytest.raises(VerificationError) as raised:
        run.run(shop())

    assert [difference[1:] for difference in raised.value.differences] == [("customers", "rows of the load", 3, 2)]
    assert run.record is not None
    assert run.record.attempts == 1
    assert "all that could be loaded is loaded" in run.record.failed_attempts[0].next
    assert run.record.failed_attempts[0].next.endswith("Nothing is pending.")
    page = summary(run.record).page
    assert "3 tables verified; 1 different: customers" in page
    assert cells(page, "Verified")[1][:4] == ["<code>customers</code>", "rows of the load", "3", "2"]
    assert not loads.has_pending_data


def test_a_difference_can_be_a_warning(
    pipeline: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loads = pipeline()
    losing_a_row(loads, monkeypatch, "customers")
    run = runner(loads, verify="warn")

    assert run.run(shop()) is not None

    (warning,) = [each.message for each in caplog.records if "does not hold" in each.message]
    assert "table 'customers' of load package" in warning
    assert "expected 3 rows of the load, found 2: 1 missing" in warning
    assert run.record is not None
    assert run.record.error is None
    assert len(run.record.verification.differences) == 1  # type: ignore[union-attr]


def test_nothing_is_looked_at_unless_it_is_asked_for(pipeline: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = pipeline()
    losing_a_row(loads, monkeypatch, "customers")
    run = runner(loads)

    run.run(shop())

    assert run.record is not None
    assert run.record.verification is None
    assert "Verified" not in summary(run.record).page.partition("## Run configuration")[0]


def test_what_is_right_is_told_in_the_log_and_in_the_summary(pipeline: Make, caplog: pytest.LogCaptureFixture) -> None:
    run = runner(pipeline(), verify=True)
    with caplog.at_level(logging.INFO, "prefect_dlt"):
        run.run(shop())

    assert "Pipeline 'shop': 4 tables verified" in [each.message for each in caplog.records]
    assert run.record is not None
    assert run.record.verification is not None
    assert run.record.verification.tables == ["customers", "greetings", "orders", "orders__items"]
    page = summary(run.record).page
    assert "## Verified\n\n4 tables verified\n" in page
    assert page.index("## Tables") < page.index("## Verified")


def test_no_op_loads_are_fine(pipeline: Make) -> None:
    loads = pipeline()
    run = runner(loads, verify=True)

    assert run.run(None) is None
    run.run([], table_name="orders")
    run.run([], table_name="orders")

    assert run.record is not None
    assert run.record.error is None
    assert run.record.verification == Verification()


def test_pending_data_is_verified_before_new_data_replaces_it(pipeline: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pipeline()
    first.extract([{"id": 1}, {"id": 2}], table_name="orders", write_disposition="replace")
    first.normalize()
    run = runner(pipeline(), verify=True)

    run.run([{"id": 3}], table_name="orders", write_disposition="replace")

    assert run.record is not None
    assert run.record.verification is not None
    assert [each.expected for each in run.record.verification.held if each.table == "orders"] == [2, 1]
    assert run.record.verification.not_verified == ()


def test_a_difference_in_pending_data_is_told_after_the_new_data_is_loaded(
    pipeline: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pipeline()
    first.extract([{"id": 1}, {"id": 2}], table_name="orders")
    first.normalize()
    loads = pipeline()
    losing_a_row(loads, monkeypatch, "orders")

    with pytest.raises(VerificationError) as raised:
        runner(loads, verify=True).run([{"id": 3}], table_name="orders")

    assert [difference[1:] for difference in raised.value.differences] == [("orders", "rows of the load", 2, 1)]
    assert count(loads, "orders") == 2


def test_without_a_trace_the_files_of_the_load_are_enough(pipeline: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME__ENABLE_RUNTIME_TRACE", "false")
    run = runner(pipeline(), verify=True)

    run.run(shop())

    assert run.record is not None
    assert run.record.verification is not None
    assert len(run.record.verification.tables) == 4


def test_a_load_that_succeeds_at_the_second_attempt_is_verified(
    pipeline: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = pipeline()
    client = type(loads.destination_client())
    original = client.complete_load
    errors = [ConnectionError("asleep")]

    def complete_load(self: Any, load_id: str) -> None:
        if errors:
            raise errors.pop()
        original(self, load_id)

    monkeypatch.setattr(client, "complete_load", complete_load)
    failing = runner(loads, verify=True)
    with pytest.raises(PipelineStepFailed):
        failing.run(shop())
    run = runner(loads, verify=True)
    run.finalize()

    assert failing.record is not None
    assert failing.record.verification is None
    assert run.record is not None
    assert run.record.verification is not None
    assert len(run.record.verification.tables) == 4


def test_a_destination_that_cannot_be_asked_is_a_warning_and_no_error(
    pipeline: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loads = pipeline()
    client = type(loads.sql_client())
    original, is_loaded = client.open_connection, [False]

    def open_connection(self: Any) -> Any:
        if is_loaded[0]:
            raise ConnectionError("The warehouse has gone to sleep")
        return original(self)

    monkeypatch.setattr(client, "open_connection", open_connection)

    class Ends(CallbackCollector):
        def after_load(self, pipeline: Any, trace: Any) -> None:
            is_loaded[0] = True

    loads.collector = Ends()
    run = runner(loads, verify=True)

    assert run.run(shop()) is not None

    assert run.record is not None
    assert run.record.verification is not None
    assert run.record.verification.is_trouble
    (warning,) = [each for each in caplog.records if "not verified" in each.message]
    assert warning.levelno == logging.WARNING
    assert "The warehouse has gone to sleep" in warning.message
