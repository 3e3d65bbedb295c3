"""Which failed runs are worth another try, and ready-made policies for how often and how long."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from dlt.common.destination.exceptions import SchemaUpdateError
from dlt.common.exceptions import MissingDependencyException, TerminalException, TransientException
from dlt.destinations.exceptions import DestinationConnectionError
from dlt.extract.exceptions import SourceExhausted
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.typing import TPipelineStep
from tenacity import (
    Retrying,
    stop_after_attempt,
    stop_all,
    stop_any,
    stop_never,
    wait_exponential,
    wait_fixed,
    wait_none,
)

from prefect_dlt.errors import ConfigurationError, PrefectDltError
from prefect_dlt.refusals import refusal

RETRYABLE_STEPS: tuple[TPipelineStep, ...] = ("extract", "normalize", "load")


LONGEST_WAIT = 10.0**9
"""Seconds from which on a policy's longest pause is no limit; tenacity has such a number where none is set."""


def no_retry() -> Retrying:
    """Return the policy that makes one attempt."""
    return Retrying(stop=stop_after_attempt(1), reraise=True)


def fixed_attempts(attempts: int, wait: float = 1.0) -> Retrying:
    """Return a policy that pauses equally long between attempts.

    Args:
        attempts: Attempts in total, the first one included; at least 1.
        wait: Pause between two attempts, in seconds.

    Raises:
        ConfigurationError: If `attempts` is below 1 or `wait` is negative.
    """
    _check_attempts(attempts)
    check_seconds("wait", wait)
    return Retrying(stop=stop_after_attempt(attempts), wait=wait_fixed(wait), reraise=True)


def exponential_backoff(attempts: int, multiplier: float = 1.0, min: float = 1.0, max: float = 60.0) -> Retrying:  # noqa: A002 - tenacity's names
    """Return a policy whose pauses double from attempt to attempt.

    Args:
        attempts: Attempts in total, the first one included; at least 1.
        multiplier: Factor on the pauses of 1, 2, 4, 8 … seconds.
        min: Shortest pause, in seconds.
        max: Longest pause, in seconds.

    Raises:
        ConfigurationError: If `attempts` is below 1, a number of seconds is negative, or `min` is above `max`.
    """
    _check_attempts(attempts)
    for name, value in (("multiplier", multiplier), ("min", min), ("max", max)):
        check_seconds(name, value)
    if min > max:
        raise ConfigurationError("min", min, f"the shortest pause is at most the longest one, max={max}")
    return Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait_exponential(multiplier=multiplier, min=min, max=max),
        reraise=True,
    )


POLICIES = ("none", "fixed_attempts", "exponential_backoff")
"""Names of the ready-made policies."""


def policy_named(  # noqa: PLR0917 - one after another, as configured
    name: str,
    attempts: int = 3,
    wait: float = 1.0,
    multiplier: float = 1.0,
    min: float = 1.0,  # noqa: A002 - tenacity's names
    max: float = 60.0,  # noqa: A002 - tenacity's names
) -> Retrying:
    """Return a ready-made policy by its name.

    Args:
        name: "none", "fixed_attempts" or "exponential_backoff".
        attempts: Attempts in total, the first one included; at least 1. For both policies that retry.
        wait: Pause of "fixed_attempts", in seconds.
        multiplier: Factor on the pauses of "exponential_backoff".
        min: Shortest pause of "exponential_backoff", in seconds.
        max: Longest pause of "exponential_backoff", in seconds.

    Raises:
        ConfigurationError: If there is no policy of that name, or a number cannot work.
    """
    if name == "none":
        return no_retry()
    if name == "fixed_attempts":
        return fixed_attempts(attempts, wait)
    if name == "exponential_backoff":
        return exponential_backoff(attempts, multiplier, min, max)
    raise ConfigurationError("retry_policy", name, f"choose one of {', '.join(map(repr, POLICIES))}")


def worth_retrying(steps: Sequence[TPipelineStep] = ("load",)) -> Callable[[BaseException], bool]:
    """Return the test that decides whether a failed attempt may pass when it is made again.

    Not worth it: a stop request (Ctrl-C, SIGTERM, a cancelled Prefect run), a terminal error of dlt, a generator that
    has already been read, what a server has refused for good (a wrong password, HTTP 404, a missing table), an error of
    this package, and a failure in a step that is not in `steps`. A failure outside extract, normalize and load, such as
    synchronising with the destination, is judged by its kind alone. A race between pipelines that create the same table
    is terminal for dlt, which offers `retry_schema_update` for it; it is tried again when "load" is one of the steps.

    Args:
        steps: dlt steps that may be repeated, of "extract", "normalize" and "load".
    """
    return lambda error: why_not_retried(error, steps) is None


def why_not_retried(error: BaseException, steps: Sequence[TPipelineStep] = ("load",)) -> str | None:
    """Say why a failed attempt is not worth another, as `worth_retrying` decides; None when it is.

    Args:
        error: What the attempt failed with.
        steps: dlt steps that may be repeated.
    """
    # dlt wraps Ctrl-C in PipelineStepFailed, an ordinary exception: a stop request may be anywhere in the chain.
    if (stop := next(filter(is_stop_request, chain(error)), None)) is not None:
        return f"the run was asked to stop ({type(stop).__name__})"
    if is_exhausted(error):
        return "the generator it was given has been read, and cannot be read again"
    if isinstance(error, PipelineStepFailed) and error.step not in (*steps, "sync"):
        return f"{error.step} is none of the steps that are retried ({', '.join(steps) or 'none'})"
    verdict = _verdict(error, steps)
    return None if verdict is None else f"it would fail in the same way again ({verdict})"


def _verdict(error: BaseException, steps: Sequence[TPipelineStep]) -> str | None:
    """Return what says that an error is terminal; None when nothing does."""
    if isinstance(error, PrefectDltError):
        return type(error).__name__
    causes = list(chain(error, explicit=True))
    if "load" in steps and any(isinstance(cause, SchemaUpdateError) for cause in causes):
        return None
    for cause in causes:
        # The outermost verdict counts: whoever wrapped an error knew what it meant there.
        if isinstance(cause, TerminalException | ModuleNotFoundError | MissingDependencyException):
            return type(cause).__name__
        # dlt calls each failure to connect transient, that of a wrong password as well.
        if isinstance(cause, TransientException) and not isinstance(cause, DestinationConnectionError):
            return None
        if (refused := refusal(cause)) is not None:
            return refused
    return None


def most_attempts(policy: Retrying) -> int | None:
    """Return how many attempts a policy makes at most; None where it counts something else, such as time."""
    return _most_attempts(policy.stop)


def _most_attempts(stop: Any) -> int | None:
    if isinstance(stop, stop_any):
        limits = [limit for each in stop.stops if (limit := _most_attempts(each)) is not None]
        return min(limits, default=None)
    if isinstance(stop, stop_all):
        limits = [_most_attempts(each) for each in stop.stops]
        return None if None in limits else max(filter(None, limits), default=None)
    return getattr(stop, "max_attempt_number", None)


def policy_text(policy: Retrying) -> str:
    """Return a policy as text: when it stops, and how long it waits; for example "3 attempts, wait 1.0 s"."""
    return f"{_stop_text(policy.stop)}{_wait_text(policy.wait)}"


def _stop_text(stop: Any) -> str:
    for combined, word in ((stop_any, " or "), (stop_all, " and ")):
        if isinstance(stop, combined):
            return word.join(_stop_text(each) for each in stop.stops)
    if (attempts := getattr(stop, "max_attempt_number", None)) is not None:
        return f"{attempts} attempt" if attempts == 1 else f"{attempts} attempts"
    if (delay := getattr(stop, "max_delay", None)) is not None:
        return f"{delay:g} s in all"
    return "no end" if isinstance(stop, type(stop_never)) else getattr(stop, "__name__", type(stop).__name__)


def _wait_text(wait: Any) -> str:
    if isinstance(wait, wait_none):
        return ""
    if isinstance(wait, wait_fixed):
        return f", wait {wait.wait_fixed:g} s"
    if isinstance(wait, wait_exponential):
        longest = f", at most {wait.max:g} s" if wait.max < LONGEST_WAIT else ""
        return f", wait from {max(wait.multiplier, wait.min):g} s on, longer each time{longest}"
    return f", {getattr(wait, '__name__', type(wait).__name__)}"


def check_steps(steps: Sequence[str]) -> tuple[TPipelineStep, ...]:
    """Return the steps, or raise `ConfigurationError` when one of them is none of dlt's that can be repeated."""
    is_list = isinstance(steps, Iterable) and not isinstance(steps, str)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not is_list or not all(step in RETRYABLE_STEPS for step in steps):
        expected = f"give a list of {', '.join(map(repr, RETRYABLE_STEPS))}"
        raise ConfigurationError("retry_pipeline_steps", steps, expected)
    return tuple(step for step in RETRYABLE_STEPS if step in steps)


def is_stop_request(error: BaseException) -> bool:
    """Tell whether an error asks the program to end: Ctrl-C, SystemExit, Prefect's and dlt's termination signals."""
    # dlt's markers, not exceptions by themselves, are mixed into ordinary exceptions.
    return not isinstance(error, Exception)


def is_exhausted(error: BaseException) -> bool:
    """Tell whether an error says that a generator was read before, so that there is nothing to extract again."""
    return any(isinstance(cause, SourceExhausted) for cause in chain(error, explicit=True))


def chain(error: BaseException, *, explicit: bool = False) -> Iterator[BaseException]:
    """Yield an error and all that is behind it, each once, the nearest first.

    Args:
        error: The error.
        explicit: Whether to leave out what was merely being handled when an error was raised.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        # The cause does not survive the way between processes; what dlt wraps does.
        waiting += [each.__cause__, each.exception if isinstance(each, PipelineStepFailed) else None]
        # That of a connection is not its cause either.
        waiting.append(each.inner_exc if isinstance(each, DestinationConnectionError) else None)
        if not explicit:
            waiting.append(each.__context__)


def _check_attempts(attempts: int) -> None:
    # bool is an int; True attempts is a mistake that would pass as one.
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError("attempts", attempts, "give a whole number of attempts, at least 1")


def check_seconds(name: str, seconds: float) -> float:
    """Return the seconds, or raise `ConfigurationError` when they are negative, endless, or no number."""
    # bool is an int, and True seconds are a mistake.
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(name, seconds, "give seconds, at least 0")
    return seconds
