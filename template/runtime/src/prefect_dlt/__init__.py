"""Run dlt pipelines on Prefect: see them, trust them, scale them."""

from prefect_dlt._version import __version__
from prefect_dlt.callbacks import CallbackCollector
from prefect_dlt.cancellation import drain_on_cancellation
from prefect_dlt.collector import PrefectCollector
from prefect_dlt.flows import create_run_pipeline_flow, create_run_pipeline_task
from prefect_dlt.logs import forward_dlt_logs
from prefect_dlt.runner import runner

__all__ = [
    "CallbackCollector",
    "PrefectCollector",
    "__version__",
    "create_run_pipeline_flow",
    "create_run_pipeline_task",
    "drain_on_cancellation",
    "forward_dlt_logs",
    "runner",
]
