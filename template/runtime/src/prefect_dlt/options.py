"""The options that tasks and flows take for others: for the runner, and for `pipeline.run`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dlt.common.destination import Destination
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.configuration import RunnerSettings

RUNNER_OPTIONS = tuple(field.name for field in fields(RunnerSettings))
"""What `prefect_dlt.runner` takes besides the pipeline."""

RUN_OPTIONS = tuple(inspect.signature(Pipeline.run).parameters)[2:]
"""What `pipeline.run` takes besides the data, in the dlt that is installed."""

DESTINATION_OPTIONS = ("destination", "staging", "credentials")
"""Those of them that say what a run loads to."""

PLACE_OPTIONS = (*DESTINATION_OPTIONS, "dataset_name")
"""Those that say where a run loads to, all of it."""

HELD_BACK = ("destination", "staging", "credentials", "schema")
"""Those of them that Prefect is not told: it would keep what it finds in them, passwords too."""


def runner_options_in(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runner's options that are among the arguments of a function."""
    return {name: arguments[name] for name in RUNNER_OPTIONS}


def run_options_in(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `pipeline.run` that are given among the arguments of a function."""
    return {name: arguments[name] for name in RUN_OPTIONS if arguments.get(name) is not None}


def with_destinations_built(run_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with destinations rather than their names or types.

    Of a name, `pipeline.run` builds a destination anew at each step, and restores the state before the new one has been
    given the credentials of the run: from another database than it then loads to.
    """
    built = {
        name: Destination.from_reference(run_options[name])
        for name in ("destination", "staging")
        if run_options.get(name) is not None
    }
    return {**run_options, **built}


def tell_place(pipeline: Pipeline, run_options: Mapping[str, Any]) -> None:
    """Tell a pipeline before a run where it loads to, as `pipeline.run` with these options would."""
    destination, staging, credentials = map(run_options.get, DESTINATION_OPTIONS)
    pipeline._set_destinations(  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        destination=destination, staging=staging, destination_credentials=credentials
    )
    dataset_name = run_options.get("dataset_name")
    pipeline._set_dataset_name(dataset_name)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
