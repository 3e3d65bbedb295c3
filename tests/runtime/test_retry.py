"""What may pass on another try is tried again, and nothing else is."""

import inspect
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dlt
import psycopg2
import pytest
from dlt.common.destination.exceptions import (
    DestinationTerminalException,
    DestinationTransientException,
    SchemaUpdateTerminalError,
    SchemaUpdateTransientError,
)
from dlt.common.exceptions import SignalReceivedException
from dlt.common.runtime import signals
from dlt.destinations.exceptions import DestinationConnectionError
from dlt.extract.exceptions import SourceExhausted
from dlt.load.exceptions import LoadClientJobFailed
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.helpers import retry_load, retry_schema_update
from dlt.pipeline.pipeline import Pipeline
from prefect.exceptions import TerminationSignal
from requests import HTTPError, Response
from sqlalchemy.exc import NoSuchTableError
from tenacity import (
    RetryCallState,
    Retrying,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
    wait_random,
)

from prefect_dlt.errors import ConfigurationError
from prefect_dlt.retry import (
    chain,
    check_steps,
    exponential_backoff,
    fixed_attempts,
    is_exhausted,
    is_stop_request,
    most_attempts,
    no_retry,
    policy_text,
    why_not_retried,
    worth_retrying,
)

ALL_STEPS = ("extract", "normalize", "load")


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    monkeypatch.setenv("LOAD__RAISE_ON_MAX_RETRIES", "1")  # dlt's own retries of a job take seconds


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return dlt.pipeline(
        "shop", destination=dlt.destinations.duckdb(str(tmp_path / "shop.duckdb")), pipelines_dir=str(tmp_path)
    )


def raised_by(act: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any: it is what is looked at
        act()
    return caught.value


def failing_resource(error: BaseException) -> Any:
    @dlt.resource
    def orders() -> Iterator[dict[str, int]]:
        yield {"id": 1}
        raise error

    return orders


def failing_destination(error: BaseException) -> Any:
    @dlt.destination(batch_size=0, name="sink")
    def sink(_items: Any, _table: Any) -> None:
        raise error

    return sink


def step_failed(pipeline: Pipeline, step: Any, cause: BaseException) -> PipelineStepFailed:
    """Return what dlt raises when a step fails, raised the way dlt raises it."""

    def act() -> None:
        try:
            raise cause
        except type(cause) as error:
            raise PipelineStepFailed(pipeline, step, "1.0", error) from error

    error = raised_by(act)
    assert isinstance(error, PipelineStepFailed)
    return error


# -- real failures -----------------------------------------------------------------------------------------------------


def test_a_source_that_is_down_is_tried_again_when_extract_may_be(pipeline: Pipeline) -> None:
    error = raised_by(lambda: pipeline.run(failing_resource(ConnectionError("the source is down"))))

    assert worth_retrying(ALL_STEPS)(error)
    assert not worth_retrying(["load"])(error)


def test_a_failed_load_is_tried_again_by_default(pipeline: Pipeline) -> None:
    error = raised_by(
        lambda: pipeline.run(
            [{"id": 1}],
            table_name="orders",
            destination=failing_destination(DestinationTransientException("the destination is down")),
        )
    )

    assert isinstance(error, PipelineStepFailed)
    assert error.step == "load"
    assert worth_retrying()(error)
    assert not worth_retrying(["extract"])(error)


def test_a_job_that_failed_for_good_is_not_tried_again(pipeline: Pipeline) -> None:
    error = raised_by(
        lambda: pipeline.run(
            [{"id": 1}],
            table_name="orders",
            destination=failing_destination(DestinationTerminalException("no such column")),
        )
    )

    assert not worth_retrying(ALL_STEPS)(error)


def test_a_missing_secret_is_not_looked_for_again(pipeline: Pipeline) -> None:
    @dlt.resource
    def orders(api_token: str = dlt.secrets.value) -> Iterator[str]:
        yield api_token

    error = raised_by(lambda: pipeline.run(orders))

    assert not worth_retrying(ALL_STEPS)(error)


def test_ctrl_c_that_dlt_wraps_ends_the_run(pipeline: Pipeline) -> None:
    error = raised_by(lambda: pipeline.run(failing_resource(KeyboardInterrupt())))

    assert isinstance(error, PipelineStepFailed)
    assert not worth_retrying(ALL_STEPS)(error)


def test_a_cancelled_prefect_run_is_not_tried_again(pipeline: Pipeline) -> None:
    error = raised_by(lambda: pipeline.run(failing_resource(TerminationSignal(signal=15))))

    assert not worth_retrying(ALL_STEPS)(error)


def test_a_load_that_dlt_stops_for_a_signal_is_not_tried_again(pipeline: Pipeline) -> None:
    @dlt.resource
    def orders() -> Iterator[dict[str, int]]:
        yield {"id": 1}
        signals.set_received_signal(15)
        yield {"id": 2}

    try:
        error = raised_by(lambda: pipeline.run(orders))
    finally:
        signals.set_received_signal(0)

    assert not worth_retrying(ALL_STEPS)(error)


def test_a_generator_that_has_been_read_is_not_read_again(pipeline: Pipeline) -> None:
    source = dlt.source(lambda: dlt.resource((row for row in [{"id": 1}]), name="orders"), name="shop")()
    pipeline.extract(source)

    error = raised_by(lambda: pipeline.extract(source))

    assert is_exhausted(error)
    assert not worth_retrying(ALL_STEPS)(error)


def test_a_stop_request_is_found_after_the_way_between_processes(pipeline: Pipeline) -> None:
    error = raised_by(lambda: pipeline.run(failing_resource(KeyboardInterrupt())))

    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made in this line

    assert copy.__cause__ is None
    assert not worth_retrying(ALL_STEPS)(copy)


# -- chains that only chance makes -------------------------------------------------------------------------------------


def test_a_race_for_the_same_table_is_tried_again_when_load_may_be(pipeline: Pipeline) -> None:
    race = SchemaUpdateTerminalError("shop", ["orders"], DestinationTransientException("conflict"))
    error = step_failed(pipeline, "load", race)

    assert worth_retrying(["load"])(error)
    assert not worth_retrying(["extract"])(error)
    assert worth_retrying(["load"])(race)
    assert not worth_retrying(["extract"])(race)


def test_a_failed_synchronisation_is_judged_by_its_kind(pipeline: Pipeline) -> None:
    assert worth_retrying(["load"])(step_failed(pipeline, "sync", ConnectionError("no answer")))
    assert worth_retrying([])(step_failed(pipeline, "sync", ConnectionError("no answer")))
    assert not worth_retrying(["load"])(step_failed(pipeline, "sync", DestinationTerminalException("no such user")))


def test_an_error_outside_any_step_is_judged_by_its_kind() -> None:
    assert worth_retrying()(ConnectionError("no answer"))
    assert not worth_retrying()(DestinationTerminalException("no such user"))


def test_the_outermost_verdict_of_dlt_counts(pipeline: Pipeline) -> None:
    def transient_for_a_terminal_reason() -> None:
        try:
            raise DestinationTerminalException("no such table")
        except DestinationTerminalException as error:
            raise DestinationTransientException("it is being created") from error

    error = step_failed(pipeline, "load", raised_by(transient_for_a_terminal_reason))

    assert worth_retrying()(error)


def test_what_was_being_handled_meanwhile_does_not_make_an_error_terminal(pipeline: Pipeline) -> None:
    def fail_while_creating_what_is_missing() -> None:
        try:
            raise DestinationTerminalException("no such table")
        except DestinationTerminalException:
            raise ConnectionError("no answer")  # noqa: B904 - as it happens

    error = step_failed(pipeline, "load", raised_by(fail_while_creating_what_is_missing))

    assert worth_retrying()(error)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(), TerminationSignal(signal=15)], ids=repr)
def test_a_stop_request_is_found_wherever_it_hides(stop: BaseException) -> None:
    def clean_up_badly() -> None:
        try:
            raise stop
        except BaseException:  # noqa: BLE001 - as careless code does
            raise OSError("could not clean up")  # noqa: B904 - as it happens

    def blame_something_else() -> None:
        try:
            clean_up_badly()
        except OSError:
            raise RuntimeError("failed") from ValueError("unrelated")

    def hide() -> None:
        try:
            clean_up_badly()
        except OSError:
            raise RuntimeError("failed") from None

    for act in (clean_up_badly, blame_something_else, hide):
        assert not worth_retrying(ALL_STEPS)(raised_by(act)), act.__name__


def test_a_chain_that_bites_its_tail_comes_to_an_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__, two.__context__ = two, one, one

    assert list(chain(one)) == [one, two]


@pytest.mark.parametrize(
    ("error", "stops"),
    [
        (KeyboardInterrupt(), True),
        (SystemExit(), True),
        (TerminationSignal(signal=15), True),
        (SignalReceivedException(15), True),
        (DestinationTerminalException("x"), False),
        (DestinationTransientException("x"), False),
        (OSError("x"), False),
    ],
    ids=repr,
)
def test_a_request_to_stop_is_told_from_a_failure(error: BaseException, stops: bool) -> None:
    assert is_stop_request(error) is stops


# -- beside dlt's own judgement ----------------------------------------------------------------------------------------

TERMINAL, TRANSIENT = DestinationTerminalException("no such column"), DestinationTransientException("busy")
NOT_LET_IN = psycopg2.OperationalError('FATAL:  password authentication failed for user "ada"')


def while_handling(handled: Exception, raised: Exception) -> BaseException:
    def act() -> None:
        try:
            raise handled
        except type(handled):
            raise raised  # noqa: B904 - as it happens

    return raised_by(act)


def caused_by(cause: Exception, raised: Exception) -> BaseException:
    def act() -> None:
        raise raised from cause

    return raised_by(act)


def not_found() -> HTTPError:
    response = Response()
    response.status_code = 404
    return HTTPError("404", response=response)


@pytest.mark.parametrize(
    ("step", "cause", "by_dlt", "by_us"),
    [
        # Alike: what dlt knows of an error decides.
        ("load", TRANSIENT, True, True),
        ("load", TERMINAL, False, False),
        ("load", LoadClientJobFailed("1.0", "job", "no such column", TERMINAL), False, False),
        ("load", SchemaUpdateTerminalError("shop", ["orders"], TRANSIENT), True, True),
        ("load", SchemaUpdateTransientError("shop", ["orders"], TRANSIENT), True, True),
        ("load", OSError("down"), True, True),
        ("normalize", OSError("disk full"), False, False),
        ("extract", OSError("down"), True, True),
        (None, OSError("cannot attach"), True, True),
        (None, TERMINAL, False, False),
        ("extract", SignalReceivedException(15), False, False),
        # Tried again here: no step of dlt's helper is called sync, and nothing has begun yet.
        ("sync", OSError("down"), False, True),
        ("sync", TERMINAL, False, False),
        # Tried again here: what was merely being handled says nothing of the error.
        ("load", while_handling(TERMINAL, OSError("down")), True, True),
        (None, while_handling(TERMINAL, OSError("down")), False, True),
        # Not tried again here: it would fail alike, or must not go on.
        ("load", caused_by(TERMINAL, RuntimeError("failed")), True, False),
        ("load", KeyboardInterrupt(), True, False),
        (None, KeyboardInterrupt(), True, False),
        (None, TerminationSignal(signal=15), True, False),
        ("extract", SourceExhausted("shop"), True, False),
        ("extract", not_found(), True, False),
        ("extract", ModuleNotFoundError("no psycopg"), True, False),
        ("extract", NoSuchTableError("orders"), True, False),
        ("sync", NOT_LET_IN, False, False),
        (None, NOT_LET_IN, True, False),
        ("load", DestinationConnectionError("client", "data", "no", NOT_LET_IN), True, False),
        ("load", DestinationConnectionError("client", "data", "no", OSError("down")), True, True),
        (None, ConfigurationError("x", 1, "y"), True, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_where_the_judgement_differs_from_that_of_dlt(
    pipeline: Pipeline, step: Any, cause: BaseException, by_dlt: bool, by_us: bool
) -> None:
    error = step_failed(pipeline, step, cause) if step else cause
    steps = ("extract", "load")

    assert (retry_load(steps)(error) or retry_schema_update()(error)) is by_dlt
    assert worth_retrying(steps)(error) is by_us


# -- policies ----------------------------------------------------------------------------------------------------------


def pauses(policy: Retrying) -> list[float]:
    """Run what always fails under a policy, without pausing; return the pauses it asked for."""
    asked: list[float] = []

    def fail() -> None:
        raise OSError("down")

    with pytest.raises(OSError, match="down"):
        policy.copy(sleep=asked.append)(fail)
    return asked


def test_no_retry_makes_one_attempt() -> None:
    assert pauses(no_retry()) == []


def test_fixed_attempts_pause_equally_long() -> None:
    assert pauses(fixed_attempts(3, wait=7.0)) == [7.0, 7.0]


def test_backoff_doubles_its_pauses_within_its_bounds() -> None:
    assert pauses(exponential_backoff(7, multiplier=2.0, min=3.0, max=20.0)) == [3.0, 4.0, 8.0, 16.0, 20.0, 20.0]


@pytest.mark.parametrize("make", [fixed_attempts, exponential_backoff])
@pytest.mark.parametrize("attempts", [0, -1, 1.5, True, "3"])
def test_a_number_of_attempts_that_is_none_is_refused(make: Callable[[Any], Retrying], attempts: Any) -> None:
    with pytest.raises(ConfigurationError, match="at least 1") as caught:
        make(attempts)
    assert repr(attempts) in str(caught.value)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_a_pause_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match=f"wait cannot be {seconds}"):
        fixed_attempts(2, wait=seconds)
    for name in ("multiplier", "min", "max"):
        with pytest.raises(ConfigurationError, match=f"{name} cannot be {seconds}"):
            exponential_backoff(2, **{name: seconds})


def test_a_shortest_pause_above_the_longest_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max=2"):
        exponential_backoff(2, min=5.0, max=2.0)


def test_the_policies_are_ordinary_tenacity_and_raise_the_error_itself() -> None:
    for policy in (no_retry(), fixed_attempts(2), exponential_backoff(2)):
        assert policy.reraise
        assert "retry_state" in inspect.signature(policy.stop).parameters
        assert isinstance(policy.wait(RetryCallState(policy, None, (), {})), float | int)


def test_steps_come_in_the_order_of_a_run_each_once() -> None:
    assert check_steps(["load", "extract", "load"]) == ("extract", "load")
    assert check_steps(()) == ()


@pytest.mark.parametrize("steps", ["load", "", ["sync"], ["load", "run"], None, 3])
def test_steps_that_are_none_are_refused_with_those_to_choose_from(steps: Any) -> None:
    with pytest.raises(ConfigurationError, match="'extract', 'normalize', 'load'"):
        check_steps(steps)


# -- what is said about a policy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "most", "text"),
    [
        (no_retry(), 1, "1 attempt"),
        (fixed_attempts(3, wait=0.5), 3, "3 attempts, wait 0.5 s"),
        (exponential_backoff(5, max=30), 5, "5 attempts, wait from 1 s on, longer each time, at most 30 s"),
        (Retrying(stop=stop_after_delay(90)), None, "90 s in all"),
        (Retrying(stop=stop_after_attempt(4) | stop_after_delay(60)), 4, "4 attempts or 60 s in all"),
        (Retrying(stop=stop_after_attempt(4) & stop_after_attempt(6)), 6, "4 attempts and 6 attempts"),
        (Retrying(stop=stop_after_attempt(4) & stop_after_delay(60)), None, "4 attempts and 60 s in all"),
        (Retrying(), None, "no end"),
        (Retrying(wait=wait_random(1, 2)), None, "no end, wait_random"),
        (Retrying(stop=lambda _state: True), None, "<lambda>"),
        (Retrying(wait=wait_exponential()), None, "no end, wait from 1 s on, longer each time"),
    ],
)
def test_a_policy_is_told_in_words(policy: Retrying, most: int | None, text: str) -> None:
    assert (most_attempts(policy), policy_text(policy)) == (most, text)
    # On its way to another process a policy is copied.
    assert policy_text(cloudpickle.loads(cloudpickle.dumps(policy))) == text


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (KeyboardInterrupt(), "the run was asked to stop (KeyboardInterrupt)"),
        (SourceExhausted("shop"), "the generator it was given has been read, and cannot be read again"),
        (ConfigurationError("x", 1, "y"), "it would fail in the same way again (ConfigurationError)"),
        (DestinationTerminalException("no"), "it would fail in the same way again (DestinationTerminalException)"),
        (DestinationTransientException("busy"), None),
        (ConnectionError("asleep"), None),
    ],
)
def test_what_is_not_retried_has_a_reason(error: BaseException, why: str | None) -> None:
    assert why_not_retried(error) == why
    assert worth_retrying()(error) is (why is None)
