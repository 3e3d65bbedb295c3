"""Configuration that counts for one pipeline, where a scope is open and nowhere else."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.common.configuration import inject_section, resolve_configuration
from dlt.common.configuration.container import Container
from dlt.common.configuration.providers import CustomLoaderDocProvider, EnvironProvider
from dlt.common.configuration.specs import PluggableRunContext
from dlt.common.configuration.specs.config_section_context import ConfigSectionContext
from dlt.common.data_writers.buffered import BufferedDataWriter
from dlt.common.runners.configuration import PoolRunnerConfiguration
from dlt.common.runners.pool_runner import create_pool

from prefect_dlt.scoped_config import Scope, scoped_config

TEN = Scope({("data_writer", "file_max_items"): 10})


def rows_in_a_file(pipeline_name: str, *sections: str) -> int | None:
    """Return the rows after which dlt ends a file of a pipeline."""
    context = ConfigSectionContext(pipeline_name=pipeline_name, sections=sections or ("normalize",))
    with inject_section(context, merge_existing=False):
        return resolve_configuration(BufferedDataWriter.BufferedDataWriterConfiguration()).file_max_items


def in_a_worker(pipeline_name: str) -> tuple[int | None, bool]:
    """Return the same, and whether Prefect is imported there."""
    return rows_in_a_file(pipeline_name), "prefect" in sys.modules


def provider_names() -> list[str]:
    return [provider.name for provider in dlt.config.config_providers]


@pytest.mark.parametrize(
    "variable",
    [
        "SHOP__NORMALIZE__DATA_WRITER__FILE_MAX_ITEMS",
        "SHOP__DATA_WRITER__FILE_MAX_ITEMS",
        "DATA_WRITER__FILE_MAX_ITEMS",
    ],
)
def test_its_values_count_before_all_that_is_configured(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "99")

    with scoped_config("shop", TEN):
        assert rows_in_a_file("shop") == 10
    assert rows_in_a_file("shop") == 99


def test_no_other_pipeline_and_no_other_thread_sees_them() -> None:
    with scoped_config("shop", TEN), ThreadPoolExecutor(1) as other_thread:
        assert rows_in_a_file("shop") == 10
        assert rows_in_a_file("other") is None
        assert other_thread.submit(rows_in_a_file, "shop").result() is None


def test_the_threads_that_dlt_starts_see_them() -> None:
    with scoped_config("shop", TEN), create_pool(PoolRunnerConfiguration(pool_type="thread", workers=1)) as pool:
        assert pool.submit(rows_in_a_file, "shop").result() == 10


def test_the_processes_that_dlt_starts_see_them_and_need_not_import_prefect() -> None:
    settings = PoolRunnerConfiguration(pool_type="process", start_method="spawn", workers=1)

    with scoped_config("shop", TEN), create_pool(settings) as pool:
        assert pool.submit(in_a_worker, "shop").result() == (10, False)


def test_a_resource_that_is_called_like_a_step_keeps_its_own_arguments() -> None:
    @dlt.source(section="shelf")
    def books() -> Any:
        @dlt.resource
        def load(workers: int = dlt.config.value) -> Any:
            yield {"workers": workers}

        return load

    with scoped_config("shop", Scope({("load", "workers"): 7})):
        dlt.pipeline("shop").activate()
        with pytest.raises(Exception, match="workers"):
            list(books())


def test_nothing_is_left_when_the_last_scope_is_closed() -> None:
    before, environment = provider_names(), dict(os.environ)
    inside, closed = threading.Event(), threading.Event()

    def another() -> None:
        with scoped_config("other", TEN):
            inside.set()
            closed.wait(60)
            assert rows_in_a_file("other") == 10

    with ThreadPoolExecutor(1) as other_thread:
        with scoped_config("shop", TEN):
            running = other_thread.submit(another)
            inside.wait(60)
        # One is still open, and has lost nothing.
        closed.set()
        running.result()

    assert provider_names() == before
    assert not [name for name in before if "prefect-dlt" in name or "derives" in name]
    assert dict(os.environ) == environment


def test_scopes_within_scopes_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP__DATA_WRITER__FILE_MAX_ITEMS", "99")

    with scoped_config("shop", TEN), scoped_config("seed", Scope(base="shop")):
        assert rows_in_a_file("shop") == 10
        assert rows_in_a_file("seed") == 99
    assert rows_in_a_file("seed") is None


def test_what_is_configured_for_the_base_counts_between_its_own_and_that_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with scoped_config("shop__orders", Scope(base="shop")):
        monkeypatch.setenv("DATA_WRITER__FILE_MAX_ITEMS", "1")
        assert rows_in_a_file("shop__orders") == 1
        monkeypatch.setenv("SHOP__DATA_WRITER__FILE_MAX_ITEMS", "2")
        assert rows_in_a_file("shop__orders") == 2
        monkeypatch.setenv("SHOP__NORMALIZE__DATA_WRITER__FILE_MAX_ITEMS", "3")
        assert rows_in_a_file("shop__orders") == 3
        monkeypatch.setenv("SHOP__ORDERS__DATA_WRITER__FILE_MAX_ITEMS", "4")
        assert rows_in_a_file("shop__orders") == 4
        assert rows_in_a_file("shop__customers") == 1


def test_a_pipelines_own_settings_may_be_those_of_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINES__SHOP__USE_SINGLE_DATASET", "false")
    monkeypatch.setenv("SHOP__ENABLE_RUNTIME_TRACE", "false")

    with scoped_config("shop__orders", Scope(base="shop")):
        pipeline = dlt.pipeline("shop__orders")

    assert (pipeline.config.use_single_dataset, pipeline.config.enable_runtime_trace) == (False, False)
    assert dlt.pipeline("shop__orders").config.use_single_dataset


def test_a_secret_of_the_base_is_taken_from_where_secrets_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP__DESTINATION__POSTGRES__CREDENTIALS", "postgresql://ada:s3cret@localhost/shop")

    with scoped_config("shop__orders", Scope(base="shop")):
        pipeline = dlt.pipeline("shop__orders", destination="postgres", dataset_name="data")
        credentials: Any = pipeline.destination_client().config.credentials
        assert credentials.password == "s3cret"


def test_a_secret_of_the_base_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "shop--destination--postgres--credentials").write_text("postgresql://ada:s3cret@localhost/shop")
    for module in ("dlt.common.configuration.providers.environ", "prefect_dlt.scoped_config"):
        monkeypatch.setattr(f"{module}.SECRET_STORAGE_PATH", f"{tmp_path}/%s")
    # dlt puts it into the environment.
    monkeypatch.setattr("dlt.common.configuration.providers.environ.environ", dict(os.environ))

    with scoped_config("shop__orders", Scope(base="shop")):
        pipeline = dlt.pipeline("shop__orders", destination="postgres", dataset_name="data")
        credentials: Any = pipeline.destination_client().config.credentials
        assert credentials.password == "s3cret"


class Vault(CustomLoaderDocProvider):
    """A provider that nobody can tell of what it has but by asking for it."""

    def get_value(self, key: str, hint: type[Any], pipeline_name: str | None, *sections: str) -> tuple[Any, str]:
        return (5 if (pipeline_name, key) == ("shop", "file_max_items") else None), key


def test_a_provider_that_keeps_to_itself_what_it_has_is_asked_for_the_base() -> None:
    providers = Container()[PluggableRunContext].providers
    before = providers.providers
    providers.providers = [*before, Vault("vault", lambda: {"anything": 1}, supports_secrets=False)]
    try:
        with scoped_config("shop__orders", Scope(base="shop")):
            assert rows_in_a_file("shop__orders") == 5
    finally:
        providers.providers = before


def test_nothing_is_looked_up_for_a_base_that_nothing_is_configured_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    get_value = EnvironProvider.get_value

    def noted(self: EnvironProvider, key: str, hint: Any, pipeline_name: str, *sections: str) -> Any:
        asked.append(pipeline_name)
        return get_value(self, key, hint, pipeline_name, *sections)

    monkeypatch.setattr(EnvironProvider, "get_value", noted)
    with scoped_config("shop__orders", Scope(base="shop")):
        rows_in_a_file("shop__orders")
        assert "shop__orders" in asked
        assert "shop" not in asked
        # One that is named like it is another's.
        monkeypatch.setenv("SHOPS__DATA_WRITER__FILE_MAX_ITEMS", "2")
        rows_in_a_file("shop__orders")
        assert "shop" not in asked
        monkeypatch.setenv("PIPELINES__SHOP__ANYTHING", "2")
        rows_in_a_file("shop__orders")
        assert "shop" in asked


def test_a_provider_that_is_registered_meanwhile_stays_and_counts_from_the_next_scope_on() -> None:
    config = {"shop": {"data_writer": {"file_max_items": 5}}}
    ours = CustomLoaderDocProvider("ours", lambda: config, supports_secrets=False)
    providers = Container()[PluggableRunContext].providers
    try:
        with scoped_config("shop__orders", Scope(base="shop")):
            dlt.config.register_provider(ours)
            assert rows_in_a_file("shop") == 5
            with scoped_config("shop__customers", Scope(base="shop")):
                assert rows_in_a_file("shop__customers") == 5
        assert provider_names()[-1] == "ours"
        assert rows_in_a_file("shop") == 5
    finally:
        providers.providers = [provider for provider in providers.providers if provider is not ours]
