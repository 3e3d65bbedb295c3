"""Every error says what happened, to which objects, and what to do; and it survives the way between processes."""

import pickle
import shlex
from collections.abc import Iterator
from pathlib import Path

import dlt
import pytest

from prefect_dlt.command import main
from prefect_dlt.errors import (
    CallableNeededError,
    CollisionError,
    ComponentFailedError,
    ComponentRunsElsewhereError,
    ComponentsFailedError,
    ConfigurationError,
    FailedJobsError,
    NotASourceError,
    PendingDataError,
    PipelineLockedError,
    PrefectDltError,
    SharedStagingError,
    UnknownResourcesError,
    UnknownStateError,
    VerificationError,
)
from prefect_dlt.record import TableRow
from prefect_dlt.results import ComponentResult, all_loaded

EXAMPLES: list[PrefectDltError] = [
    ConfigurationError("attempts", 0, "give a whole number of attempts, at least 1"),
    UnknownResourcesError("shop", ("order",), ("items", "orders")),
    NotASourceError("list"),
    CallableNeededError("pipeline", "a pipeline, 'shop'", "Flow runs of 'a pool'", "    def build_pipeline(): ..."),
    ComponentRunsElsewhereError("shop__people", "people of tidy-fox", 60.0),
    PipelineLockedError("shop", "/data/pipelines/shop", "process 42 (load.py) on host-a, since 09:00:00 UTC", 5.0),
    PendingDataError("shop", "/data/pipelines/shop", ("1700000000.1", "1700000000.2"), ("load package 1: extracted",)),
    UnknownStateError("shop", "/data/pipelines/shop", "1700000000.1"),
    FailedJobsError("shop", (("1700000000.1", "items", "/data/items.1.jsonl", "ConversionException: no number"),)),
    VerificationError("shop", (("1700000000.1", "orders", "rows of the load", 3, 2),)),
    CollisionError("shop", "parallel", "table", {"orders": ("Orders", "orders")}),
    SharedStagingError("shop", ("orders",), "staging_dataset_name_layout names one staging dataset for all"),
    ComponentFailedError("items", "OSError: disk full", {"attempts": 3, "tables": (TableRow("items", 2, 0.1),)}),
    ComponentsFailedError(
        "load shop",
        {"items": "OSError: disk full"},
        ("orders", "users"),
        {"visits": "not started, because 'items' failed"},
        (ComponentResult("items", error="OSError: disk full"),),
    ),
]


def subclasses(of: type) -> Iterator[type]:
    for each in of.__subclasses__():
        yield each
        yield from subclasses(each)


def test_every_error_of_the_package_has_an_example_here() -> None:
    assert {type(error) for error in EXAMPLES} == set(subclasses(PrefectDltError))


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_comes_out_of_a_pickle_as_it_went_in(error: PrefectDltError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made two words earlier

    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy).keys() == vars(error).keys()
    assert str(pickle.loads(pickle.dumps(copy))) == str(error)  # noqa: S301 - and once more, from worker to flow to UI


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_can_be_caught_as_what_python_calls_it_as_well(error: PrefectDltError) -> None:
    assert isinstance(error, (ValueError, TypeError, RuntimeError))


def test_an_error_about_a_value_that_cannot_be_pickled_can_be_pickled() -> None:
    error = ConfigurationError("pipeline", lambda: None, "give what dlt.pipeline() returns")

    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made one line earlier

    assert str(copy) == str(error)
    assert "lambda" in str(copy)


def test_a_wrong_argument_is_named_with_its_value_and_what_is_expected() -> None:
    assert str(ConfigurationError("decompose", "paralel", "give True, False or one of 'none'")) == (
        "decompose cannot be 'paralel': give True, False or one of 'none'."
    )


def test_unknown_resources_are_named_with_those_to_choose_from() -> None:
    assert str(UnknownResourcesError("shop", ("order", "user"), ("orders", "users"))) == (
        "Source 'shop' has no resource 'order', 'user'. Choose from: 'orders', 'users'."
    )


def test_an_empty_source_offers_nothing_to_choose_from() -> None:
    assert str(UnknownResourcesError("shop", ("order",), ())) == (
        "Source 'shop' has no resource 'order'. It has no resources at all."
    )


def test_data_that_is_no_source_is_told_by_its_type_and_how_to_make_it_one() -> None:
    assert "this is a DataFrame" in str(NotASourceError("DataFrame"))
    assert "@dlt.source" in str(NotASourceError("DataFrame"))


def test_failed_components_are_listed_with_their_errors_and_the_way_on() -> None:
    error = ComponentsFailedError("load shop", {"items": "OSError: disk full", "users": "KeyError: 'id'"}, ("orders",))

    assert str(error) == (
        "2 of 3 parts of 'load shop' failed:\n"
        "  items: OSError: disk full\n"
        "  users: KeyError: 'id'\n"
        "The other parts are loaded. Run the flow again: what is pending is finished first."
    )


def test_parts_that_were_not_started_are_told_apart_from_those_that_failed() -> None:
    error = ComponentsFailedError("load shop", {"items": "disk full"}, (), {"users": "not started"})

    assert str(error).splitlines()[2:4] == ["For that, these were not loaded either:", "  users: not started"]


def test_what_collides_is_named_with_the_way_out() -> None:
    error = CollisionError("shop", "parallel", "table", {"orders": ("Orders", "orders")})

    assert "'Orders', 'orders' write to table 'orders'" in str(error)
    assert "decompose='none'" in str(error)
    assert "Rename" in str(CollisionError("shop", "parallel", "pipeline", {"shop__a": ("a", "A")}))


def test_nothing_is_said_about_other_parts_when_all_failed() -> None:
    assert "other parts" not in str(ComponentsFailedError("load shop", {"items": "OSError: disk full"}, ()))


def test_the_command_that_puts_pending_data_aside_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = dlt.pipeline("shop", destination="duckdb", pipelines_dir=str(tmp_path / "my pipelines"))
    pipeline.extract([{"id": 1}], table_name="orders")
    load_ids = tuple(pipeline.list_extracted_load_packages())
    message = str(PendingDataError(pipeline.pipeline_name, pipeline.working_dir, load_ids))
    assert load_ids[0] in message
    assert pipeline.working_dir in message
    command = message.rpartition("`prefect-dlt ")[2].partition("`")[0]

    assert main([*shlex.split(command), "--yes"]) == 0

    assert not pipeline.has_pending_data


def test_parts_that_were_cancelled_without_a_failure_are_not_told_as_failed() -> None:
    results = (ComponentResult("items"), ComponentResult("orders", error="is cancelled", failed_as="interrupted"))

    with pytest.raises(ComponentsFailedError) as raised:
        all_loaded("load shop", results)

    assert str(raised.value).startswith("1 of 2 parts of 'load shop' were not loaded:\n  orders: is cancelled\n")
    assert raised.value.failures == {}
    assert raised.value.loaded == ("items",)


def test_which_flow_run_is_at_work_elsewhere_is_told() -> None:
    message = str(ComponentRunsElsewhereError("shop__items", "items of tidy-fox", 5.0))

    assert "'shop__items' is at work elsewhere in flow run 'items of tidy-fox', which did not end within 5 s" in message


def test_who_holds_a_lock_and_for_how_long_it_was_waited_is_told() -> None:
    error = PipelineLockedError("shop", "/data/pipelines/shop", "process 42 (load.py) on host-a", 5.0)

    assert "process 42 (load.py) on host-a, did not end within 5 s" in str(error)
    assert "has not ended" in str(PipelineLockedError("shop", "/data/pipelines/shop", "process 42", 0.0))
