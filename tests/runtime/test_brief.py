"""A brief run is told on its summary alone: the parts of a source by default, and other runs where it is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import dlt
import psutil
import pytest
from dlt.pipeline.pipeline import Pipeline
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.context import FlowRunContext

from prefect_dlt import PrefectCollector, create_run_pipeline_flow, runner
from prefect_dlt.errors import ComponentsFailedError, ConfigurationError
from prefect_dlt.keys import artifact_key
from prefect_dlt.markdown import LONGEST_TABLE
from prefect_dlt.retry import fixed_attempts
from tests.runtime.reports import cells
from tests.runtime.sources import shop
from tests.runtime.test_collector import artifacts_of

pytestmark = pytest.mark.usefixtures("prefect_api")

LONG = 600.0
"""Seconds that no run of these tests takes."""

STAGES = ("extract", "normalize", "load")
ALL_PAGES = {*STAGES, *(f"{stage}-report" for stage in STAGES), "schema-changes", "summary"}


def shown(load: Callable[[], Any]) -> dict[str, Artifact]:
    """Return the artifacts that a load leaves in a flow run."""
    ids: list[UUID] = []

    @flow
    def main() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        ids.append(context.flow_run.id)
        load()

    main()
    return artifacts_of(ids[0])


def pages(of: str, artifacts: dict[str, Artifact]) -> set[str]:
    """Return the artifacts of a pipeline, without its name."""
    return {key.removeprefix(f"{of}-") for key in artifacts if key.startswith(f"{of}-")}


def test_a_brief_run_has_one_page_with_what_its_reports_say(pipeline: Callable[..., Pipeline]) -> None:
    artifacts = shown(lambda: pipeline(progress=PrefectCollector(brief=LONG)).run(shop()))

    assert pages("shop", artifacts) == {"summary"}
    page = str(artifacts["shop-summary"].data)
    assert re.findall(r"^### ([^·\n]+)(?: ·|$)", page, re.MULTILINE) == [
        *("Extract done", "Normalize done", "Load done"),
        *(f"New table `{name}`" for name in ("customers", "greetings", "orders", "orders__items")),
    ]
    assert "### Extract done · 8 rows · 3 resources · " in page
    assert "### Load done · 4 of 4 jobs · " in page
    assert cells(page, "Rows per resource")[1][:2] == ["<code>customers</code>", "3"]
    assert cells(page, "Rows and files per table")[0] == ["Table", "Rows", "Files", "Seconds"]
    assert cells(page, "Jobs per table")[0][:2] == ["Table", "Jobs"]
    assert "<code>_dlt_load_id</code>" in [row[0] for row in cells(page, "New table <code>orders</code>")]
    assert "in the artifact" not in page


@pytest.mark.parametrize("brief", [None, 0.0, 1e-6])
def test_a_run_that_is_not_brief_has_them_all(pipeline: Callable[..., Pipeline], brief: float | None) -> None:
    artifacts = shown(lambda: pipeline(progress=PrefectCollector(brief=brief)).run(shop()))

    assert pages("shop", artifacts) == ALL_PAGES
    page = str(artifacts["shop-summary"].data)
    assert "###" not in page
    assert "Each column with its type is in the artifact `shop-schema-changes`" in page


@pytest.mark.parametrize(("brief", "fewest"), [(LONG, 2), (0.0, 5)])
def test_of_a_brief_run_is_measured_what_its_summary_tells(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch, brief: float, fewest: int
) -> None:
    looked: list[psutil.Process] = []

    def children(process: psutil.Process, **_options: object) -> list[psutil.Process]:
        looked.append(process)
        return []

    monkeypatch.setattr(psutil.Process, "children", children)
    # A second that never passes, so that none is due.
    monkeypatch.setattr("prefect_dlt.usage.SHORTEST_PERIOD", LONG)

    artifacts = shown(lambda: pipeline(progress=PrefectCollector(brief=brief)).run(shop()))

    # Beginning and end, and the end of each stage.
    assert len(looked) == fewest
    assert "CPU and memory" in str(artifacts["shop-summary"].data)


@pytest.mark.parametrize("brief", ["5", -1, float("nan")])
def test_what_is_no_number_of_seconds_is_refused(brief: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"brief cannot be {brief!r}: it is a number of seconds, 0 or more"):
        PrefectCollector(brief=brief)


def test_a_run_that_failed_is_not_told_in_brief(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.resource
    def orders() -> Iterator[Any]:
        yield {"id": 1}
        raise ConnectionError("no line")

    def load() -> None:
        with pytest.raises(Exception, match="no line"):
            pipeline(progress=PrefectCollector(brief=LONG)).run(orders)

    artifacts = shown(load)

    assert pages("shop", artifacts) == {"extract", "extract-report", "failed-attempt-1", "summary"}
    assert "failed" in str(artifacts["shop-extract"].description)


def test_nor_is_one_that_went_well_at_the_second_attempt(pipeline: Callable[..., Pipeline]) -> None:
    tries: list[int] = []

    @dlt.resource
    def orders() -> Iterator[Any]:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("no line")
        yield {"id": 1}

    def load() -> None:
        shop_pipeline = pipeline(progress=PrefectCollector(brief=LONG))
        runner(shop_pipeline, retry_policy=fixed_attempts(2, wait=0.0), retry_pipeline_steps=["extract"]).run(orders)

    found = pages("shop", shown(load))

    assert {"failed-attempt-1", "summary", *(f"{stage}-report" for stage in STAGES)} < found


def test_steps_that_are_called_one_by_one_are_no_brief_runs(pipeline: Callable[..., Pipeline]) -> None:
    def load() -> None:
        shop_pipeline = pipeline(progress=PrefectCollector(brief=LONG))
        shop_pipeline.extract(shop())
        shop_pipeline.normalize()
        shop_pipeline.load()

    assert pages("shop", shown(load)) == ALL_PAGES


def test_a_report_with_a_list_of_its_own_is_shown(pipeline: Callable[..., Pipeline]) -> None:
    wide = {f"column_{number}": number for number in range(LONGEST_TABLE + 1)}

    artifacts = shown(lambda: pipeline(progress=PrefectCollector(brief=LONG)).run([wide], table_name="wide"))

    assert pages("shop", artifacts) == {"summary", "schema-changes", "schema-columns"}
    assert "in the artifact `shop-schema-changes`" in str(artifacts["shop-summary"].data)


def test_a_list_that_comes_with_a_later_report_of_the_same_stage_is_shown_with_it(
    pipeline: Callable[..., Pipeline],
) -> None:
    pending = pipeline()
    pending.extract([{"id": 1}], table_name="pending")
    pending.normalize()
    many = [dlt.resource([{"id": 1}], name=f"table_{number}") for number in range(LONGEST_TABLE + 1)]

    artifacts = shown(lambda: runner(pipeline(progress=PrefectCollector(brief=LONG))).run(many))

    assert {"summary", "load-report", "load-tables"} <= pages("shop", artifacts)
    assert f"load done · {LONGEST_TABLE + 1} of" in str(artifacts["shop-load-report"].description)
    assert "### Load done" not in str(artifacts["shop-summary"].data)


# -- the parts of a source ---------------------------------------------------------------------------------------------


def pages_of_parts(name: str) -> dict[str, set[str]]:
    """Return the artifacts of each part of a pipeline's source, without its name; no other test has the pipeline."""
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(like_=f"{name}--%"))
        keys = [str(artifact.key) for artifact in client.read_artifacts(artifact_filter=wanted)]
    found: dict[str, set[str]] = {}
    for key in keys:
        part, _, page = key.removeprefix(f"{name}--").partition("-")
        found.setdefault(part, set()).add(page)
    return found


def test_a_part_is_brief_up_to_some_seconds(pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_dlt.component_load.BRIEF_PART", LONG)

    create_run_pipeline_flow(pipeline("brief_parts"), shop, decompose="parallel")()

    assert pages_of_parts("brief-parts") == {"orders": {"summary"}, "customers": {"summary"}}


def test_a_part_that_takes_longer_has_all_pages(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_dlt.component_load.BRIEF_PART", 1e-6)

    create_run_pipeline_flow(pipeline("long_parts"), shop, decompose="parallel")()

    assert pages_of_parts("long-parts") == {"orders": ALL_PAGES, "customers": ALL_PAGES}


@pytest.mark.parametrize(("brief", "expected"), [(0.0, ALL_PAGES), (LONG, {"summary"})])
def test_what_the_collector_of_the_pipeline_says_counts_for_its_parts(
    pipeline: Callable[..., Pipeline], brief: float, expected: set[str]
) -> None:
    name = f"told_parts_{brief:.0f}"

    make = pipeline(name, progress=PrefectCollector(brief=brief))
    create_run_pipeline_flow(make, shop, decompose="parallel")()

    assert pages_of_parts(artifact_key(name)) == {"orders": expected, "customers": expected}


@pytest.mark.parametrize("mode", ["none", "sequential"])
def test_a_pipeline_that_loads_all_by_itself_is_not_brief(pipeline: Callable[..., Pipeline], mode: Any) -> None:
    collector = PrefectCollector()

    create_run_pipeline_flow(pipeline(progress=collector), shop, decompose=mode)()

    assert collector.brief is None


def test_a_part_that_failed_has_its_pages(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.source(name="breaking")
    def breaking() -> Any:
        def read(name: str) -> Iterator[Any]:
            if name == "bad":
                raise ConnectionError("no line")
            yield {"id": 1}

        return [dlt.resource(read, name=name)(name) for name in ("good", "bad")]

    make = pipeline("failed_parts", progress=PrefectCollector(brief=LONG))
    with pytest.raises(ComponentsFailedError):
        create_run_pipeline_flow(make, breaking, decompose="parallel")()

    assert pages_of_parts("failed-parts") == {
        "good": {"summary"},
        "bad": {"extract", "extract-report", "failed-attempt-1", "summary"},
    }
