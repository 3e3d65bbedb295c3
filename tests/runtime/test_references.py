"""Pipelines and sources travel as references to functions; what cannot is refused, with the function to write."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline
from tenacity import Retrying, stop_after_attempt, stop_after_delay

from prefect_dlt.component_load import ComponentLoad
from prefect_dlt.errors import CallableNeededError, ConfigurationError
from prefect_dlt.references import as_json, build, check_sendable, policy_as_json, policy_of, reference_of
from prefect_dlt.retry import exponential_backoff, fixed_attempts, no_retry
from tests.runtime import sources

HERE = "Flow runs of 'a pool'"


def named(name: str, *, times: int = 1) -> str:
    """Return a text, as a function with arguments does."""
    return name * times


class Shelf:
    """A class with a function in it."""

    @staticmethod
    def books() -> list[str]:
        return ["Faust"]


@pytest.mark.parametrize(
    ("function", "made"),
    [
        (functools.partial(named, "a"), "a"),
        (functools.partial(functools.partial(named, "ab"), times=2), "abab"),
        (Shelf.books, ["Faust"]),
    ],
)
def test_a_reference_builds_what_its_function_does(function: Any, made: Any) -> None:
    assert build(reference_of("source", function, HERE)) == made


def test_a_source_factory_is_a_function_too() -> None:
    reference = reference_of("source", sources.shop, HERE)

    assert reference == {"call": "tests.runtime.sources:shop", "args": [], "kwargs": {}}
    assert set(build(reference).resources) == {"orders", "customers", "greetings"}


def test_an_object_is_refused_with_the_function_to_write(pipeline: Callable[..., Pipeline]) -> None:
    with pytest.raises(CallableNeededError) as raised:
        reference_of("pipeline", pipeline("shop"), HERE)

    assert "pipeline is a pipeline, 'shop'. Flow runs of 'a pool' run in other processes" in str(raised.value)
    assert (
        "    def build_pipeline():\n"
        '        return dlt.pipeline("shop", destination="duckdb", dataset_name="shop_data")\n'
    ) in str(raised.value)
    with pytest.raises(CallableNeededError, match=r"source that is built already, 'shop'[\s\S]*return shop\(\)"):
        reference_of("source", sources.shop(), HERE)
    with pytest.raises(CallableNeededError, match="resource that is built already, 'orders'"):
        reference_of("source", dlt.resource([1], name="orders"), HERE)
    with pytest.raises(CallableNeededError, match="an object, of class list"):
        reference_of("source", [1, 2], HERE)


def test_a_function_that_other_processes_cannot_import_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def inner() -> None: ...

    with pytest.raises(CallableNeededError, match="a lambda"):
        reference_of("source", lambda: None, HERE)
    with pytest.raises(CallableNeededError, match="'inner', which is defined inside another one"):
        reference_of("source", inner, HERE)
    monkeypatch.setattr(named, "__module__", "__main__")
    with pytest.raises(CallableNeededError, match="'named' of a program or a file"):
        reference_of("source", functools.partial(named, "a"), HERE)
    monkeypatch.setattr(named, "__module__", "no.such.module")
    with pytest.raises(CallableNeededError, match=r"cannot be imported from 'no\.such\.module'"):
        reference_of("source", named, HERE)
    monkeypatch.setattr(named, "__module__", "tests.runtime.sources")
    monkeypatch.setattr(named, "__qualname__", "shop")
    with pytest.raises(CallableNeededError, match="has something else by that name"):
        reference_of("source", named, HERE)


@pytest.mark.parametrize("argument", [object(), {1: "a"}, (1, 2), float("nan")])
def test_arguments_that_are_no_json_are_refused(argument: Any) -> None:
    with pytest.raises(ConfigurationError, match="take JSON"):
        reference_of("source", functools.partial(named, argument), HERE)


def test_a_password_is_not_written_down() -> None:
    with pytest.raises(ConfigurationError, match=r"dlt\.secrets") as raised:
        reference_of("source", functools.partial(named, "postgresql://ada:s3cret@db/shop"), HERE)
    assert "s3cret" not in str(raised.value)
    with pytest.raises(ConfigurationError, match=r"dlt\.secrets") as raised:
        as_json("options", {"columns": "known-to-be-one"}, HERE, {"known-to-be-one"})
    assert "known-to-be-one" not in str(raised.value)


@pytest.mark.parametrize(
    "policy", [no_retry(), fixed_attempts(3, wait=5), exponential_backoff(4, 2, 3, 9), "none", None]
)
def test_a_ready_made_policy_arrives_as_it_was(policy: Any) -> None:
    twin = policy_of(policy_as_json(policy, HERE))

    assert type(twin) is type(policy)
    if isinstance(policy, Retrying):
        assert (vars(twin.stop), vars(twin.wait)) == (vars(policy.stop), vars(policy.wait))


@pytest.mark.parametrize(
    "policy",
    [
        Retrying(stop=stop_after_delay(3), reraise=True),
        Retrying(stop=stop_after_attempt(3), before_sleep=print, reraise=True),
        Retrying(stop=stop_after_attempt(3)),
    ],
)
def test_any_other_policy_is_refused_rather_than_changed(policy: Retrying) -> None:
    with pytest.raises(ConfigurationError, match=r"only the policies of prefect_dlt\.retry"):
        policy_as_json(policy, HERE)


# -- to tasks in other processes ---------------------------------------------------------------------------------------


def test_functions_are_sent_by_name_or_whole() -> None:
    name = "orders"

    check_sendable("source", sources.shop, "Tasks")
    check_sendable("source", lambda: [name], "Tasks")
    check_sendable("source", functools.partial(named, object()), "Tasks")


def test_a_function_that_holds_an_object_is_refused(pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
    shop, source = pipeline("shop"), sources.shop()
    with pytest.raises(CallableNeededError, match=r"function that holds a pipeline, 'shop'[\s\S]*def build_pipeline"):
        check_sendable("pipeline", lambda: shop, "Tasks")
    with pytest.raises(CallableNeededError, match="holds a source that is built already, 'shop'"):
        check_sendable("source", lambda: source, "Tasks")
    with (tmp_path / "open").open("w") as file, pytest.raises(CallableNeededError, match="cannot be sent there"):
        check_sendable("source", lambda: file, "Tasks")


def test_a_source_factory_arrives_after_it_has_been_called_here_as_well() -> None:
    # dlt then hangs on to classes that exist in this process only.
    sources.shop()
    work = ComponentLoad(named, sources.shop, {})

    assert b"DltSourceFactoryWrapper" not in cloudpickle.dumps(work)
    twin = pickle.loads(cloudpickle.dumps(work))  # noqa: S301 - our own
    assert set(twin.build_source(None).resources) == {"orders", "customers", "greetings"}
