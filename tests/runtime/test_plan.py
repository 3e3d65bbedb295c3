"""What a flow would run is told without running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import create_run_pipeline_flow
from prefect_dlt.decompose import Component
from prefect_dlt.durations import keep_durations, known_durations
from prefect_dlt.errors import CollisionError, ConfigurationError, NotASourceError, UnknownResourcesError
from prefect_dlt.plan import BY_ROW, largest_first
from prefect_dlt.retry import fixed_attempts
from prefect_dlt.survey import survey
from tests.runtime.sources import shop


@dlt.source
def named(*names: str, **options: Any) -> Any:
    """A source with a resource of each name."""
    return [dlt.resource([{"id": 1}], name=name, **options) for name in names]


def loaded_as(pipeline: Pipeline, source: Any = None) -> Any:
    return survey(pipeline, shop() if source is None else source, {}, look_back=True).loaded_as


def test_a_plan_tells_parts_pipelines_tables_and_why_and_runs_nothing(
    pipeline: Callable[..., Pipeline], own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = create_run_pipeline_flow(pipeline, shop, decompose="auto", flow_name="load shop")

    plan = flow.plan()

    assert (plan.mode, plan.pipeline_name, plan.destination, plan.dataset_name) == (
        "parallel",
        "shop",
        "duckdb",
        "shop_data",
    )
    assert "the 2 parts of source 'shop' share nothing" in plan.reason
    assert [(part.name, part.pipeline_name, part.resources, part.tables) for part in plan.components] == [
        ("customers", "shop__customers", ("customers", "greetings"), ("customers", "greetings")),
        ("orders", "shop__orders", ("orders",), ("orders",)),
    ]
    assert {part.state for part in plan.components} == {"nothing"}
    assert not (own_folder / "warehouse.duckdb").exists()
    assert sorted(path.name for path in (own_folder / "pipelines").iterdir()) == ["shop"]
    assert capsys.readouterr().out == f"{plan}\n"


def test_a_plan_tells_what_earlier_runs_have_left(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.source
    def counter() -> Any:
        @dlt.resource(primary_key="id")
        def numbers(cursor: Any = dlt.sources.incremental("id")) -> Iterator[Any]:  # noqa: B008 - dlt's way
            yield [{"id": 1, "more": [{"x": 1}]}]

        return [numbers, dlt.resource([{"id": 1}], name="others")]

    pipeline("shop__numbers").run(counter().with_resources("numbers"))
    pipeline("shop__numbers").extract([{"id": 2}], table_name="numbers")
    keep_durations(pipeline(), {"others": 2.0})

    plan = create_run_pipeline_flow(pipeline, counter, decompose="parallel").plan(full_refresh=True)

    # What was never loaded may take longest.
    numbers, others = plan.components
    assert numbers.tables == ("numbers", "numbers__more")
    assert numbers.state.startswith("extracted 20")
    assert numbers.state.endswith("state of numbers")
    assert "numbers (1 row" in numbers.pending[0]
    assert (numbers.seconds, others.seconds) == (None, 2.0)
    assert plan.refresh == "drop_resources"
    assert "first, once: refresh='drop_resources'" in str(plan)
    assert f"shop__numbers: {numbers.pending[0]}" in str(plan)


def test_a_plan_takes_the_parameters_of_a_run(pipeline: Callable[..., Pipeline]) -> None:
    flow = create_run_pipeline_flow(pipeline, shop, decompose=True)

    assert [part.name for part in flow.plan(resources=["orders"]).components] == ["orders"]
    assert flow.plan(dataset_name="elsewhere").dataset_name == "elsewhere"
    with pytest.raises(UnknownResourcesError, match=r"'orders'"):
        flow.plan(resources=["ordres"])
    with pytest.raises(TypeError, match="ressources"):
        flow.plan(ressources=["orders"])


def test_a_source_that_is_loaded_whole_has_a_plan_too(pipeline: Callable[..., Pipeline]) -> None:
    whole = create_run_pipeline_flow(pipeline, shop).plan()
    data = create_run_pipeline_flow(pipeline, [{"id": 1}], decompose="auto").plan(table_name="rows")

    assert [(part.name, part.pipeline_name) for part in whole.components] == [("the whole source", "shop")]
    assert whole.components[0].resources == ("customers", "greetings", "orders")
    assert (data.mode, data.reason) == ("none", "list is no dlt source")


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_run_says_which_mode_it_took_and_why(pipeline: Callable[..., Pipeline]) -> None:
    result = create_run_pipeline_flow(pipeline, shop, decompose="auto")()

    assert result.mode == "parallel"
    assert "share nothing" in result.reason
    assert set(known_durations(pipeline())) == {"customers", "orders"}


# -- what cannot be taken apart ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("Orders", "orders"), ("order items", "order_items"), ("Größe", "größe")])
def test_resources_whose_tables_are_one_for_the_destination_are_refused(
    pipeline: Callable[..., Pipeline], own_folder: Path, names: tuple[str, str]
) -> None:
    source = named(*names, "others", write_disposition="replace")

    for mode in ("sequential", "parallel"):
        with pytest.raises(CollisionError) as raised:
            create_run_pipeline_flow(pipeline, source, decompose=mode).plan()  # type: ignore[arg-type]
        assert [set(each) for each in raised.value.names.values()] == [set(names)]
    assert create_run_pipeline_flow(pipeline, source, decompose="auto").plan().mode == "none"
    assert not (own_folder / "warehouse.duckdb").exists()


def test_one_table_name_for_all_resources_is_refused_and_in_turn_it_is_appended(
    pipeline: Callable[..., Pipeline],
) -> None:
    flow = create_run_pipeline_flow(pipeline, named("a", "b"), decompose="parallel")

    with pytest.raises(CollisionError, match="'a', 'b' write to table 'all_of_it'"):
        flow.plan(table_name="all_of_it")
    flow = create_run_pipeline_flow(pipeline, named("a", "b"), decompose="sequential")
    assert flow.plan(table_name="all_of_it").components[0].tables == ("all_of_it",)
    with pytest.raises(CollisionError):
        flow.plan(table_name="all_of_it", write_disposition="replace")


def test_tables_that_the_data_names_are_told_and_not_refused(pipeline: Callable[..., Pipeline]) -> None:
    plan = create_run_pipeline_flow(
        pipeline, named("a", "b", table_name=lambda row: f"t{row['id']}"), decompose="parallel"
    ).plan()

    assert [part.tables for part in plan.components] == [(BY_ROW,), (BY_ROW,)]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_table_that_two_parts_have_written_is_warned_of(
    pipeline: Callable[..., Pipeline], caplog: pytest.LogCaptureFixture
) -> None:
    source = named("a", "b", table_name=lambda row: "shared")

    # Both may be about to make it.
    create_run_pipeline_flow(pipeline, source, decompose="parallel", retry_policy=fixed_attempts(3, wait=0))()

    assert "Table 'shared' was written by several parts, a, b" in caplog.text


def test_dev_mode_and_what_is_no_source_are_refused(pipeline: Callable[..., Pipeline]) -> None:
    def in_dev_mode() -> Pipeline:
        return pipeline(dev_mode=True)

    with pytest.raises(ConfigurationError, match="dev_mode cannot be True"):
        create_run_pipeline_flow(in_dev_mode, shop, decompose="parallel").plan()
    assert create_run_pipeline_flow(in_dev_mode, shop, decompose="auto").plan().mode == "none"
    with pytest.raises(NotASourceError):
        create_run_pipeline_flow(pipeline, [{"id": 1}], decompose="sequential").plan()


def test_what_a_plan_is_told_of_the_destination_does_not_stay(
    pipeline: Callable[..., Pipeline],
) -> None:
    own = pipeline()
    destination, dataset_name = own.destination, own.dataset_name

    plan = create_run_pipeline_flow(own, shop, decompose=True).plan(
        destination=dlt.destinations.filesystem("file:///nowhere"), dataset_name="another"
    )

    assert (plan.destination, plan.dataset_name) == ("filesystem", "another")
    assert (own.destination, own.dataset_name) == (destination, dataset_name)


def test_auto_does_not_let_two_pipelines_write_to_sqlite() -> None:
    sqlite = dlt.pipeline("shop", destination=dlt.destinations.sqlalchemy("sqlite:///shop.db"), dataset_name="data")

    plan = create_run_pipeline_flow(sqlite, shop, decompose="auto").plan()

    assert (plan.mode, plan.reason) == ("sequential", "SQLite takes one writer at a time")


def test_a_source_that_fails_to_build_is_built_again(pipeline: Callable[..., Pipeline]) -> None:
    from prefect_dlt.retry import fixed_attempts

    calls: list[int] = []

    def shaky() -> Any:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("asleep")
        return shop()

    flow = create_run_pipeline_flow(pipeline, shaky, decompose=True, retry_policy=fixed_attempts(3, wait=0))

    assert len(flow.plan().components) == 2
    assert len(calls) == 3


# -- what earlier runs have done ---------------------------------------------------------------------------------------


def test_how_a_source_was_loaded_is_known_here_or_asked_of_the_destination(
    pipeline: Callable[..., Pipeline], tmp_path: Path
) -> None:
    def elsewhere() -> Pipeline:
        destination = dlt.destinations.duckdb(str(tmp_path / "warehouse.duckdb"))
        return dlt.pipeline(
            "shop", pipelines_dir=str(tmp_path / "new"), destination=destination, dataset_name="shop_data"
        )

    assert loaded_as(pipeline()) is None
    pipeline("shop__orders").run(shop().with_resources("orders"))
    assert loaded_as(pipeline()) == "parts"
    assert loaded_as(elsewhere()) == "parts"
    pipeline().run(shop())
    assert loaded_as(pipeline()) == "whole"
    assert loaded_as(elsewhere()) == "whole"


@dlt.source(name="shop")
def growing() -> Any:
    """Orders that are read from where the last run ended, and customers that are not."""

    @dlt.resource
    def orders(at: Any = dlt.sources.incremental("id")) -> Iterator[Any]:  # noqa: B008 - as dlt has it
        yield [{"id": 1}, {"id": 2}]

    return orders, dlt.resource([{"id": 1}], name="customers")


@dlt.source
def another() -> Any:
    """A source beside it that remembers something as well."""

    @dlt.resource
    def visits(at: Any = dlt.sources.incremental("id")) -> Iterator[Any]:  # noqa: B008 - as dlt has it
        yield [{"id": 1}]

    return visits


def test_a_run_that_leaves_behind_what_one_pipeline_remembers_says_so_and_a_refresh_does_not(
    pipeline: Callable[..., Pipeline], caplog: pytest.LogCaptureFixture
) -> None:
    pipeline().run(growing())
    pipeline().run(another())
    load = create_run_pipeline_flow(pipeline, growing, decompose="parallel")

    assert "remembers the state of orders: with" in load.plan().reason
    assert load.plan(full_refresh=True).reason == "decompose='parallel'"
    load()
    load()

    warnings = [each.getMessage() for each in caplog.records if "Earlier runs have loaded" in each.getMessage()]
    assert len([each for each in warnings if each.startswith("Earlier")]) == 1
    assert "load with decompose='sequential'" in warnings[0]
    assert load.plan().reason == "decompose='parallel'"


def test_which_resources_are_chosen_does_not_change_the_mode(pipeline: Callable[..., Pipeline]) -> None:
    plan = create_run_pipeline_flow(pipeline, shop, decompose="auto").plan(resources=["orders"])

    assert (plan.mode, [part.name for part in plan.components]) == ("parallel", ["orders"])


# -- largest first -----------------------------------------------------------------------------------------------------


def test_what_took_longest_starts_first_and_what_is_new_before_it() -> None:
    parts = [Component(name, (name,)) for name in ("a", "b", "c", "d")]

    assert [part.name for part in largest_first(parts, {"a": 1.0, "b": 30.0, "d": 2.0})] == ["c", "b", "d", "a"]
    assert largest_first(parts, {}) == parts


def test_durations_are_kept_and_those_of_parts_that_were_not_loaded_stay(pipeline: Callable[..., Pipeline]) -> None:
    keep_durations(pipeline(), {"a": 1.0, "b": 2.0})
    keep_durations(pipeline(), {"b": 3.0})

    assert known_durations(pipeline()) == {"a": 1.0, "b": 3.0}
    assert known_durations(pipeline("another")) == {}


def test_durations_outlive_a_load_of_the_pipeline_they_are_kept_with(pipeline: Callable[..., Pipeline]) -> None:
    keep_durations(pipeline(), {"a": 1.0})

    pipeline().run([{"id": 1}], table_name="rows")

    assert known_durations(pipeline()) == {"a": 1.0}


def into_nowhere() -> Pipeline:
    return dlt.pipeline("shop", destination=dlt.destinations.duckdb("nowhere.duckdb"), dataset_name="shop_data")


@dlt.source(name="shop")
def one_table() -> Any:
    """Two resources that write to one table."""
    return [dlt.resource([{"id": 1}], name=name, table_name="both") for name in ("one", "two")]


def test_flow_runs_elsewhere_are_planned_as_they_would_be_run() -> None:
    load = create_run_pipeline_flow(into_nowhere, one_table, decompose="auto", submit_to="hosts")

    plan = load.plan()

    assert plan.mode == "none"
    assert "cannot share the working directory" in plan.reason
    with pytest.raises(ConfigurationError, match="build the pipeline themselves"):
        load.plan(destination="duckdb")
