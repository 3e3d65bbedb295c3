"""How the parts of a source become tasks: one for all, one after another, or all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from prefect_dlt.component_load import ComponentLoad
from prefect_dlt.dataset import shared_dataset
from prefect_dlt.decompose import Component, Decompose, components
from prefect_dlt.known_secrets import known_secrets
from prefect_dlt.reasons import text_of
from prefect_dlt.redact import redact
from prefect_dlt.results import ComponentResult


def load_components(
    work: ComponentLoad, mode: Decompose, resources: Sequence[str] | None, options: dict[str, Any]
) -> list[ComponentResult]:
    """Load a source as a mode says, within a flow run; return what became of each part, failed ones included.

    A source that is loaded whole raises its own error.
    """
    return _MODES[mode](work, resources, options)


def _run_whole(work: ComponentLoad, resources: Sequence[str] | None, options: dict[str, Any]) -> list[ComponentResult]:
    return [_load(work, resources, options)]


def _run_in_sequence(
    work: ComponentLoad, resources: Sequence[str] | None, options: dict[str, Any]
) -> list[ComponentResult]:
    results: list[ComponentResult] = []
    blocked_by: str | None = None
    for part in components(work.build_source(resources)):
        if blocked_by is not None:
            # They share one pipeline: what is pending has to be loaded before it extracts anything else.
            error = f"not started, because what {blocked_by!r} has extracted could not be loaded"
            results.append(ComponentResult(part.name, error=error))
            continue
        load = partial(_load_part(part), replace(work, component=part.name), part.resources, options)
        results.append(_result_of(part, load))
        if results[-1].error is not None and work.build_pipeline(work.build_base()).has_pending_data:
            blocked_by = part.name
    return results


def _run_in_parallel(
    work: ComponentLoad, resources: Sequence[str] | None, options: dict[str, Any]
) -> list[ComponentResult]:
    parts = components(work.build_source(resources))
    base = work.build_base()
    retry_policy = work.settings(base).retry_policy
    with shared_dataset(work.build_pipeline(base), options.get("dataset_name"), retry_policy):
        futures = [
            _load_part(part).submit(replace(work, component=part.name, derived=True), part.resources, options)  # pyright: ignore[reportUnknownMemberType]
            for part in parts
        ]
        return [_result_of(part, future.result) for part, future in zip(parts, futures, strict=True)]


_MODES: dict[Decompose, Callable[[ComponentLoad, Sequence[str] | None, dict[str, Any]], list[ComponentResult]]] = {
    "none": _run_whole,
    "sequential": _run_in_sequence,
    "parallel": _run_in_parallel,
}


@task(name="load", cache_policy=NO_CACHE, log_prints=True)
def _load(work: ComponentLoad, resources: Sequence[str] | None, options: dict[str, Any]) -> ComponentResult:
    return work.run(resources, options)


def _load_part(part: Component) -> Task[..., ComponentResult]:
    return cast("Task[..., ComponentResult]", _load.with_options(name=f"load {part.name}"))


def _result_of(part: Component, wait: Callable[[], ComponentResult]) -> ComponentResult:
    """Return the result of a component; a failure is a result too, so that the others go on."""
    try:
        return wait()
    except Exception as error:  # noqa: BLE001 - whatever failed, it is told with the others
        # Masked first: what is secret may not survive being put on one line.
        message = redact(text_of(error), known_secrets())
        return ComponentResult(part.name, error=" ".join(message.split()))
