"""The one place that holds the version of prefect-dlt."""

__version__ = "0.1.0"
