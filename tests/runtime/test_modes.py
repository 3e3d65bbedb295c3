"""Which mode is taken, and why; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prefect_dlt.errors import CollisionError, ConfigurationError, NotASourceError, SharedStagingError
from prefect_dlt.modes import Circumstances, choose_mode, left_behind

SHOP = Circumstances("shop", parts=3)
SHARED = {"orders": ("Orders", "orders")}


@pytest.mark.parametrize("mode", ["none", "sequential", "parallel"])
def test_a_mode_that_is_asked_for_is_taken_and_said_to_be_asked_for(mode: Any) -> None:
    assert choose_mode(mode, SHOP) == (mode, f"decompose={mode!r}")


def test_the_whole_source_can_always_be_loaded() -> None:
    worst = Circumstances("list", 0, dev_mode=True, shared_tables=SHARED, replaced=frozenset(SHARED))

    assert choose_mode("none", worst)[0] == "none"
    assert choose_mode("auto", worst) == ("none", "list is no dlt source")


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize(
    ("circumstances", "error", "words"),
    [
        (Circumstances("list", 0), NotASourceError, "this is a list"),
        (replace(SHOP, dev_mode=True), ConfigurationError, "dev_mode cannot be True"),
        (
            replace(SHOP, shared_tables=SHARED, replaced=frozenset(SHARED)),
            CollisionError,
            "'Orders', 'orders' write to",
        ),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(mode: Any, circumstances: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        choose_mode(mode, circumstances)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"shared_tables": SHARED}, CollisionError, "write to table 'orders'"),
        ({"shared_names": {"shop__a": ("A", "a")}}, CollisionError, "are loaded by pipeline 'shop__a'"),
        ({"staged_together": ("orders",), "staging": "one dataset for all"}, SharedStagingError, "one dataset for all"),
    ],
)
def test_what_cannot_load_at_the_same_time_can_load_in_turn(changes: Any, error: Any, words: str) -> None:
    circumstances = replace(SHOP, **changes)

    with pytest.raises(error, match=words):
        choose_mode("parallel", circumstances)
    assert choose_mode("sequential", circumstances)[0] == "sequential"
    mode, reason = choose_mode("auto", circumstances)
    assert mode == "sequential"
    assert words in reason


def test_auto_takes_all_parts_at_once_where_nothing_speaks_against_it() -> None:
    mode, reason = choose_mode("auto", SHOP)

    assert mode == "parallel"
    assert "the 3 parts of source 'shop' share nothing" in reason


@pytest.mark.parametrize(
    ("changes", "mode", "words"),
    [
        ({"parts": 1}, "none", "one part only"),
        ({"dev_mode": True}, "none", "dev_mode"),
        ({"one_at_a_time": "SQLite takes one writer at a time"}, "sequential", "SQLite"),
        ({"shared_tables": SHARED, "replaced": frozenset(SHARED)}, "none", "write to table 'orders'"),
    ],
)
def test_auto_says_what_speaks_against_more(changes: Any, mode: str, words: str) -> None:
    chosen, reason = choose_mode("auto", replace(SHOP, **changes))

    assert chosen == mode
    assert words in reason


def test_auto_stays_with_the_pipelines_that_remember_the_state() -> None:
    assert choose_mode("auto", replace(SHOP, loaded_as="whole"))[0] == "sequential"
    assert choose_mode("auto", replace(SHOP, loaded_as="whole", parts=1))[0] == "none"
    for shrunk in (replace(SHOP, parts=1), replace(SHOP, one_at_a_time="SQLite takes one writer at a time")):
        assert choose_mode("auto", replace(shrunk, loaded_as="parts"))[0] == "parallel"


def test_auto_does_not_leave_the_state_of_parts_behind_without_a_word() -> None:
    with pytest.raises(CollisionError):
        choose_mode("auto", replace(SHOP, loaded_as="parts", shared_tables=SHARED))


@pytest.mark.parametrize(
    ("mode", "loaded", "words"),
    [
        (
            "parallel",
            "whole",
            "with one pipeline, which remembers the state of orders: with decompose='parallel'",
        ),
        ("sequential", "parts", "To go on, load with decompose='parallel'"),
    ],
)
def test_a_mode_that_leaves_state_behind_is_warned_of(mode: Any, loaded: Any, words: str) -> None:
    circumstances = replace(SHOP, loaded_as=loaded, remembered=("orders",))

    assert words in left_behind(mode, circumstances)
    assert choose_mode(mode, circumstances)[0] == mode


@pytest.mark.parametrize(
    ("mode", "loaded", "remembered"),
    [
        ("parallel", "whole", ()),
        ("parallel", "parts", ("orders",)),
        ("parallel", None, ()),
        ("sequential", "whole", ("orders",)),
        ("none", "parts", ("orders",)),
    ],
)
def test_what_leaves_no_state_behind_is_not(mode: Any, loaded: Any, remembered: tuple[str, ...]) -> None:
    assert left_behind(mode, replace(SHOP, loaded_as=loaded, remembered=remembered)) == ""
