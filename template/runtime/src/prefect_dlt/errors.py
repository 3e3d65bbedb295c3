"""The errors that prefect-dlt raises itself; errors of dlt and Prefect pass through as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect_dlt.hints import command

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


class CollisionError(PrefectDltError, ValueError):
    """Parts of a source would get in one another's way, because something of theirs has the same name."""

    def __init__(self, source_name: str, mode: str, what: str, names: dict[str, tuple[str, ...]]) -> None:
        """What they share is a "table" or a "pipeline"; each name of one comes with the parts that share it."""
        super().__init__(source_name, mode, what, names)
        self.source_name = source_name
        self.mode = mode
        self.what = what
        self.names = names

    def lines(self) -> list[str]:
        """Return what collides, in one line each."""
        does = "write to" if self.what == "table" else "are loaded by"
        return [f"{_names(parts)} {does} {self.what} {name!r}" for name, parts in self.names.items()]

    def __str__(self) -> str:
        lines = [f"Source {self.source_name!r} cannot be loaded with decompose={self.mode!r}, because parts collide:"]
        lines += [f"  {line}" for line in self.lines()[:MOST_LISTED]]
        if (more := len(self.names) - MOST_LISTED) > 0:
            lines.append(f"  and {more:,} more")
        if self.what == "table":
            lines.append(
                "Each part loads by itself: it would replace, verify, refresh and change the table as if it were its "
                "own. Give them table names that are different for the destination too (it may ignore case and "
                "punctuation), yield them from one resource, or load the source with decompose='none'."
            )
        else:
            lines.append("Each would take the state of the other for its own. Rename one of the resources.")
        return "\n".join(lines)


class SharedStagingError(PrefectDltError, ValueError):
    """Parts that load at the same time would share a staging area, where rows get lost or doubled."""

    def __init__(self, source_name: str, parts: tuple[str, ...], reason: str) -> None:
        super().__init__(source_name, parts, reason)
        self.source_name = source_name
        self.parts = parts
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"Source {self.source_name!r} cannot be loaded with decompose='parallel', because its parts would share a "
            f"staging area: {self.reason}.\n"
            f"Merged and replaced rows pass through it, of {_names(self.parts[:MOST_LISTED])}, and at the same time "
            "some would get lost or be doubled. Let each part have a staging area of its own, or load with "
            "decompose='sequential'."
        )


class PendingDataError(PrefectDltError, RuntimeError):
    """A clean working directory was asked for while data of an earlier run waits in it."""

    def __init__(
        self, pipeline_name: str, working_dir: str, load_ids: tuple[str, ...], packages: tuple[str, ...] = ()
    ) -> None:
        super().__init__(pipeline_name, working_dir, load_ids, packages)
        self.pipeline_name = pipeline_name
        self.working_dir = working_dir
        self.load_ids = load_ids
        self.packages = packages

    def __str__(self) -> str:
        discard = command("discard", self.pipeline_name, Path(self.working_dir))
        waiting = "\n".join(f"  {package}" for package in self.packages) or f"  load packages {_names(self.load_ids)}"
        return (
            f"Pipeline {self.pipeline_name!r} has data that was extracted but not loaded yet, in {self.working_dir}, "
            f"and a clean folder would lose it:\n{waiting}\n"
            "To load it, run once with run_from_clean_folder=False. To put it aside, where it can come back from, "
            f"run with discard_pending=True, or `{discard}`. Both settings may stand in section [runner] of "
            ".dlt/config.toml."
        )


class UnknownStateError(PrefectDltError, RuntimeError):
    """A load package that is to be put aside does not say what the state was before it."""

    def __init__(self, pipeline_name: str, working_dir: str, load_id: str) -> None:
        super().__init__(pipeline_name, working_dir, load_id)
        self.pipeline_name = pipeline_name
        self.working_dir = working_dir
        self.load_id = load_id

    def __str__(self) -> str:
        return (
            f"Load package {self.load_id} of pipeline {self.pipeline_name!r}, in {self.working_dir}, was made by a dlt "
            "before 1.30, which did not keep the state from before it. Without that, incremental resources would not "
            "extract its rows again. Run with discard_pending=True and run_from_clean_folder=True: the state is then "
            "restored from the destination."
        )


class PipelineLockedError(PrefectDltError, RuntimeError):
    """Another run of the pipeline is at work in its working directory."""

    def __init__(
        self, pipeline_name: str, working_dir: str, holder: str, timeout: float, is_part: bool = False
    ) -> None:
        super().__init__(pipeline_name, working_dir, holder, timeout, is_part)
        self.pipeline_name = pipeline_name
        self.working_dir = working_dir
        self.holder = holder
        self.timeout = timeout
        self.is_part = is_part

    def __str__(self) -> str:
        if self.is_part:
            return (
                f"Pipeline {self.pipeline_name!r} is at work already in {self.working_dir}, and this run is a part of "
                f"that one, {self.holder}: it would wait for itself. Run it before or after, or use another pipeline."
            )
        waited = f"did not end within {self.timeout:g} s" if self.timeout else "has not ended"
        return (
            f"Pipeline {self.pipeline_name!r} is at work already, and only one run at a time may be in its working "
            f"directory, {self.working_dir}: {self.holder}, {waited}. Nothing was changed. Run again when it has "
            "ended; let this run wait for it, with lock_timeout, in seconds, as an argument of the runner or in "
            "section [runner] of .dlt/config.toml; or give one of the two another pipeline name."
        )


class ComponentRunsElsewhereError(PrefectDltError, RuntimeError):
    """Another flow run loads the same component, in another working directory or on another machine."""

    def __init__(self, pipeline_name: str, flow_run_name: str, timeout: float) -> None:
        super().__init__(pipeline_name, flow_run_name, timeout)
        self.pipeline_name = pipeline_name
        self.flow_run_name = flow_run_name
        self.timeout = timeout

    def __str__(self) -> str:
        waited = f"did not end within {self.timeout:g} s" if self.timeout else "has not ended"
        return (
            f"Pipeline {self.pipeline_name!r} is at work elsewhere in flow run {self.flow_run_name!r}, which {waited}; "
            "both would load the same rows: nothing was changed. Cancel that flow run, or run again when it has ended; "
            "or let this one wait for it, with lock_timeout, in seconds, as an argument of the flow or in section "
            "[runner] of .dlt/config.toml."
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
            'nested in them). With verify = "warn", as an argument of the runner or in section [runner] of '
            ".dlt/config.toml, a difference is a warning and no error."
        )
        return "\n".join(lines)


class CallableNeededError(PrefectDltError, TypeError):
    """Something that cannot leave this process was given where another process has to build it."""

    def __init__(self, argument: str, what: str, where: str, example: str) -> None:
        super().__init__(argument, what, where, example)
        self.argument = argument
        self.what = what
        self.where = where
        self.example = example

    def __str__(self) -> str:
        return (
            f"{self.argument} is {self.what}. {self.where} run in other processes, perhaps on other machines, and "
            f"build it there. Write a function, in a module that can be imported there too:\n\n{self.example}\n\n"
            "and give that function itself, without calling it; or functools.partial(function, …) where it takes "
            "arguments."
        )


class ComponentFailedError(PrefectDltError, RuntimeError):
    """A part of a source failed; what task runs of parts raise, in place of an error that may not survive the way.

    Attributes:
        component: The part.
        message: What it failed with, in one line without secrets.
        told: When, how often and by which pipeline it was tried: fields of a `ComponentResult`.
    """

    def __init__(self, component: str, message: str, told: dict[str, Any]) -> None:
        super().__init__(component, message, told)
        self.component = component
        self.message = message
        self.told = told

    def __repr__(self) -> str:
        # Prefect logs it so, and the rest is not for readers.
        return f"{type(self).__name__}({self.component!r}, {self.message!r})"

    def __str__(self) -> str:
        attempts = self.told.get("attempts", 0)
        return f"{self.component} failed{f' after {attempts} attempts' if attempts > 1 else ''}: {self.message}"


class ComponentsFailedError(PrefectDltError, RuntimeError):
    """Parts of a source that was taken apart are not loaded: they failed, were cancelled, or not started for it."""

    def __init__(
        self,
        flow_name: str,
        failures: dict[str, str],
        loaded: tuple[str, ...],
        not_loaded: dict[str, str] | None = None,
        results: tuple[Any, ...] = (),
    ) -> None:
        """Each failure comes with its message, and each part that was not loaded for it with the reason.

        The results are a `ComponentResult` for each part, loaded ones too.
        """
        # The results are left out of what Prefect writes of an error, and go along all the same.
        super().__init__(flow_name, failures, loaded, not_loaded)
        self.flow_name = flow_name
        self.failures = failures
        self.loaded = loaded
        self.not_loaded = not_loaded or {}
        self.results = results

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.flow_name, self.failures, self.loaded, self.not_loaded, self.results)

    def __str__(self) -> str:
        total = len(self.failures) + len(self.loaded) + len(self.not_loaded)
        lines: list[str] = []
        if self.failures:
            lines.append(f"{len(self.failures)} of {total} parts of {self.flow_name!r} failed:")
            lines += [f"  {name}: {message}" for name, message in self.failures.items()]
        if self.not_loaded:
            # Without a failure, somebody has cancelled them by themselves.
            alone = f"{len(self.not_loaded)} of {total} parts of {self.flow_name!r} were not loaded:"
            lines.append("For that, these were not loaded either:" if self.failures else alone)
            lines += [f"  {name}: {message}" for name, message in self.not_loaded.items()]
        others = "The other parts are loaded. " if self.loaded else ""
        lines.append(f"{others}Run the flow again: what is pending is finished first.")
        return "\n".join(lines)


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names)
