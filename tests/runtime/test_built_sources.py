"""A source is built once for the parts that a thread loads, unless a part might get another one by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import dlt
import pytest
from dlt.common.runtime.collector import NullCollector
from dlt.pipeline.pipeline import Pipeline
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_dlt import create_run_pipeline_flow
from prefect_dlt.built_sources import FRESH_SECONDS, BuiltSources
from prefect_dlt.retry import fixed_attempts
from tests.runtime.conftest import count

NAMES = [f"part_{letter}" for letter in "abcdef"]


@pytest.fixture
def builds() -> list[Any]:
    """Return what the source notes when it is built."""
    return []


@pytest.fixture
def source(builds: list[Any]) -> Callable[[], Any]:
    """Return what builds a source of six resources that can be read once."""

    @dlt.source(name="shop")
    def shop(size: int = 1) -> Any:
        builds.append(size)
        return [dlt.resource(iter([{"id": number} for number in range(size)]), name=name) for name in NAMES]

    return shop


def rows(source: Any) -> dict[str, int]:
    """Return how many rows each selected resource of a source yields."""
    return {name: len(list(resource)) for name, resource in source.resources.selected.items()}


class TestTaking:
    def test_parts_come_out_of_one_source(self, pipeline: Callable[..., Pipeline], source: Any, builds: Any) -> None:
        sources, active = BuiltSources(source), pipeline()

        assert [rows(sources.take(active, [name], [name])) for name in NAMES] == [{name: 1} for name in NAMES]
        assert builds == [1]

    def test_what_was_taken_is_built_anew(self, pipeline: Callable[..., Pipeline], source: Any, builds: Any) -> None:
        sources, active = BuiltSources(source), pipeline()

        assert [rows(sources.take(active, ["part_a"], ["part_a"])) for _ in range(3)] == [{"part_a": 1}] * 3
        assert len(builds) == 3

    def test_what_is_old_is_built_anew(self, pipeline: Callable[..., Pipeline], source: Any, builds: Any) -> None:
        now = [0.0]
        sources, active = BuiltSources(source, lambda: now[0]), pipeline()

        sources.take(active, ["part_a"], ["part_a"])
        now[0] = FRESH_SECONDS - 1
        sources.take(active, ["part_b"], ["part_b"])
        assert len(builds) == 1
        now[0] = FRESH_SECONDS
        sources.take(active, ["part_c"], ["part_c"])
        assert len(builds) == 2

    def test_a_source_that_lacks_a_resource_by_now_is_built_anew(self, pipeline: Callable[..., Pipeline]) -> None:
        names = ["old"]

        @dlt.source(name="growing")
        def growing() -> Any:
            return [dlt.resource([1], name=name) for name in names]

        sources, active = BuiltSources(growing), pipeline()
        sources.take(active, ["old"], ["old"])
        names.append("new")

        assert rows(sources.take(active, ["new"], ["new"])) == {"new": 1}

    def test_each_thread_has_its_own(self, pipeline: Callable[..., Pipeline], source: Any, builds: Any) -> None:
        sources, active = BuiltSources(source), pipeline()
        sources.take(active, ["part_a"], ["part_a"])

        other = threading.Thread(target=sources.take, args=(active, ["part_b"], ["part_b"]))
        other.start()
        other.join()
        sources.take(active, ["part_c"], ["part_c"])

        assert len(builds) == 2

    def test_the_members_of_a_part_come_with_it_and_only_they(
        self, pipeline: Callable[..., Pipeline], source: Any
    ) -> None:
        part = BuiltSources(source).take(pipeline(), ["part_a"], ["part_a", "part_b"])

        assert sorted(part.resources) == ["part_a", "part_b"]
        assert list(part.selected_resources) == ["part_a"]

    def test_a_pipeline_is_what_it_was(self, pipeline: Callable[..., Pipeline], source: Any) -> None:
        active = pipeline()
        before = vars(active).keys()

        BuiltSources(source).take(active, ["part_a"], ["part_a"])

        assert type(active) is Pipeline
        assert vars(active).keys() == before


class TestOfEachPartByItself:
    def test_what_looks_at_the_pipeline(self, pipeline: Callable[..., Pipeline], looking: Any, builds: Any) -> None:
        look, source = looking
        sources, active = BuiltSources(source), pipeline()

        for name in NAMES:
            sources.take(active, [name], [name])

        assert len(builds) == len(NAMES), look

    def test_a_failure_while_it_is_built_leaves_the_pipeline_as_it_was(self, pipeline: Callable[..., Pipeline]) -> None:
        def broken() -> Any:
            raise ConnectionError("no line")

        active = pipeline()

        with pytest.raises(ConnectionError):
            BuiltSources(broken).take(active, ["part_a"], ["part_a"])
        assert type(active) is Pipeline

    def test_what_is_configured_for_its_pipeline(
        self,
        pipeline: Callable[..., Pipeline],
        source: Callable[[], Any],
        builds: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        active, sources = pipeline(), BuiltSources(source)
        sources.take(active, ["part_a"], ["part_a"])
        monkeypatch.setenv(f"{active.pipeline_name.upper()}__SOURCES__SHOP__SIZE", "7")

        sources.take(active, ["part_b"], ["part_b"])
        sources.take(active, ["part_c"], ["part_c"])

        assert len(builds) == 3


LOOKS: dict[str, Callable[[], Any]] = {
    "its name": lambda: cast("Any", dlt.current.pipeline()).pipeline_name,
    "its state": dlt.current.source_state,
    "whether it ran before": lambda: cast("Any", dlt.current.pipeline()).first_run,
    "the pipeline itself, to look at later": dlt.current.pipeline,
}


@pytest.fixture(params=LOOKS)
def looking(request: pytest.FixtureRequest, builds: list[Any]) -> tuple[str, Callable[[], Any]]:
    """Return what a source looks at while it is built, and the source."""

    @dlt.source(name="looking")
    def looking_source() -> Any:
        seen = LOOKS[request.param]()
        builds.append(request.param)

        def read() -> Iterator[Any]:
            yield {"id": 1, "seen": str(seen)}

        return [dlt.resource(read, name=name) for name in NAMES]

    return request.param, looking_source


@pytest.mark.usefixtures("prefect_api")
class TestFlows:
    def test_threads_build_once_each_and_load_everything(
        self, pipeline: Callable[..., Pipeline], source: Callable[[], Any], builds: list[int]
    ) -> None:
        runner = cast("Any", ThreadPoolTaskRunner)(max_workers=2)
        load = create_run_pipeline_flow(pipeline, source, decompose="parallel", task_runner=runner)

        load()
        load()

        assert {name: count(pipeline(), name) for name in NAMES} == dict.fromkeys(NAMES, 2)
        # Once to take it apart, and in each thread.
        assert 4 <= len(builds) <= 6

    def test_an_attempt_has_a_source_of_its_own(self, pipeline: Callable[..., Pipeline], builds: list[int]) -> None:
        @dlt.source(name="breaking")
        def breaking() -> Any:
            builds.append(len(builds))

            def read(name: str, built: int) -> Iterator[Any]:
                yield [{"id": 1}]
                if name == "part_b" and built == 1:
                    raise ConnectionError("no line")

            return [dlt.resource(read(name, builds[-1]), name=name) for name in NAMES]

        load = create_run_pipeline_flow(
            pipeline,
            breaking,
            decompose="parallel",
            task_runner=cast("Any", ThreadPoolTaskRunner)(max_workers=1),
            retry_policy=fixed_attempts(2, wait=0),
            retry_pipeline_steps=["extract", "load"],
        )

        result = load()

        assert {part.name: part.attempts for part in result.components} == {**dict.fromkeys(NAMES, 1), "part_b": 2}
        assert {name: count(pipeline(), name) for name in NAMES} == dict.fromkeys(NAMES, 1)

    def test_a_part_sees_its_own_pipeline(self, pipeline: Callable[..., Pipeline]) -> None:
        @dlt.source(name="curious")
        def curious() -> Any:
            mine = cast("Any", dlt.current.pipeline()).pipeline_name
            return [dlt.resource([{"id": mine}], name=name) for name in NAMES]

        one_thread = cast("Any", ThreadPoolTaskRunner)(max_workers=1)
        create_run_pipeline_flow(pipeline, curious, decompose="parallel", task_runner=one_thread)()

        base = pipeline()
        with base.sql_client() as client:
            seen = {name: client.execute_sql(f"SELECT id FROM {name}") for name in NAMES}
        assert seen == {name: [(f"{base.pipeline_name}__{name}",)] for name in NAMES}
        assert isinstance(base.collector, NullCollector)
