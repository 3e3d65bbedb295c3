"""Which failed runs are worth another try, and ready-made policies for how often and how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dlt.common.exceptions import SignalReceivedException, TerminalException
from dlt.extract.exceptions import SourceExhausted
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.helpers import retry_load, retry_schema_update
from dlt.pipeline.typing import TPipelineStep
from tenacity import Retrying, stop_after_attempt, wait_exponential, wait_fixed

from prefect_dlt.errors import ConfigurationError

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
    has already been read, and a failure in a step that is not in `steps`. A failure outside extract, normalize and
    load, such as synchronising with the destination, is judged by its kind alone. A race between pipelines that create
    the same table is terminal for dlt's `retry_load`, but not for its `retry_schema_update`, and is tried again when
    "load" is one of the steps.

    Args:
        steps: dlt steps that may be repeated, of "extract", "normalize" and "load".
    """
    may_pass = retry_load((*steps, "sync"))
    may_pass_after_race = retry_schema_update()

    def test(error: BaseException) -> bool:
        causes = list(chain(error))
        # dlt wraps Ctrl-C in PipelineStepFailed, an ordinary exception: a stop request may be anywhere in the chain.
        if any(is_stop_request(cause) or isinstance(cause, SourceExhausted) for cause in causes):
            return False
        if isinstance(error, PipelineStepFailed) and error.step not in (*steps, "sync"):
            return False
        if may_pass_after_race(error):
            return True
        if any(isinstance(cause, TerminalException) for cause in causes):
            return False
        return may_pass(error)

    return test


def check_steps(steps: Sequence[str]) -> tuple[TPipelineStep, ...]:
    """Return the steps, or raise `ConfigurationError` when one of them is none of dlt's that can be repeated."""
    allowed = f"give a list of {', '.join(map(repr, RETRYABLE_STEPS))}"
    if isinstance(steps, str):
        raise ConfigurationError("retry_pipeline_steps", steps, allowed)
    for step in steps:
        if step not in RETRYABLE_STEPS:
            raise ConfigurationError("retry_pipeline_steps", steps, allowed)
    return tuple(step for step in RETRYABLE_STEPS if step in steps)


def is_stop_request(error: BaseException) -> bool:
    """Tell whether an error asks the program to end: Ctrl-C, SystemExit, Prefect's and dlt's termination signals."""
    # dlt's markers are mixed into ordinary exceptions; everything else outside Exception is a request to stop.
    return isinstance(error, SignalReceivedException) or not isinstance(error, Exception)


def is_exhausted(error: BaseException) -> bool:
    """Tell whether an error says that a generator was read before, so that there is nothing to extract again."""
    return any(isinstance(cause, SourceExhausted) for cause in chain(error))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then what caused it, then what caused that, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        wrapped = error.exception if isinstance(error, PipelineStepFailed) else None
        error = error.__cause__ or wrapped or (None if error.__suppress_context__ else error.__context__)


def _check_attempts(attempts: int) -> None:
    # bool is an int; True attempts is a mistake that would pass as one.
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError("attempts", attempts, "give a whole number of attempts, at least 1")


def _check_seconds(name: str, seconds: float) -> None:
    if seconds < 0:
        raise ConfigurationError(name, seconds, "give seconds, at least 0")
