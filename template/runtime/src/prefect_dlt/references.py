"""What travels to another process in place of a pipeline and a source: functions that build them there."""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import cloudpickle  # pyright: ignore[reportMissingTypeStubs]
from dlt.extract import DltResource, DltSource
from dlt.pipeline.pipeline import Pipeline
from tenacity import Retrying, stop_after_attempt, wait_exponential, wait_fixed
from typing_extensions import override

from prefect_dlt.errors import CallableNeededError, ConfigurationError
from prefect_dlt.redact import redact
from prefect_dlt.retry import policy_named

Json = dict[str, Any]


@dataclass(frozen=True)
class ByName:
    """A function that is imported where it is called; all the rest of it stays behind.

    A source factory cannot go otherwise: once it has been called, dlt hangs on to it what only this process has.
    """

    module: str
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import the function and call it."""
        return _found(self.module, self.name)(*args, **kwargs)


def by_name(value: Any) -> Any:
    """Return a function that other processes can import so that it is sent by its name; anything else as it is."""
    if isinstance(value, Pipeline | DltSource | DltResource) or not callable(value):
        return value
    function, args, kwargs = _parts_of(value)
    if isinstance(function, ByName) or _why_not_importable(function) is not None:
        return value
    return functools.partial(ByName(function.__module__, _qualified_name(function)), *args, **kwargs)


def check_sendable(argument: str, value: Any, where: str) -> None:
    """Refuse what cannot be sent to a task in another process: a function may be, by name or, with cloudpickle, whole.

    Args:
        argument: What the value was given as: "pipeline" or "source".
        value: The value.
        where: Who is to build it, "Tasks of a DaskTaskRunner" for example.

    Raises:
        CallableNeededError: If it is an object, or a function that holds one, or one that cannot be pickled.
    """
    check_callable(argument, value, where)
    finder = _Finder(io.BytesIO())
    try:
        finder.dump(by_name(value))  # pyright: ignore[reportUnknownMemberType]
    except Exception as error:
        what = f"a function that cannot be sent there ({type(error).__name__}: {error})"
        raise CallableNeededError(argument, what, where, _example(argument, value)) from error
    if finder.found is not None:
        what = f"a function that holds {_described(finder.found)}, which cannot be sent there"
        raise CallableNeededError(argument, what, where, _example(argument, finder.found))


def reference_of(argument: str, value: Any, where: str, secrets: Iterable[str] = ()) -> Json:
    """Return a reference to a function, with its arguments: as JSON, which `build` takes.

    Args:
        argument: What the function was given as: "pipeline" or "source".
        value: The function; one of a module, a dlt source factory for example, or `functools.partial` of it.
        where: Who is to build it, "Flow runs of 'a pool'" for example.
        secrets: What must not be in the arguments, since references are written down.

    Raises:
        CallableNeededError: If it is no function of a module.
        ConfigurationError: If an argument is no JSON, or a secret.
    """
    check_callable(argument, value, where)
    function, arguments, named = _parts_of(value)
    if (problem := _why_not_importable(function)) is not None:
        raise CallableNeededError(argument, problem, where, _example(argument, value))
    reference = {"call": f"{function.__module__}:{_qualified_name(function)}", "args": list(arguments), "kwargs": named}
    return as_json(argument, reference, where, secrets)


def as_json(argument: str, value: Json, where: str, secrets: Iterable[str] = ()) -> Json:
    """Return a value that travels as JSON, and stays what it is on the way.

    Raises:
        ConfigurationError: If it would not, or has a secret in it.
    """
    try:
        text = json.dumps(value)
        stays = json.loads(text) == value
    except (TypeError, ValueError):
        text, stays = "", False
    if not stays:
        expected = f"{where} take JSON: texts, numbers, true, false, null, lists, and mappings with texts as keys"
        raise ConfigurationError(argument, redact(repr(value), secrets), expected)
    if redact(text, secrets) != text:
        expected = f"{where} would write a secret down; have the function read it where it runs, from dlt.secrets"
        raise ConfigurationError(argument, redact(text, secrets), expected)
    return value


def build(reference: Json) -> Any:
    """Call the function that a reference is about, and return what it returns."""
    return callable_of(reference)()


def callable_of(reference: Json) -> Callable[[], Any]:
    """Return the function that a reference is about, with its arguments."""
    module, _, name = str(reference["call"]).partition(":")
    return functools.partial(_found(module, name), *reference["args"], **reference["kwargs"])


def policy_as_json(policy: Retrying | str | None, where: str) -> Json | str | None:
    """Return a retry policy as JSON: a ready-made one of `prefect_dlt.retry`, or the name of one.

    Raises:
        ConfigurationError: If it is another one, which is code.
    """
    if policy is None or isinstance(policy, str):
        return policy
    stop, wait = cast("Any", policy.stop), cast("Any", policy.wait)
    told: Json = {}
    if isinstance(stop, stop_after_attempt):
        attempts = stop.max_attempt_number
        if type(wait) is wait_fixed:
            told = {"name": "fixed_attempts", "attempts": attempts, "wait": wait.wait_fixed}
        elif type(wait) is wait_exponential:
            numbers = {"multiplier": wait.multiplier, "min": wait.min, "max": wait.max}
            told = {"name": "exponential_backoff", "attempts": attempts, **numbers}
        elif attempts == 1:
            told = {"name": "none"}
    # Whatever else it was set up with, a callback for example, would get lost.
    if not told or _settings_of(policy) != _settings_of(policy_of(told)):
        expected = (
            f"to {where[0].lower()}{where[1:]} only the policies of prefect_dlt.retry can be sent; give one of them, "
            "or configure it there, in section [runner] of dlt's configuration"
        )
        raise ConfigurationError("retry_policy", policy, expected)
    return told


def policy_of(told: Any) -> Any:
    """Return what `policy_as_json` was given."""
    return policy_named(**cast("Json", told)) if isinstance(told, dict) else told


def _settings_of(policy: Retrying) -> list[Any]:
    names = ("stop", "wait", "retry", "before", "after", "before_sleep", "retry_error_callback", "reraise", "sleep")
    return [_plain(getattr(policy, name)) for name in names]


def _plain(setting: Any) -> Any:
    # tenacity's objects do not compare by what they hold.
    return (type(setting), vars(setting)) if type(setting).__module__.startswith("tenacity.") else setting


class _Finder(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles, and notes the first object that arrives as something else than it was."""

    found: Any = None

    @override
    def persistent_id(self, obj: Any) -> None:
        # A resource that a function uses arrives whole.
        if self.found is None and isinstance(obj, Pipeline | DltSource):
            self.found = obj


def check_callable(argument: str, value: Any, where: str) -> None:
    """Refuse an object where a function is needed that builds it.

    Raises:
        CallableNeededError: If it is one.
    """
    # A resource and a source can be called as well, but they are data as they stand.
    if isinstance(value, Pipeline | DltSource | DltResource) or not callable(value):
        raise CallableNeededError(argument, _described(value), where, _example(argument, value))


def _described(value: Any) -> str:
    if isinstance(value, Pipeline):
        return f"a pipeline, {value.pipeline_name!r}"
    if isinstance(value, DltSource | DltResource):
        return f"a {'source' if isinstance(value, DltSource) else 'resource'} that is built already, {value.name!r}"
    return f"an object, of class {type(value).__name__}"


def _why_not_importable(function: Any) -> str | None:
    """Say why other processes cannot import a function by its name; None when they can."""
    name, module = _qualified_name(function), str(getattr(function, "__module__", None) or "")
    if not name or not module:
        return f"{_described(function)}, and no function"
    if name.endswith("<lambda>"):
        return "a lambda, which has no name to be imported by"
    if "<locals>" in name:
        return f"the function {name.rpartition('.')[2]!r}, which is defined inside another one and cannot be imported"
    # What was started as a program, and what Prefect loads from a file, is a module under a name of this process.
    if module.startswith("__"):
        return f"the function {name!r} of a program or a file, and not of a module that other processes can import"
    try:
        there = _found(module, name)
    except (ImportError, AttributeError) as error:
        return f"the function {name!r}, which cannot be imported from {module!r} ({error})"
    return None if there is function else f"the function {name!r}, and {module!r} has something else by that name"


def _parts_of(value: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    if isinstance(value, functools.partial):
        given = cast("functools.partial[Any]", value)
        return given.func, given.args, given.keywords
    return value, (), {}


def _found(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), _imported(module))


def _qualified_name(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or "")


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not error.name or module.split(".", maxsplit=1)[0] != error.name.split(".")[0] or os.getcwd() in sys.path:  # noqa: PTH109
            raise
    # Where a deployment has put its code: what a flow run is started in, as with files that Prefect loads.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    return importlib.import_module(module)


def _example(argument: str, value: Any) -> str:
    """Return a function that builds what was given."""
    if argument != "pipeline":
        called = (
            f"{value.name}()" if isinstance(value, DltSource) else "shop()  # a function decorated with @dlt.source"
        )
        return f"    def build_source():\n        return {called}"
    name, destination, dataset = "shop", "duckdb", "shop_data"
    if isinstance(value, Pipeline):
        name, dataset = value.pipeline_name, value.dataset_name or dataset
        destination = value.destination.destination_name if value.destination else destination
    return (
        "    def build_pipeline():\n"
        f'        return dlt.pipeline("{name}", destination="{destination}", dataset_name="{dataset}")'
    )


def flow_runs_of(submit_to: str) -> str:
    """Return how the flow runs are called in messages."""
    return f"Flow runs of {submit_to!r}"
