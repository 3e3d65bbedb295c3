"""What dlt resolves as a secret on any thread, and what is given to it in code, is known; ordinary values are not."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import dlt
import pytest
import sqlalchemy
from dlt.common.configuration import configspec
from dlt.common.configuration.container import Container
from dlt.common.configuration.inject import set_fun_last_config
from dlt.common.configuration.resolve import resolve_configuration
from dlt.common.configuration.specs import PluggableRunContext
from dlt.common.configuration.utils import TraceLogContext, get_resolved_traces
from dlt.extract.reference import SourceReference
from dlt.pipeline.pipeline import Pipeline
from dlt.sources.credentials import ConnectionStringCredentials, GcpServiceAccountCredentials
from typing_extensions import override

from prefect_dlt import CallbackCollector, runner
from prefect_dlt.known_secrets import MOST_SECRETS, _store, known_secrets, learn_secrets  # pyright: ignore[reportPrivateUsage]

KEY = "K7fQ92mZpL0vB"


@pytest.fixture(autouse=True)
def _nothing_is_known() -> Iterator[None]:
    """Each test begins and ends with nothing that others have resolved."""

    def forget() -> None:
        for contexts, _ in Container().thread_contexts.values():
            if TraceLogContext in contexts:
                cast("TraceLogContext", contexts[TraceLogContext]).clear()
        registered = [cast("Any", reference.factory) for reference in SourceReference.SOURCES.values()]
        for at_the_level_of_a_module in (shop, orders, *registered):
            set_fun_last_config(at_the_level_of_a_module, None)  # type: ignore[arg-type]
        learn_secrets()
        _store.forget()

    forget()
    yield
    forget()


@dlt.source
def shop(api_key: str = dlt.secrets.value) -> Any:
    """A source at the level of a module, as dlt registers it."""
    return dlt.resource([api_key], name="orders")


@dlt.resource
def orders(api_key: str = dlt.secrets.value) -> Any:
    """A resource at the level of a module."""
    yield {"id": len(api_key)}


def in_a_thread(act: Callable[[], Any]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


class TestWhatDltResolves:
    def test_a_secret_is_known_and_what_is_no_secret_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("API_TOKEN", KEY)
        monkeypatch.setenv("REGION", "north-west")

        @dlt.source
        def here(api_token: str = dlt.secrets.value, region: str = dlt.config.value) -> Any:
            return dlt.resource([api_token, region], name="orders")

        here()

        assert known_secrets() == {KEY}

    def test_on_another_thread_it_is_known_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("API_KEY", KEY)

        in_a_thread(shop)

        assert known_secrets() == {KEY}

    def test_it_stays_known_when_another_run_has_ended(
        self, pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("API_TOKEN", KEY)

        @dlt.source
        def here(api_token: str = dlt.secrets.value) -> Any:
            return dlt.resource([api_token], name="orders")

        here()
        pipeline("other", progress=CallbackCollector()).run([{"id": 1}], table_name="others")

        assert get_resolved_traces().resolved_traces == []
        assert KEY in known_secrets()

    def test_what_a_run_without_a_collector_resolved_is_known_after_it(
        self, pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("API_KEY", KEY)

        @dlt.resource
        def here(api_key: str = dlt.secrets.value) -> Any:
            yield {"id": len(api_key)}

        runner(pipeline()).run(here)

        assert get_resolved_traces().resolved_traces == []
        assert KEY in known_secrets()

    def test_what_is_put_into_a_configuration_after_it_was_resolved_is_known_to_its_thread(self) -> None:
        credentials = resolve_configuration(
            ConnectionStringCredentials("postgresql://loader@db:5432/shop"), sections=("later",)
        )
        assert KEY not in learn_secrets()

        credentials.password = KEY

        assert KEY in learn_secrets()

    def test_what_another_thread_is_still_resolving_is_looked_at_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looked_at, is_done = threading.Event(), threading.Event()

        @configspec
        class Slow(ConnectionStringCredentials):
            def on_resolved(self) -> None:
                looked_at.set()
                is_done.wait(60)
                self.password = KEY

        monkeypatch.setenv("SLOW__USERNAME", "loader")
        other = threading.Thread(
            target=resolve_configuration, args=(Slow("postgresql://db:5432/shop"),), kwargs={"sections": ("slow",)}
        )
        other.start()
        looked_at.wait(60)
        assert KEY not in learn_secrets()
        is_done.set()
        other.join()

        assert KEY in learn_secrets()

    def test_of_an_address_only_the_password_is_a_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CREDENTIALS", "postgresql://loader:p%40ss@db:5432/shop?sslpassword=hunter2")

        @dlt.source
        def here(credentials: ConnectionStringCredentials = dlt.secrets.value) -> Any:
            return dlt.resource([str(credentials)], name="orders")

        here()

        assert known_secrets() == {"p%40ss", "p@ss", "hunter2"}

    def test_the_file_of_a_duckdb_database_is_no_secret(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("DESTINATION__DUCKDB__CREDENTIALS", "data.duckdb")
        pipeline = dlt.pipeline("shop", destination="duckdb", pipelines_dir=str(tmp_path))
        with pipeline.sql_client():
            assert learn_secrets(pipeline) == {pipeline.pipeline_salt}

    def test_of_credentials_in_json_what_is_named_a_secret_is_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        account = {
            "type": "service_account",
            "project_id": "north-west",
            "client_email": "loader@example.com",
            "private_key": "-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----\n",
        }
        monkeypatch.setenv("CREDENTIALS", json.dumps(account))

        @dlt.source
        def here(credentials: GcpServiceAccountCredentials = dlt.secrets.value) -> Any:
            return dlt.resource([str(credentials)], name="orders")

        here()

        assert account["private_key"] in known_secrets()
        assert known_secrets().isdisjoint({"north-west", "loader@example.com"})

    def test_every_text_in_a_secret_that_is_a_dictionary_is_a_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ACCOUNTS", '{"first": "hunter-one", "more": ["hunter-two", 3]}')

        @dlt.source
        def here(accounts: dict[str, Any] = dlt.secrets.value) -> Any:
            return dlt.resource([accounts], name="orders")

        here()

        assert {"hunter-one", "hunter-two"} <= known_secrets()


class TestWhatIsGivenInCode:
    def test_to_a_source_of_a_module(self) -> None:
        shop(api_key=KEY)

        assert learn_secrets() == {KEY}

    def test_to_each_call_of_a_source_that_resolves_something_else(self) -> None:
        @dlt.source
        def here(api_key: str = dlt.secrets.value, region: str = "north") -> Any:
            return dlt.resource([api_key, region], name="orders")

        here(api_key="first-key-of-all")
        here(api_key=KEY)

        assert learn_secrets() == {"first-key-of-all", KEY}

    @pytest.mark.parametrize("given", ["source", "resource", "list"])
    def test_to_what_a_runner_is_given(self, given: str) -> None:
        @dlt.source
        def here(api_key: str = dlt.secrets.value) -> Any:
            return dlt.resource([api_key], name="orders")

        data = orders(api_key=KEY) if given == "resource" else here(api_key=KEY)

        assert learn_secrets(data=[[data], {"id": 1}] if given == "list" else data) == {KEY}

    def test_to_a_source_in_a_function_when_it_is_extracted(self, pipeline: Callable[..., Pipeline]) -> None:
        known: list[frozenset[str]] = []

        @dlt.source
        def here(api_key: str = dlt.secrets.value) -> Any:
            @dlt.resource
            def orders() -> Iterator[Any]:
                known.append(known_secrets())
                yield {"id": len(api_key)}

            return orders

        source = here(api_key=KEY)
        pipeline(progress=CallbackCollector()).run(source)

        assert KEY in known[0]

    @pytest.mark.parametrize(
        "credentials",
        [
            f"postgresql://ada:{KEY}@127.0.0.1:1/db",
            {"password": KEY, "host": "127.0.0.1", "username": "ada", "database": "db"},
        ],
    )
    def test_to_a_destination(self, credentials: Any, tmp_path: Path) -> None:
        destination = dlt.destinations.postgres(credentials)
        pipeline = dlt.pipeline("shop", destination=destination, pipelines_dir=str(tmp_path))

        assert learn_secrets(pipeline) == {KEY, pipeline.pipeline_salt}

    def test_as_an_engine(self, tmp_path: Path) -> None:
        engine = sqlalchemy.create_engine(f"postgresql+psycopg2://ada:{KEY}@127.0.0.1:1/db")
        destination = dlt.destinations.sqlalchemy(engine)
        pipeline = dlt.pipeline("shop", destination=destination, pipelines_dir=str(tmp_path))

        assert learn_secrets(pipeline) == {KEY, pipeline.pipeline_salt}

    def test_to_a_destination_of_the_users_own(self, tmp_path: Path) -> None:
        @dlt.destination(batch_size=1)
        def sink(items: Any, table: Any, token: str = dlt.secrets.value) -> None:
            raise ValueError(token)

        pipeline = dlt.pipeline("shop", destination=sink(token=KEY), pipelines_dir=str(tmp_path))

        assert learn_secrets(pipeline) == {KEY, pipeline.pipeline_salt}

    def test_to_staging(self, tmp_path: Path) -> None:
        staging = dlt.destinations.filesystem(
            "s3://bucket/folder",
            credentials={"aws_access_key_id": "AKIAIOSFODNN7EXAMPLE", "aws_secret_access_key": KEY},
        )
        pipeline = dlt.pipeline("shop", destination="redshift", staging=staging, pipelines_dir=str(tmp_path))

        assert learn_secrets(pipeline) == {KEY, pipeline.pipeline_salt, "AKIAIOSFODNN7EXAMPLE"}


class TestAfterARun:
    """What lacks a value holds the error that says so, and with its traceback all that was in use."""

    class InUse:
        """A connection, say."""

    @pytest.fixture
    def used(self) -> list[weakref.ref[InUse]]:
        return []

    @pytest.fixture
    def look_up(self, used: list[weakref.ref[InUse]], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        """Return what resolves a configuration as dlt does when a destination is looked into."""
        monkeypatch.setenv("CREDENTIALS__PASSWORD", KEY)

        def resolve() -> None:
            in_use = self.InUse()
            used.append(weakref.ref(in_use))
            # The host is missing.
            resolve_configuration(ConnectionStringCredentials(), accept_partial=True)

        return resolve

    @pytest.mark.slow
    def test_with_a_collector_nothing_that_was_in_use_is_held(
        self,
        pipeline: Callable[..., Pipeline],
        used: list[weakref.ref[InUse]],
        look_up: Callable[[], None],
    ) -> None:
        @dlt.resource
        def here() -> Iterator[Any]:
            look_up()
            yield {"id": 1}

        pipeline(progress=CallbackCollector()).run(here)
        gc.collect()

        assert [each() for each in used] == [None]
        assert KEY in known_secrets()

    @pytest.mark.slow
    def test_with_a_runner_neither_what_is_looked_up_once_all_is_loaded(
        self,
        pipeline: Callable[..., Pipeline],
        used: list[weakref.ref[InUse]],
        look_up: Callable[[], None],
    ) -> None:
        class Looks(CallbackCollector):
            @override
            def on_after(self, *_: Any) -> None:
                look_up()

        runner(pipeline(progress=Looks()), verify=True).run([{"id": 1}], table_name="rows")
        gc.collect()

        assert [each() for each in used] == [None]
        assert get_resolved_traces().all_traces == []
        assert KEY in known_secrets()

    def test_without_a_collector_that_is_so_too(self, pipeline: Callable[..., Pipeline]) -> None:
        runner(pipeline(), verify=True).run([{"id": 1}], table_name="rows")

        assert get_resolved_traces().all_traces == []


def test_the_documents_of_providers_of_secrets_are_looked_through(own_folder: Path) -> None:
    folder = own_folder / ".dlt"
    folder.mkdir()
    (folder / "secrets.toml").write_text(f'[sources.shop]\napi_key = "{KEY}"\nregion = "north-west"\n')
    (folder / "config.toml").write_text('[sources.shop]\napi_token = "not-a-secret-0123"\n')
    context = Container()[PluggableRunContext]
    try:
        context.reload(".")

        assert learn_secrets() == {KEY}
    finally:
        (folder / "secrets.toml").unlink()
        (folder / "config.toml").unlink()
        context.reload(".")


def test_no_more_is_kept_than_fits_and_what_was_met_last_is() -> None:
    @dlt.source
    def here(api_keys: list[str] = dlt.secrets.value, region: str = "north") -> Any:
        return dlt.resource([*api_keys, region], name="orders")

    half, known = MOST_SECRETS // 2, frozenset[str]()
    for batch in range(3):
        again = ["key-0-of-batch-0"] if batch else []
        here(api_keys=[*again, *(f"key-{number}-of-batch-{batch}" for number in range(len(again), half))])
        known = learn_secrets()
        get_resolved_traces().clear()

    assert len(known) == MOST_SECRETS
    assert {"key-0-of-batch-0", "key-1-of-batch-1", "key-1-of-batch-2"} <= known
    assert "key-1-of-batch-0" not in known


def test_what_cannot_be_looked_at_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        @property
        def destination(self) -> Any:
            raise RuntimeError(KEY)

    for _ in range(2):
        assert learn_secrets(Broken()) == set()
    assert caplog.text.count("RuntimeError") == 1
    assert KEY not in caplog.text
