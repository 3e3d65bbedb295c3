"""The public names used as users do; never run, but checked by pyright: what is written here has to keep its types."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import dlt
from dlt.common.pipeline import LoadInfo, SupportsPipeline
from dlt.extract import DltResource
from dlt.pipeline.trace import PipelineTrace
from prefect import Flow, Task
from tenacity import Retrying, stop_after_attempt, wait_random
from typing_extensions import assert_type, override

import prefect_dlt
from prefect_dlt import (
    CallbackCollector,
    PrefectCollector,
    create_run_pipeline_flow,
    create_run_pipeline_task,
    drain_on_cancellation,
    forward_dlt_logs,
    runner,
)
from prefect_dlt.errors import (
    ComponentsFailedError,
    ConfigurationError,
    NotASourceError,
    PendingDataError,
    PrefectDltError,
    UnknownResourcesError,
)
from prefect_dlt.plan import Plan
from prefect_dlt.record import RunRecord, TableRow
from prefect_dlt.results import ComponentResult, FlowResult
from prefect_dlt.retry import exponential_backoff, fixed_attempts, worth_retrying
from prefect_dlt.runner import PipelineRunner
from prefect_dlt.schema_changes import SchemaChanges

assert_type(prefect_dlt.__version__, str)


@dlt.source
def shop() -> list[DltResource]:
    return [dlt.resource([{"id": 1}], name="orders")]


def build_pipeline() -> dlt.Pipeline:
    return dlt.pipeline("shop", destination="duckdb", dataset_name="shop_data", progress=PrefectCollector())


# Collectors ---------------------------------------------------------------------------------------------------------

PrefectCollector(1, logger=logging.getLogger("shop"))
PrefectCollector(0.5, "dlt_logger", logging.DEBUG, close_timeout=1)
CallbackCollector(5, sys.stderr)
CallbackCollector(log_period=5, logger="stdout", log_level=logging.INFO)
CallbackCollector(logger=logging.LoggerAdapter(logging.getLogger("shop"), {}))


class EveryCallback(PrefectCollector):
    """Overrides every callback with the types that the reference gives."""

    @override
    def on_before(self, pipeline: SupportsPipeline) -> None: ...

    @override
    def on_after(
        self, pipeline: SupportsPipeline, trace: PipelineTrace | None, exception: BaseException | None
    ) -> None: ...

    @override
    def on_retry(
        self,
        pipeline: SupportsPipeline,
        trace: PipelineTrace | None,
        retry_attempt: int,
        last_attempt: bool,
        exception: BaseException,
    ) -> None: ...

    @override
    def before_extract(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None: ...

    @override
    def after_extract(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None: ...

    @override
    def before_normalize(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None: ...

    @override
    def after_normalize(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None: ...

    @override
    def before_load(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None: ...

    @override
    def after_load(self, pipeline: SupportsPipeline, trace: PipelineTrace) -> None: ...

    @override
    def on_schema_change(
        self, pipeline: SupportsPipeline, trace: PipelineTrace, schema_name: str, changes: SchemaChanges
    ) -> None:
        for table, change in changes.items():
            assert_type(table, str)
            assert_type(change.is_new, bool)
            for column, what in change.columns.items():
                assert_type(column, str)
                assert_type(what.kind, Literal["new", "changed", "variant"])
                assert_type(what.was, str | None)
                assert_type(what.data_type, str)

    @override
    def on_log(self) -> None:
        super().on_log()


# Logs ---------------------------------------------------------------------------------------------------------------

with forward_dlt_logs():
    pass
with forward_dlt_logs("INFO"), forward_dlt_logs(level=logging.DEBUG):
    pass

# Cancellation -------------------------------------------------------------------------------------------------------

with drain_on_cancellation():
    pass

# Runner and policies ------------------------------------------------------------------------------------------------

run = runner(build_pipeline())
assert_type(run, PipelineRunner)
assert_type(run.run(shop()), LoadInfo | None)
assert_type(run.run([{"id": 1}], table_name="orders", write_disposition="append"), LoadInfo | None)
assert_type(run.finalize(), LoadInfo | None)
assert_type(run.record, RunRecord | None)
if run.record:
    assert_type(run.record.tables(), list[TableRow])
    assert_type(run.record.attempts, int)
    assert_type(run.record.load_ids, list[str])

runner(
    build_pipeline(),
    retry_policy=Retrying(stop=stop_after_attempt(3), wait=wait_random(1, 3), reraise=True),
    retry_pipeline_steps=["extract", "normalize", "load"],
    store_trace_info=dlt.pipeline("traces", destination="duckdb"),
    run_from_clean_folder=True,
)

assert_type(fixed_attempts(3, wait=2), Retrying)
assert_type(exponential_backoff(attempts=5, multiplier=2, min=1, max=120), Retrying)
assert_type(worth_retrying(["extract", "load"])(ValueError()), bool)

# Tasks and flows ----------------------------------------------------------------------------------------------------

task = create_run_pipeline_task(
    build_pipeline,
    shop,
    task_name="load shop",
    retry_policy=fixed_attempts(3),
    retry_pipeline_steps=("extract", "load"),
    store_trace_info=True,
    run_from_clean_folder=False,
    normalize_workers=2,
    file_max_bytes=1_000_000,
)
assert_type(task, Task[..., LoadInfo | None])
assert_type(task(), LoadInfo | None)
assert_type(task(resources=["orders"], write_disposition="replace"), LoadInfo | None)

flow = create_run_pipeline_flow(
    build_pipeline,
    shop,
    decompose="auto",
    on_failure="cancel",
    flow_name="load-shop",
    description="Loads the shop.",
    retry_policy=fixed_attempts(3),
    retry_pipeline_steps=["load"],
    store_trace_info=True,
    run_from_clean_folder=False,
    extract_workers=10,
    normalize_workers=3,
    load_workers=5,
    file_max_items=10_000,
    buffer_max_items=2_000,
)
typed: Flow[..., FlowResult] = flow
assert_type(flow.plan(resources=["orders"]), Plan)
result = flow(resources=["orders"], full_refresh=True, credentials="shop.duckdb")
assert_type(result, FlowResult)
assert_type(result.components, tuple[ComponentResult, ...])
assert_type(result.tables, tuple[TableRow, ...])
assert_type(result.components[0].error, str | None)
assert_type(result.components[0].load_info, LoadInfo | None)
assert_type(result.tables[0].rows, int)
assert_type(result.tables[0].seconds, float)

create_run_pipeline_flow(build_pipeline(), shop(), decompose=True)
create_run_pipeline_flow(build_pipeline(), [{"id": 1}])
create_run_pipeline_task(build_pipeline(), shop().orders)

# Errors -------------------------------------------------------------------------------------------------------------


def handled(error: PrefectDltError) -> Any:
    match error:
        case ComponentsFailedError():
            assert_type(error.failures, dict[str, str])
            return error.flow_name, error.loaded
        case PendingDataError():
            assert_type(error.load_ids, tuple[str, ...])
            return error.pipeline_name, error.working_dir
        case UnknownResourcesError():
            assert_type(error.unknown, tuple[str, ...])
            return error.source_name, error.known
        case NotASourceError():
            return error.type_name
        case ConfigurationError():
            return error.argument, error.value, error.expected
        case _:
            return str(error)
