"""The demo loads each flight once."""

import dlt

from sources.flights import nycflights
from tests.conftest import Query


def test_a_second_run_adds_no_flight(pipeline: dlt.Pipeline, query: Query) -> None:
    for _ in range(2):
        pipeline.run(nycflights())

    assert query("SELECT count(*) FROM flights") == [(336_776,)]
    assert query("SELECT count(*) FROM weather") == [(26_115,)]
