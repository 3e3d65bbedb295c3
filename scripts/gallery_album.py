"""Which pictures the gallery has."""

from __future__ import annotations

from typing import NamedTuple


class GalleryError(Exception):
    """What went wrong, in words for the person who asked for the pictures."""


class Picture(NamedTuple):
    """A picture of a page in Prefect's user interface, in each of the two that there are.

    Attributes:
        name: What it is called; its files are `<name>-v2.png` and `<name>-v1.png`.
        of: The artifact by its key, or the flow whose latest run it is; empty for the list of all artifacts.
        shows: A text that is on the page when it is complete.
        drawings: How many drawings there are on it, where they are drawn.
        tab: The tab of a flow run's page.
        tallest: What is below so many pixels is cut off.
    """

    name: str
    of: str
    shows: str
    drawings: int = 0
    tab: str = ""
    tallest: int = 1600


PROGRESS = Picture("progress", "web-extract", "3 of 5 resources")
"""Taken while the run is half-way."""

ARTIFACTS = (
    Picture("summary", "flights-demo-summary", "CPU and memory", drawings=2),
    Picture("summary-retried", "shop-summary", "CPU and memory", drawings=2),
    Picture("summary-failed", "crm-summary", "CPU and memory", drawings=2),
    Picture("summary-finished", "bookings-summary", "CPU and memory", drawings=2),
    Picture("summary-put-aside", "hr-summary", "CPU and memory", drawings=2),
    Picture("summary-differs", "stock-summary", "CPU and memory", drawings=2),
    Picture("flow-report", "fleet-flow-report", "of the width", drawings=1),
    Picture("extract-report", "shop-extract-report", "Rows per resource"),
    Picture("normalize-report", "shop-normalize-report", "Rows and files per table"),
    Picture("load-report", "flights-demo-load-report", "Jobs per table"),
    Picture("load-report-failed", "crm-load-report", "Failed jobs"),
    Picture("schema-changes", "shop-schema-changes", "Changed tables"),
    Picture("failed-attempt", "shop-failed-attempt-1", "What happens next"),
    Picture("failed-attempt-last", "crm-failed-attempt-1", "What happens next"),
    Picture("summary-tables", "erp-summary-tables", "erp_table_", tallest=900),
    Picture("schema-columns", "erp-schema-columns", "erp_table_", tallest=900),
)
"""Taken when all runs have ended."""

RUNS = (
    Picture("flow-run", "load-shop", "shop-summary", tab="Artifacts"),
    Picture("logs", "load-shop", "Attempt 1", tab="Logs", tallest=1200),
)
EVERYTHING = Picture("artifacts", "", "erp-summary", tallest=1200)
PICTURES = (PROGRESS, *ARTIFACTS, *RUNS, EVERYTHING)
