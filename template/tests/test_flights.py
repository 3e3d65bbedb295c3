"""The demo loads each flight once."""

import dlt

from sources.flights import nycflights

ROWS = {"flights": 336_776, "airlines": 16, "airports": 1_458, "planes": 3_322, "weather": 26_115}


def test_a_second_run_adds_no_flight(pipeline: dlt.Pipeline) -> None:
    for _ in range(2):
        pipeline.run(nycflights())

    assert dict(pipeline.dataset().row_counts(table_names=list(ROWS)).fetchall()) == ROWS
