"""What a destination can is found out once a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dlt
import pytest
from dlt.common.destination.reference import Destination
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.capabilities import with_remembered_capabilities
from prefect_dlt.dataset import derive


def test_a_part_asks_for_the_configuration_that_tells_it_once_for_each_naming(
    pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve: Any = getattr(Destination, "configuration")  # noqa: B009 - its types are not known
    partial: list[bool] = []

    def noted(self: Any, initial_config: Any, accept_partial: bool = False) -> Any:
        partial.append(accept_partial)
        return resolve(self, initial_config, accept_partial)

    def asked(of: Pipeline) -> int:
        partial.clear()
        of.run([{"id": 1}], table_name="rows")
        return sum(partial)

    monkeypatch.setattr(Destination, "configuration", noted)
    base = pipeline()
    part = derive(base, "shop__rows", "rows", ("rows",))

    # Without a schema's naming, and with it.
    assert asked(part) <= 2
    assert asked(base) > 2


def test_what_is_done_to_an_answer_does_not_change_the_next() -> None:
    destination = with_remembered_capabilities(dlt.destinations.duckdb("rows.duckdb"))

    first = destination.capabilities()
    first.supported_loader_file_formats.clear()
    first.preferred_loader_file_format = "jsonl"

    second = destination.capabilities()
    assert "parquet" in second.supported_loader_file_formats
    assert second.preferred_loader_file_format == "insert_values"


def test_it_is_called_as_it_was() -> None:
    plain = dlt.destinations.filesystem("memory://somewhere")
    remembering = with_remembered_capabilities(plain)

    assert remembering.destination_type == plain.destination_type
    assert remembering.capabilities().max_identifier_length == plain.capabilities().max_identifier_length
