"""The errors that prefect-dlt raises itself; errors of dlt and Prefect pass through as they are."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

MOST_LISTED = 20
"""Files or the like that a message lists."""


class PrefectDltError(Exception):
    """Base of all errors of this package.

    Every error rebuilds itself from its own arguments, so that it survives the way from a worker process to the flow.
    """


class _Shown(str):
    """What stands for a value that stayed behind in another process: text that looks as the value did."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class ConfigurationError(PrefectDltError, ValueError):
    """An argument has a value that cannot work."""

    def __init__(self, argument: str, value: Any, expected: str) -> None:
        super().__init__(argument, value, expected)
        self.argument = argument
        self.value = value
        self.expected = expected

    def __reduce__(self) -> tuple[Any, ...]:
        # Anything can be given by mistake, a connection or a lambda too, and not everything can be sent on.
        return type(self), (self.argument, _Shown(repr(self.value)), self.expected)

    def __str__(self) -> str:
        return f"{self.argument} cannot be {self.value!r}: {self.expected}."


class UnknownResourcesError(PrefectDltError, ValueError):
    """A run was asked for resources that its source does not have."""

    def __init__(self, source_name: str, unknown: tuple[str, ...], known: tuple[str, ...]) -> None:
        super().__init__(source_name, unknown, known)
        self.source_name = source_name
        self.unknown = unknown
        self.known = known

    def __str__(self) -> str:
        known = f"Choose from: {_names(self.known)}." if self.known else "It has no resources at all."
        return f"Source {self.source_name!r} has no resource {_names(self.unknown)}. {known}"


class NotASourceError(PrefectDltError, TypeError):
    """Something that is no dlt source was to be taken apart."""

    def __init__(self, type_name: str) -> None:
        super().__init__(type_name)
        self.type_name = type_name

    def __str__(self) -> str:
        return (
            f"Only a dlt source can be taken apart, or loaded by resource names, and this is a {self.type_name}. "
            "Wrap the data in a function decorated with @dlt.source, or choose decompose='none' and no resources."
        )


class PendingDataError(PrefectDltError, RuntimeError):
    """A clean working directory was asked for while data of an earlier run waits in it."""

    def __init__(self, pipeline_name: str, working_dir: str, load_ids: tuple[str, ...]) -> None:
        super().__init__(pipeline_name, working_dir, load_ids)
        self.pipeline_name = pipeline_name
        self.working_dir = working_dir
        self.load_ids = load_ids

    def __str__(self) -> str:
        folder = shlex.quote(str(Path(self.working_dir).parent))
        return (
            f"Pipeline {self.pipeline_name!r} has data that was extracted but not loaded yet, in {self.working_dir} "
            f"(load packages {_names(self.load_ids)}). A clean folder would lose it. Run once with "
            "run_from_clean_folder=False to load it, or drop it on purpose with "
            f"`dlt pipeline --pipelines-dir {folder} {self.pipeline_name} abort-packages`."
        )


class FailedJobsError(PrefectDltError, RuntimeError):
    """A load ended, and some of its files could not be loaded: dlt was told not to raise an error for that."""

    def __init__(self, pipeline_name: str, jobs: tuple[tuple[str, str, str, str], ...]) -> None:
        """Each job is its load id, the table, the path of the file, and what it failed with."""
        super().__init__(pipeline_name, jobs)
        self.pipeline_name = pipeline_name
        self.jobs = jobs

    def __str__(self) -> str:
        count = f"{len(self.jobs)} file" if len(self.jobs) == 1 else f"{len(self.jobs)} files"
        lines = [f"Pipeline {self.pipeline_name!r} ended without {count} that the destination refused:"]
        for load_id, table, path, message in self.jobs[:MOST_LISTED]:
            lines.append(f"  table {table!r} of load package {load_id}: {path}: {message}")
        if (more := len(self.jobs) - MOST_LISTED) > 0:
            lines.append(f"  and {more:,} more")
        lines.append(
            "The package counts as loaded, without these files: no later run loads them. They are kept where they are. "
            "With load.raise_on_failed_jobs left at true, dlt keeps such a package pending instead."
        )
        return "\n".join(lines)


class VerificationError(PrefectDltError, RuntimeError):
    """The destination does not hold what was normalised and loaded."""

    def __init__(self, pipeline_name: str, differences: tuple[tuple[str, str, str, int, int], ...]) -> None:
        """Each difference is a load id, a table, what was counted there, how many were expected, and how many found."""
        super().__init__(pipeline_name, differences)
        self.pipeline_name = pipeline_name
        self.differences = differences

    @property
    def load_ids(self) -> tuple[str, ...]:
        """The load packages that differ."""
        return tuple(dict.fromkeys(load_id for load_id, *_ in self.differences))

    def __str__(self) -> str:
        lines = [f"Pipeline {self.pipeline_name!r} has loaded, and the destination does not hold what was normalised:"]
        for load_id, table, what, expected, found in self.differences[:MOST_LISTED]:
            many = f"{abs(found - expected):,} {'missing' if found < expected else 'too many'}"
            lines.append(
                f"  table {table!r} of load package {load_id}: expected {expected:,} {what}, found {found:,}: {many}"
            )
        if (more := len(self.differences) - MOST_LISTED) > 0:
            lines.append(f"  and {more:,} more")
        lines.append(
            "The load counts as done: no later run loads it again. First look whether something else has written to "
            "these tables meanwhile. A table that is replaced or merged is mended by loading the same data once more; "
            "from one that is appended to, delete the rows of the load first (those with its _dlt_load_id, and what is "
            "nested in them). With verify='warn' a difference is a warning and no error."
        )
        return "\n".join(lines)


class ComponentsFailedError(PrefectDltError, RuntimeError):
    """Parts of a source that was taken apart failed; the other parts were loaded."""

    def __init__(self, flow_name: str, failures: dict[str, str], loaded: tuple[str, ...]) -> None:
        super().__init__(flow_name, failures, loaded)
        self.flow_name = flow_name
        self.failures = failures
        self.loaded = loaded

    def __str__(self) -> str:
        total = len(self.failures) + len(self.loaded)
        lines = [f"{len(self.failures)} of {total} parts of {self.flow_name!r} failed:"]
        lines += [f"  {name}: {message}" for name, message in self.failures.items()]
        others = "The other parts are loaded. " if self.loaded else ""
        lines.append(f"{others}Run the flow again: what is pending is finished first.")
        return "\n".join(lines)


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names)
