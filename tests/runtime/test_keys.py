"""Keys of artifacts are readable, valid, stable, and never the same for two things."""

from __future__ import annotations

import hashlib

import pytest

from prefect_dlt.keys import artifact_key


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("shop", "extract"), "shop-extract"),
        (("a_b", "load"), "a-b-load"),
        (("shop__orders", "summary"), "shop--orders-summary"),
    ],
)
def test_a_plain_name_makes_a_readable_key(names: tuple[str, ...], key: str) -> None:
    assert artifact_key(*names) == key


@pytest.mark.parametrize("pipeline", ["warehouse_" * 6, "Warehouse-" * 5, "日本" * 30])
def test_of_a_pipeline_with_a_long_name_each_artifact_keeps_its_own_name(pipeline: str) -> None:
    keys = {name: artifact_key(pipeline, name) for name in NAMES}

    for name, key in keys.items():
        before, digest, own_name = key.partition(hashlib.sha256(pipeline.encode()).hexdigest()[:8])
        assert digest, key
        assert own_name == "-" + name.replace("_", "-")
        assert "warehouse".startswith(before[:9])
        assert len(key) < 60


def test_no_two_names_share_a_key() -> None:
    names = [
        "a_b",
        "a-b",
        "a--b",
        "a__b",
        "A_B",
        "a b",
        "ab",
        "käse",
        "kase",
        "x" * 80,
        "x" * 81,
        "x" * 51,
        "x" * 52,
        "日本",
        "中国",
        "_",
        "-",
    ]

    keys = [artifact_key(name, "extract") for name in names]

    assert len(set(keys)) == len(names)
    for key in keys:
        assert len(key) < 60
        assert key.replace("-", "").isalnum()
        assert key.isascii()
        assert key == key.lower()


NAMES = (
    *("extract", "normalize", "load", "extract_report", "normalize_report", "load_report", "summary", "schema_changes"),
    *("extract_resources", "normalize_tables", "load_tables", "failed_jobs", "summary_tables", "schema_columns"),
    *("summary_tables_2", "failed_attempt_1", "failed_attempt_12"),
)


def test_no_artifact_of_one_pipeline_has_the_key_of_another_pipelines() -> None:
    pipelines = [
        "shop",
        "shop_load",
        "shop_extract",
        "shop_summary",
        "shop_failed",
        "shop__orders",
        "shop-load",
        "Shop",
        "x" * 40,
        "x" * 80,
        "x" * 80 + "_load",
        "X" * 80,
    ]

    keys = [artifact_key(pipeline, name) for pipeline in pipelines for name in NAMES]

    assert len(set(keys)) == len(pipelines) * len(NAMES)
