"""The source loads its rows, and loads none twice."""

import dlt

from sources.own import own


def test_a_second_run_adds_no_row(pipeline: dlt.Pipeline) -> None:
    for _ in range(2):
        pipeline.run(own())

    rows = pipeline.dataset()["items"].select("id", "name", "price").fetchall()
    assert sorted(rows) == [(1, "apple", 0.5), (2, "pear", 0.75)]
