"""A secret in an error's message is in nothing that is written of the run, wherever it was resolved or given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import dlt
import pytest
from dlt.common import logger as dlt_logger
from dlt.common.configuration.utils import get_resolved_traces
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.logging.handlers import APILogWorker

from prefect_dlt import PrefectCollector, create_run_pipeline_flow
from prefect_dlt.errors import ComponentsFailedError
from prefect_dlt.known_secrets import _store  # pyright: ignore[reportPrivateUsage]

pytestmark = pytest.mark.usefixtures("prefect_api")

KEY = "Zq7hWm2kPx94tL"


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    get_resolved_traces().clear()
    _store.forget()


def refusing(api_key: str) -> Any:
    """Return a resource that fails with the key in its message, and says it in a log line of dlt's."""

    @dlt.resource
    def items() -> Iterator[Any]:
        dlt_logger.warning("asking with %s", api_key)
        yield {"id": 1}
        raise ValueError(f"the server said no to {api_key}")

    return items


@dlt.source
def secretive(api_key: str = dlt.secrets.value) -> Any:
    """A source with a secret, as the design's fourth program has one."""
    return refusing(api_key)


def written_since(started: datetime) -> list[str]:
    """Return the artifacts, the events of this package and the forwarded lines of all runs since then, as text."""
    APILogWorker.drain_all(timeout=30)
    since = started.isoformat()
    with get_client(sync_client=True) as client:
        artifacts = _all(client, "/artifacts/filter", {})
        lines = _all(client, "/logs/filter", {"logs": {"timestamp": {"after_": since}}})
        page = client.request(
            "POST", "/events/filter", json={"filter": {"occurred": {"since": since}}, "limit": 50}
        ).json()
        events = page["events"]
        while page.get("next_page"):
            page = client.request("GET", page["next_page"].partition("/api")[2]).json()
            events += page["events"]
    own = ("dlt.", "prefect.artifact", "prefect.asset")
    return [
        *(json.dumps(artifact) for artifact in artifacts if artifact["created"] >= since),
        *(json.dumps(event) for event in events if event["event"].startswith(own)),
        *(line["message"] for line in lines if line["name"] in {"dlt", "prefect_dlt"}),
    ]


def _all(client: SyncPrefectClient, path: str, which: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while page := client.request("POST", path, json={**which, "limit": 200, "offset": len(found)}).json():
        found += page
    return found


def test_a_source_that_is_built_in_the_flow_and_fails_in_a_submitted_task(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCES__TEST_NO_SECRET__SECRETIVE__API_KEY", KEY)
    started = datetime.now(timezone.utc)
    shop = pipeline("designed")

    @flow
    def main() -> None:
        load = create_run_pipeline_flow(
            pipeline=shop, source=secretive(), decompose=True, flow_name="load_shop", store_trace_info=True
        )
        load(write_disposition="append")

    with pytest.raises(ComponentsFailedError) as caught:
        main()

    assert "the server said no to ***" in str(caught.value)
    with shop.sql_client() as client:
        tables = [row[0] for row in client.execute_sql("SELECT table_name FROM information_schema.tables") or ()]
        rows = [
            str(client.execute_sql(f'SELECT * FROM {client.fully_qualified_dataset_name()}."{table}"'))
            for table in tables
            if "trace" in table
        ]
    written = [str(caught.value), *rows, *written_since(started)]
    assert not [text for text in written if KEY in text]
    # What says it is there, with the key masked.
    for said in ("asking with ***", "ValueError: the server said no to ***"):
        assert [text for text in written if said in text], said
    assert [text for text in rows if "the server said no to ***" in text]


@pytest.mark.slow
def test_what_was_resolved_before_another_run_or_is_given_in_code(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCES__TEST_NO_SECRET__SECRETIVE__API_KEY", KEY)
    given = {name: f"Nv3rTq8yBm51sD{name}" for name in ("source", "inner", "sink", "address")}
    started = datetime.now(timezone.utc)

    @dlt.source
    def inner(api_key: str = dlt.secrets.value) -> Any:
        return refusing(api_key)

    @dlt.destination(batch_size=1)
    def sink(items: Any, table: Any, token: str = dlt.secrets.value) -> None:
        raise ValueError(f"the server said no to {token}")

    @dlt.resource
    def connecting() -> Iterator[Any]:
        yield {"id": 1}
        raise ValueError(f"the server said no to {given['address']}")

    def into(name: str, destination: Any) -> Pipeline:
        return dlt.pipeline(name, destination=destination, progress=PrefectCollector())

    @flow
    def main() -> None:
        earlier = secretive()
        pipeline("first", progress=PrefectCollector()).run([{"id": 1}], table_name="firsts")
        postgres = dlt.destinations.postgres(f"postgresql://ada:{given['address']}@127.0.0.1:1/db")
        for run in (
            lambda: pipeline("later", progress=PrefectCollector()).run(earlier),
            lambda: pipeline("given", progress=PrefectCollector()).run(secretive(api_key=given["source"])),
            lambda: pipeline("inner", progress=PrefectCollector()).run(inner(api_key=given["inner"])),
            lambda: into("sinking", sink(token=given["sink"])).run([{"id": 1}], table_name="items"),
            lambda: into("connecting", postgres).extract(connecting()),
        ):
            with pytest.raises(PipelineStepFailed):
                run()

    main()

    written = written_since(started)
    assert not [text for text in written if KEY in text or any(secret in text for secret in given.values())]
    for name in ("later", "given", "inner", "sinking", "connecting"):
        assert [text for text in written if f'"{name}-' in text and "the server said no to ***" in text], name
