"""Run dlt pipelines on Prefect: see them, trust them, scale them."""

import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefect_dlt._version import __version__
from prefect_dlt.callbacks import CallbackCollector
from prefect_dlt.runner import runner
from prefect_dlt.stop import guard_runs

if TYPE_CHECKING:
    from prefect_dlt.cancellation import drain_on_cancellation
    from prefect_dlt.collector import PrefectCollector
    from prefect_dlt.flows import create_run_pipeline_flow, create_run_pipeline_task
    from prefect_dlt.logs import forward_dlt_logs

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

# Imported when they are asked for: dlt's normalize workers import this package, and Prefect takes seconds.
_TALK = {
    "PrefectCollector": "collector",
    "create_run_pipeline_flow": "flows",
    "create_run_pipeline_task": "flows",
    "drain_on_cancellation": "cancellation",
    "forward_dlt_logs": "logs",
}


def __getattr__(name: str) -> Any:
    if name not in _TALK:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_TALK[name]}"), name)


def _stopping_with_its_run() -> AbstractContextManager[None]:
    # Where Prefect is not imported by the time a pipeline runs, it is in no run of Prefect's.
    if "prefect" not in sys.modules:
        return nullcontext()
    return import_module(f"{__name__}.cancellation").stopping_with_its_run()


guard_runs(_stopping_with_its_run)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
