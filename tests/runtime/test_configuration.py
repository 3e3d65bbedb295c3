"""How a runner is set up: code before configuration, one pipeline's section before that of all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.common.configuration.container import Container
from dlt.common.configuration.specs.pluggable_run_context import PluggableRunContext
from dlt.pipeline.pipeline import Pipeline
from tenacity import Retrying, stop_after_attempt

from prefect_dlt import create_run_pipeline_flow, runner
from prefect_dlt.configuration import RunnerConfiguration, runner_settings
from prefect_dlt.errors import ConfigurationError
from prefect_dlt.retry import policy_text
from tests.runtime.sources import shop

Configure = Callable[[str], None]


@pytest.fixture
def configure(own_folder: Path) -> Any:
    """Return a function that writes dlt's config.toml of the current folder."""
    reload = Container()[PluggableRunContext].reload_providers

    def write(text: str) -> None:
        (own_folder / ".dlt").mkdir(exist_ok=True)
        (own_folder / ".dlt" / "config.toml").write_text(text)
        reload()

    before = Container()[PluggableRunContext].context.run_dir
    Container()[PluggableRunContext].reload(str(own_folder))
    yield write
    (own_folder / ".dlt" / "config.toml").unlink(missing_ok=True)
    Container()[PluggableRunContext].reload(before)


def test_without_any_word_a_failed_load_is_not_retried() -> None:
    settings = runner_settings("shop")

    assert policy_text(settings.policy) == "1 attempt"
    assert settings.retry_pipeline_steps == ("load",)
    assert (settings.store_trace_info, settings.run_from_clean_folder, settings.discard_pending) == (False,) * 3
    assert (settings.verify, settings.lock_timeout) == (None, 0.0)


def test_a_runner_is_set_up_by_dlts_configuration(configure: Configure) -> None:
    configure(
        """
        [runner]
        retry_policy = "exponential_backoff"
        retry_attempts = 4
        retry_multiplier = 0.5
        retry_min = 2
        retry_max = 8.5
        retry_pipeline_steps = ["extract", "load"]
        store_trace_info = true
        run_from_clean_folder = true
        discard_pending = true
        verify = "warn"
        lock_timeout = 3.5
        """
    )

    settings = runner_settings("shop")

    assert policy_text(settings.policy) == "4 attempts, wait from 2 s on, longer each time, at most 8.5 s"
    assert settings.retry_pipeline_steps == ("extract", "load")
    assert (settings.store_trace_info, settings.run_from_clean_folder, settings.discard_pending) == (True,) * 3
    assert (settings.verify, settings.lock_timeout) == ("warn", 3.5)


def test_the_section_of_a_pipeline_counts_before_that_of_all(configure: Configure) -> None:
    configure(
        """
        [runner]
        retry_policy = "fixed_attempts"
        verify = true
        [shop.runner]
        retry_attempts = 7
        """
    )

    assert policy_text(runner_settings("shop").policy) == "7 attempts, wait 1 s"
    assert policy_text(runner_settings("other").policy) == "3 attempts, wait 1 s"
    assert runner_settings("shop").verify == "raise"


def test_environment_variables_change_it_without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER__RETRY_POLICY", "fixed_attempts")
    monkeypatch.setenv("SHOP__RUNNER__RETRY_ATTEMPTS", "5")
    monkeypatch.setenv("RUNNER__RETRY_WAIT", "0.5")
    monkeypatch.setenv("RUNNER__RETRY_PIPELINE_STEPS", "load, extract")
    monkeypatch.setenv("RUNNER__VERIFY", "true")

    settings = runner_settings("shop")

    assert policy_text(settings.policy) == "5 attempts, wait 0.5 s"
    assert settings.retry_pipeline_steps == ("extract", "load")
    assert settings.verify == "raise"


def test_a_number_that_cannot_work_is_named_as_it_was_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER__RETRY_POLICY", "exponential_backoff")
    monkeypatch.setenv("RUNNER__RETRY_ATTEMPTS", "0")

    with pytest.raises(ConfigurationError, match=r"^retry_attempts cannot be 0: "):
        runner_settings("shop")


def test_what_code_says_counts_before_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER__RETRY_POLICY", "fixed_attempts")
    monkeypatch.setenv("RUNNER__VERIFY", "true")
    monkeypatch.setenv("RUNNER__RETRY_PIPELINE_STEPS", '["extract"]')
    policy = Retrying(stop=stop_after_attempt(9))

    settings = runner_settings("shop", retry_policy=policy, verify=False, retry_pipeline_steps=["normalize"])

    assert settings.retry_policy is policy
    assert settings.verify is None
    assert settings.retry_pipeline_steps == ("normalize",)


def test_a_policy_named_in_code_has_the_configured_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER__RETRY_ATTEMPTS", "6")

    assert policy_text(runner_settings("shop", retry_policy="fixed_attempts").policy) == "6 attempts, wait 1 s"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RETRY_POLICY", "forever", "choose one of 'none', 'fixed_attempts', 'exponential_backoff'"),
        ("RETRY_ATTEMPTS", "many", "in \\[runner\\] or \\[shop.runner\\] of dlt's configuration, .* as int"),
        ("RETRY_PIPELINE_STEPS", "extract, lod", "'extract', 'normalize', 'load'"),
        ("STORE_TRACE_INFO", "perhaps", "as bool"),
        ("VERIFY", "perhaps", "True, False or one of 'raise', 'warn'"),
        ("LOCK_TIMEOUT", "-1", "give seconds, at least 0"),
        ("LOCK_TIMEOUT", "nan", "give seconds, at least 0"),
    ],
)
def test_a_configured_value_that_cannot_work_is_refused_before_anything_runs(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch, pipeline: Callable[..., Pipeline]
) -> None:
    monkeypatch.setenv(f"RUNNER__{name}", value)

    with pytest.raises(ConfigurationError, match=message):
        runner(pipeline())


@pytest.mark.parametrize(
    "given",
    [
        {"store_trace_info": "yes"},
        {"run_from_clean_folder": 1},
        {"discard_pending": "no"},
        {"verify": 2},
        {"lock_timeout": True},
        {"lock_timeout": "3"},
    ],
)
def test_a_given_value_of_a_wrong_type_is_refused(given: dict[str, Any], pipeline: Callable[..., Pipeline]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        runner(pipeline(), **given)


@pytest.mark.slow
def test_the_section_of_a_pipeline_counts_for_those_that_derive_from_it(
    prefect_api: None, pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP__RUNNER__STORE_TRACE_INFO", "true")

    create_run_pipeline_flow(pipeline(), shop(), decompose=True)()

    with pipeline().sql_client() as client:
        rows = client.execute_sql("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'shop_data'")
    names = {name for (name,) in rows or []}
    assert {"shop__orders_trace", "shop__customers_trace"} <= names
    assert not {name for name in names if name.startswith("_seed")}


def test_each_field_of_the_configuration_is_documented() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "runner.md"

    text = page.read_text(encoding="utf-8")

    assert {name for name in RunnerConfiguration.get_resolvable_fields() if f"`{name}`" not in text} == set()


def test_a_resource_is_data_as_it_stands(pipeline: Callable[..., Pipeline]) -> None:
    @dlt.resource
    def orders(first: int = 1) -> Any:
        yield {"id": first}

    runner(pipeline()).run(orders)

    with pipeline().sql_client() as client:
        assert client.execute_sql("SELECT id FROM orders") == [(1,)]
