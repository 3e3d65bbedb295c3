"""The source loads its rows, and loads none twice."""

import dlt

from sources.own import own
from tests.conftest import Query


def test_a_second_run_adds_no_row(pipeline: dlt.Pipeline, query: Query) -> None:
    for _ in range(2):
        pipeline.run(own())

    assert query("SELECT id, name, price FROM items ORDER BY id") == [(1, "apple", 0.5), (2, "pear", 0.75)]
