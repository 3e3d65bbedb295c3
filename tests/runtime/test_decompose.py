"""A source is taken apart into what shares nothing, under names that stay."""

import itertools
import string
from typing import Any

import dlt
import pytest
from dlt.common.normalizers.naming.snake_case import NamingConvention as SnakeCaseNaming
from dlt.extract import DltSource

from prefect_dlt.decompose import (
    LONGEST_NAME,
    LONGEST_STAGING_NAME,
    Component,
    all_components,
    components,
    decompose_mode,
    derived_name,
    select,
    staging_name,
)
from prefect_dlt.errors import ConfigurationError, NotASourceError, UnknownResourcesError


@dlt.source
def shop() -> Any:
    @dlt.resource
    def users() -> Any:
        yield [{"id": 1}]

    @dlt.transformer(data_from=users)
    def addresses(user: Any) -> Any:
        yield user

    @dlt.transformer(data_from=addresses)
    def cities(address: Any) -> Any:
        yield address

    @dlt.resource
    def orders() -> Any:
        yield [{"id": 1}]

    @dlt.resource(selected=False)
    def pages() -> Any:
        yield [{"id": 1}]

    @dlt.transformer(data_from=pages)
    def items(page: Any) -> Any:
        yield page

    return cities, addresses, orders, pages, items, users


def test_resources_that_share_nothing_are_parts_of_their_own() -> None:
    source = dlt.source(lambda: [dlt.resource([1], name=name) for name in ("b", "a", "c")], name="abc")()

    assert components(source) == [Component("a", ("a",)), Component("b", ("b",)), Component("c", ("c",))]


def test_transformers_stay_with_what_feeds_them_which_gives_the_name() -> None:
    assert Component("users", ("addresses", "cities", "users")) in components(shop())


def test_a_part_is_named_for_what_feeds_it_even_if_that_is_not_loaded() -> None:
    assert Component("pages", ("items",)) in components(shop())


def test_the_parts_are_all_that_is_selected_in_order() -> None:
    parts = components(shop())

    assert [part.name for part in parts] == ["orders", "pages", "users"]
    assert sorted(itertools.chain(*(part.resources for part in parts))) == sorted(shop().resources.selected)


@pytest.mark.parametrize("chosen", [["users"], ["addresses"], ["cities"], ["cities", "users"]])
def test_a_part_keeps_its_name_whichever_of_its_resources_are_chosen(chosen: list[str]) -> None:
    assert components(select(shop(), chosen)) == [Component("users", tuple(sorted(chosen)))]


def test_a_part_keeps_its_name_when_the_source_grows() -> None:
    def named(*names: str) -> DltSource:
        return dlt.source(lambda: [dlt.resource([1], name=name) for name in names], name="s")()

    assert set(components(named("b", "c"))) < set(components(named("d", "c", "b", "a")))


def test_a_resource_that_pipes_into_another_gives_one_part() -> None:
    @dlt.source
    def piped() -> Any:
        return dlt.resource([1], name="numbers") | dlt.transformer(lambda number: [number], name="doubles")

    assert components(piped()) == [Component("numbers", ("doubles",))]


def test_all_parts_include_what_is_not_selected() -> None:
    assert Component("pages", ("items", "pages")) in all_components(shop())


@pytest.mark.parametrize("data", [[1, 2], None, dlt.resource([1], name="orders")], ids=["list", "None", "resource"])
def test_what_is_no_source_is_not_taken_apart(data: Any) -> None:
    with pytest.raises(NotASourceError, match=type(data).__name__):
        components(data)


# -- choosing resources ------------------------------------------------------------------------------------------------


def test_without_names_the_source_decides() -> None:
    source = shop()
    assert select(source, None) is source
    assert select([1, 2], None) == [1, 2]


def test_only_the_named_resources_are_selected_and_the_source_itself_is_left_alone() -> None:
    source = shop()

    assert set(select(source, ["orders", "pages"]).resources.selected) == {"orders", "pages"}
    assert "pages" not in source.resources.selected


def test_a_part_is_a_copy_of_its_own_resources_without_those_of_others() -> None:
    source = shop()
    members = next(part.resources for part in all_components(source) if "cities" in part.resources)

    part = select(source, ["cities"], members)

    assert set(part.resources) == set(members) < set(source.resources)
    assert set(part.resources.selected) == {"cities"}
    assert list(part) == [{"id": 1}]
    assert part.schema is not source.schema
    assert "users" in source.resources.selected


def test_a_transformer_alone_is_still_fed() -> None:
    assert list(select(shop(), ["cities"])) == [{"id": 1}]


def test_unknown_resources_are_named() -> None:
    with pytest.raises(UnknownResourcesError) as caught:
        select(shop(), ["orders", "order", "user"])
    assert caught.value.unknown == ("order", "user")
    assert set(caught.value.known) == set(shop().resources)


def test_one_name_that_is_no_list_is_refused_rather_than_spelled() -> None:
    with pytest.raises(ConfigurationError, match="resources cannot be 'orders'"):
        select(shop(), "orders")  # type: ignore[arg-type]


def test_an_empty_choice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one of cities, addresses"):
        select(shop(), [])


def test_resources_of_what_is_no_source_cannot_be_chosen() -> None:
    with pytest.raises(NotASourceError, match="list"):
        select([1, 2], ["orders"])


# -- modes and names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "mode"),
    [(True, "parallel"), (False, "none"), *((each, each) for each in ("none", "sequential", "parallel", "auto"))],
)
def test_a_mode_is_one_of_four_words_or_a_truth_value(given: Any, mode: str) -> None:
    assert decompose_mode(given) == mode


@pytest.mark.parametrize("given", ["serial", "", None, 1])
def test_any_other_mode_is_refused_with_those_to_choose_from(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="'none', 'sequential', 'parallel', 'auto'"):
        decompose_mode(given)


def test_plain_names_stay_readable() -> None:
    assert derived_name("shop", "order_items") == "shop__order_items"


def test_a_name_is_the_same_today_and_tomorrow() -> None:
    # State is kept under these names: to change one is to load everything again.
    assert derived_name("shop", "orders") == "shop__orders"
    assert derived_name("shop", "Orders") == "shop__Orders__aad829e0"
    assert derived_name("shop", "order items/2024") == "shop__order_items_2024__0739f621"


def test_other_names_are_still_recognised() -> None:
    assert derived_name("shop", "Größe (cm)").startswith("shop__Gr__e__cm___")


ODD_NAMES = [
    "a", "A", "a_", "_a", "__a", "a__", "a__a", "a_a", "a-a", "a.a", "a a", "a/a", "a\\a", "a:a", "ä", "a\u0308", "",
    "_", "__", ".", "..", "deadbeef", "12345678", "a__deadbeef", "con", "nul", "a\n", "a\0", "😀", "seed",
    "x" * 60, "x" * 61, "x" * 300, "x" * 299 + "y", "a" * 54 + "__deadbeef",
]  # fmt: skip


def test_no_two_names_become_one_even_where_case_is_ignored() -> None:
    names = [*ODD_NAMES, *("".join(each) for each in itertools.product("a_-", repeat=4))]
    pipelines = ["shop", "shop_", "shop__a", "_shop", "a", "a_", "a__a", "_", "__", "x" * 60, "my-shop", "my_shop"]
    pairs = set(itertools.product(pipelines, names))

    derived = {derived_name(*pair).lower() for pair in pairs}

    assert len(derived) == len(pairs)


def test_no_name_is_the_name_of_another_one_with_its_digest() -> None:
    odd = derived_name("shop", "a-b")

    assert derived_name("shop", odd.removeprefix("shop__")) != odd
    assert derived_name(odd.rpartition("__")[0], odd.rpartition("__")[2]) != odd


@pytest.mark.parametrize("pipeline", ["shop", "my-shop", "x" * 100, "ä"])
@pytest.mark.parametrize("component", ODD_NAMES)
def test_every_derived_name_is_a_short_identifier(pipeline: str, component: str) -> None:
    name = derived_name(pipeline, component)

    assert 0 < len(name) <= LONGEST_NAME
    assert set(name) <= {*string.ascii_letters, *string.digits, "_"}


def test_dlt_takes_a_derived_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    for component in ODD_NAMES:
        name = derived_name("shop", component)
        assert dlt.pipeline(name, destination="duckdb", pipelines_dir=str(tmp_path)).pipeline_name == name


def test_a_plain_name_is_that_of_its_staging_area_too() -> None:
    assert staging_name("order_items") == "order_items"
    assert staging_name("Orders") == "b7e8acdd_orders"


def test_no_two_staging_areas_are_called_the_same_by_any_destination() -> None:
    naming = SnakeCaseNaming(63)
    names = [*ODD_NAMES, *("".join(each) for each in itertools.product("a_-", repeat=4)), "x", "a_b", "A_b", "aB"]

    def called(name: str) -> str:
        return naming.normalize_table_identifier(f"shop_data_staging_{staging_name(name)}")

    assert len({called(name) for name in names}) == len(set(names))
    assert all(len(staging_name(name)) <= LONGEST_STAGING_NAME for name in names)
