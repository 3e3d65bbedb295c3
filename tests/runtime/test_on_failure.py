"""What becomes of the other parts when one fails; and a failed flow tells of all of them."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_dlt import create_run_pipeline_flow
from prefect_dlt.durations import keep_durations
from prefect_dlt.errors import ComponentsFailedError, ConfigurationError
from prefect_dlt.stop import is_asked_to_stop, stopping_for
from tests.runtime.conftest import count

pytestmark = pytest.mark.usefixtures("prefect_api")

LONGEST_WAIT = 60
"""Seconds until a part gives up to be told to stop."""


def failing_source(running: threading.Event, *, ends: bool = False) -> Any:
    """Return a source: "bad" fails as soon as "endless" runs, which then goes on, or until it is told to stop."""

    @dlt.source
    def several() -> Any:
        @dlt.resource
        def bad() -> Iterator[Any]:
            assert running.wait(LONGEST_WAIT)
            raise ConnectionError("the line to mysql://ada:s3cret@db is dead")
            yield

        @dlt.resource
        def endless() -> Iterator[Any]:
            yield [{"id": 0}]
            running.set()
            for number in range(1 if ends else LONGEST_WAIT * 10):
                threading.Event().wait(0.1)
                yield [{"id": number}]

        @dlt.resource
        def waiting() -> Iterator[Any]:
            yield [{"id": 1}]

        return bad, endless, waiting

    return several()


def tables(pipeline: Pipeline) -> set[str]:
    with pipeline.sql_client() as client:
        return {str(row[0]) for row in client.execute_sql("SELECT table_name FROM information_schema.tables") or ()}


def failed(load: Callable[..., Any]) -> ComponentsFailedError:
    with pytest.raises(ComponentsFailedError) as raised:
        load()
    return raised.value


@pytest.mark.slow
def test_what_is_left_is_not_started_and_what_runs_stops_where_nothing_is_lost(
    pipeline: Callable[..., Pipeline],
) -> None:
    running = threading.Event()
    keep_durations(pipeline(), {"bad": 3.0, "endless": 2.0, "waiting": 1.0})
    load = create_run_pipeline_flow(
        pipeline,
        failing_source(running),
        decompose="parallel",
        on_failure="cancel",
        task_runner=ThreadPoolTaskRunner(max_workers=2),  # pyright: ignore[reportArgumentType]
    )

    error = failed(load)

    assert set(error.failures) == {"bad"}
    assert {each.name: each.failed_as for each in error.results} == {
        "bad": "failed",
        "endless": "interrupted",
        "waiting": "not started",
    }
    assert error.not_loaded["endless"].startswith("stopped, because 'bad' failed")
    assert not is_asked_to_stop()
    assert "waiting" not in tables(pipeline())


@pytest.mark.slow
def test_those_that_go_on_are_loaded_and_listed_with_the_failed_ones(pipeline: Callable[..., Pipeline]) -> None:
    running = threading.Event()
    load = create_run_pipeline_flow(pipeline, failing_source(running, ends=True), decompose="parallel")

    error = failed(load)

    assert [(each.name, each.error is None, each.load_info is None) for each in error.results] == [
        ("bad", False, True),
        ("endless", True, False),
        ("waiting", True, False),
    ]
    assert error.loaded == ("endless", "waiting")
    assert count(pipeline(), "waiting") == 1
    sent = pickle.dumps(error)
    assert b"s3cret" not in sent
    copy = pickle.loads(sent)  # noqa: S301 - made two lines earlier
    assert str(copy) == str(error)
    assert [each.name for each in copy.results] == ["bad", "endless", "waiting"]
    assert copy.results[1].load_info.loads_ids == error.results[1].load_info.loads_ids
    assert "ComponentResult" not in repr(error)


def test_in_turn_nothing_is_started_after_a_failure(pipeline: Callable[..., Pipeline]) -> None:
    running = threading.Event()
    running.set()
    load = create_run_pipeline_flow(
        pipeline, failing_source(running, ends=True), decompose="sequential", on_failure="cancel"
    )

    error = failed(load)

    assert [(each.name, each.failed_as) for each in error.results] == [
        ("bad", "failed"),
        ("endless", "not started"),
        ("waiting", "not started"),
    ]
    assert error.not_loaded["waiting"] == "not started, because 'bad' failed"


def test_pipelines_of_others_are_not_stopped(pipeline: Callable[..., Pipeline]) -> None:
    from prefect_dlt.stop import guarded

    with guarded("/data/pipelines/of_another_flow"), stopping_for("a part failed", ["/data/pipelines/a"]) as are_asked:
        assert not are_asked
        assert not is_asked_to_stop()
    with stopping_for("a part failed", ["/data/pipelines/a"]) as are_asked:
        assert are_asked
        assert is_asked_to_stop()
    assert not is_asked_to_stop()


def test_another_word_is_refused_when_the_flow_is_made(pipeline: Callable[..., Pipeline]) -> None:
    with pytest.raises(ConfigurationError, match="give 'continue' or 'cancel'"):
        create_run_pipeline_flow(pipeline, [], on_failure="stop")  # type: ignore[arg-type]
