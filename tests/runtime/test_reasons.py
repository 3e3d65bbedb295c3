"""What an error comes down to: the words of the source or the destination, whatever dlt puts around them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dlt
import duckdb
import pytest
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.reasons import LONGEST_LINE, reason, reason_in_trace, reason_line, text_of, without_tracebacks

CHAIN = """\
Job failed with message: Traceback (most recent call last):
  File "client.py", line 532, in wrap
    return (yield from f())
            ^^^^^^^^^^^^^^
driver.ConstraintException: NOT NULL constraint failed: contacts.email

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "client.py", line 568, in run_managed
    self.run()
dlt.destinations.exceptions.DatabaseTerminalException: NOT NULL constraint failed: contacts.email
. The job is pending."""


def failure_of(run: Callable[[], object]) -> PipelineStepFailed:
    with pytest.raises(PipelineStepFailed) as caught:
        run()
    return caught.value


def in_trace(pipeline: Pipeline) -> str:
    assert pipeline.last_trace is not None
    step = next(each for each in pipeline.last_trace.steps if each.step_exception)
    return reason_in_trace(step.exception_traces, "")


def test_the_error_of_a_source_is_told_in_its_own_words(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.resource
    def orders() -> Iterator[dict[str, int]]:
        yield {"id": 1}
        raise ConnectionError("the source is down")

    shop = pipeline()
    error = failure_of(lambda: shop.run(orders))

    assert "ResourceExtractionError" in text_of(error.exception)
    assert reason(error) == in_trace(shop) == "ConnectionError: the source is down"


def test_a_job_that_the_database_refused_is_told_in_the_words_of_the_driver(pipeline: Callable[..., Pipeline]) -> None:
    shop = pipeline()
    shop.run([{"id": 1, "email": "a@example.com"}], table_name="contacts")
    with duckdb.connect(shop.sql_client().credentials.database) as connection:  # type: ignore[attr-defined]
        connection.execute(f"ALTER TABLE {shop.dataset_name}.contacts ALTER COLUMN email SET NOT NULL")
    error = failure_of(lambda: shop.run([{"id": 2, "email": None}], table_name="contacts"))

    assert "Traceback" in str(error)
    words = "ConstraintException: Constraint Error: NOT NULL constraint failed: contacts.email"
    assert reason(error) == in_trace(shop) == words


def test_an_error_of_the_users_own_is_told_as_it_is() -> None:
    error = ValueError("no")
    error.__cause__ = KeyError("id")

    assert reason(error) == text_of(error) == "ValueError: no"


def test_of_tracebacks_in_a_text_only_what_they_end_with_is_left() -> None:
    assert without_tracebacks(CHAIN) == (
        "Job failed with message: DatabaseTerminalException: NOT NULL constraint failed: contacts.email\n"
        ". The job is pending."
    )
    assert without_tracebacks("a.b: nothing to leave out") == "a.b: nothing to leave out"


def test_a_traceback_in_the_middle_of_a_line_begins_a_chain_of_its_own() -> None:
    traceback = "Traceback (most recent call last):\n  File\nan.Error: no\n"

    assert without_tracebacks(f"first: {traceback}then: {traceback}{traceback}end") == "first: Error: no\nend"
    assert without_tracebacks(f"{traceback}then: {traceback}") == "Error: no\nthen: Error: no"


@pytest.mark.parametrize("before", ["", "x ", "x\n", " "])
@pytest.mark.parametrize("after", ["", "x", " x\n", "a.b.c"])
def test_many_tracebacks_take_time_in_proportion_to_their_length(before: str, after: str) -> None:
    text = f"{before}Traceback (most recent call last):\n{after}" * 10_000
    started = time.process_time()

    without_tracebacks(text)

    # Some hundredths of a second; with each of them looked at from each other one it would take a minute.
    assert time.process_time() - started < 2.0


def test_a_trace_without_exceptions_is_told_by_its_text() -> None:
    assert reason_in_trace([], CHAIN) == without_tracebacks(CHAIN)


def test_a_reason_is_one_bounded_line_without_secrets() -> None:
    line = reason_line(ValueError("bad\n" + "s3cret " * 100 + "\x00"), lambda text: text.replace("s3cret", "***"))

    assert line.startswith("ValueError: bad *** ***")
    assert len(line) == LONGEST_LINE
    assert line.endswith("…")


def test_an_error_without_a_message_is_told_by_its_type() -> None:
    assert text_of(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_destination_that_cannot_be_reached_is_told_in_the_words_of_the_driver(
    pipeline: Callable[..., Pipeline], tmp_path: Path
) -> None:
    (tmp_path / "warehouse.duckdb").write_text("no database")
    shop = pipeline()
    error = failure_of(lambda: shop.run([{"id": 1}], table_name="orders"))

    assert "DestinationConnectionError" in str(error)
    assert reason(error) == in_trace(shop)
    assert reason(error).startswith("IOException: IO Error: ")
