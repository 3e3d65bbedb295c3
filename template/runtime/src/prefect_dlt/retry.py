"""Which failed runs are worth another try, and ready-made policies for how often and how long."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from dlt.common.destination.exceptions import SchemaUpdateError
from dlt.common.exceptions import TerminalException, TransientException
from dlt.extract.exceptions import SourceExhausted
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.typing import TPipelineStep
from tenacity import Retrying, stop_after_attempt, wait_exponential, wait_fixed

from prefect_dlt.errors import ConfigurationError, PrefectDltError

RETRYABLE_STEPS: tuple[TPipelineStep, ...] = ("extract", "normalize", "load")


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
    _check_seconds("wait", wait)
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
        _check_seconds(name, value)
    if min > max:
        raise ConfigurationError("min", min, f"the shortest pause is at most the longest one, max={max}")
    return Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait_exponential(multiplier=multiplier, min=min, max=max),
        reraise=True,
    )


def worth_retrying(steps: Sequence[TPipelineStep] = ("load",)) -> Callable[[BaseException], bool]:
    """Return the test that decides whether a failed attempt may pass when it is made again.

    Not worth it: a stop request (Ctrl-C, SIGTERM, a cancelled Prefect run), a terminal error of dlt, a generator that
    has already been read, an error of this package, and a failure in a step that is not in `steps`. A failure outside
    extract, normalize and load, such as synchronising with the destination, is judged by its kind alone. A race between
    pipelines that create the same table is terminal for dlt, which offers `retry_schema_update` for it; it is tried
    again when "load" is one of the steps.

    Args:
        steps: dlt steps that may be repeated, of "extract", "normalize" and "load".
    """

    def test(error: BaseException) -> bool:
        # dlt wraps Ctrl-C in PipelineStepFailed, an ordinary exception: a stop request may be anywhere in the chain.
        if any(is_stop_request(each) for each in chain(error)) or is_exhausted(error):
            return False
        if isinstance(error, PrefectDltError):
            return False
        if isinstance(error, PipelineStepFailed) and error.step not in (*steps, "sync"):
            return False
        causes = list(chain(error, explicit=True))
        if "load" in steps and any(isinstance(cause, SchemaUpdateError) for cause in causes):
            return True
        # The outermost verdict counts: whoever wrapped an error knew what it meant there.
        marked = (cause for cause in causes if isinstance(cause, TerminalException | TransientException))
        return not isinstance(next(marked, None), TerminalException)

    return test


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
        if not explicit:
            waiting.append(each.__context__)


def _check_attempts(attempts: int) -> None:
    # bool is an int; True attempts is a mistake that would pass as one.
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError("attempts", attempts, "give a whole number of attempts, at least 1")


def _check_seconds(name: str, seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise ConfigurationError(name, seconds, "give seconds, at least 0")
