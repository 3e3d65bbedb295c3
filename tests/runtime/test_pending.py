"""What waits in a working directory is told as it is there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.pending import MOST_PACKAGES, pending_lines, resumes_with


def test_each_package_is_told_with_how_far_it_is(pipeline: Callable[..., Pipeline]) -> None:
    shop = pipeline()
    assert pending_lines(shop) == []
    assert resumes_with(shop) == "extract, since nothing was kept"

    shop.extract([{"id": 1}], table_name="orders")

    (extracted,) = shop.list_extracted_load_packages()
    assert pending_lines(shop) == [f"load package {extracted}: extracted"]
    assert resumes_with(shop).startswith("normalize")

    shop.normalize()

    assert pending_lines(shop) == [f"load package {extracted}: normalised, 0 of 2 jobs loaded"]
    assert resumes_with(shop).startswith("load")

    shop.load()

    assert pending_lines(shop) == []


def test_jobs_that_were_loaded_are_counted(pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAD__WORKERS", "1")
    shop = pipeline()
    shop.run([{"id": 1, "lines": [{"id": 1}]}], table_name="orders")
    client = type(shop.destination_client())
    original = client.complete_load

    def asleep(*_args: object, **_options: object) -> None:
        raise ConnectionError("asleep")

    monkeypatch.setattr(client, "complete_load", asleep)
    with pytest.raises(PipelineStepFailed):
        shop.run([{"id": 2, "lines": [{"id": 1}]}], table_name="orders")

    (line,) = pending_lines(shop)
    assert line.endswith(": normalised, 2 of 2 jobs loaded")
    monkeypatch.setattr(client, "complete_load", original)


def test_many_packages_are_told_in_a_few_lines(pipeline: Callable[..., Pipeline]) -> None:
    shop = pipeline()
    for _ in range(MOST_PACKAGES + 2):
        shop.extract([{"id": 1}], table_name="orders")

    lines = pending_lines(shop)

    assert len(lines) == MOST_PACKAGES + 1
    assert lines[-1] == "and 2 more load packages"
