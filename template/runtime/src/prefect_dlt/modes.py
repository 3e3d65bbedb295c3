"""Which of the modes a source can be taken apart in, and which one "auto" takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from prefect_dlt.decompose import Decompose, Mode
from prefect_dlt.errors import CollisionError, ConfigurationError, NotASourceError, SharedStagingError
from prefect_dlt.markdown import shortened

LoadedAs = Literal["whole", "parts"]

LONGEST_LIST = 120
"""Characters of a list of resources in a line of the log."""

MOST_COLLISIONS = 3
"""Collisions that a reason names."""


@dataclass(frozen=True)
class Circumstances:
    """What of the source, the pipeline, the destination and earlier runs decides how a source can be taken apart.

    All of it is about the whole source: which of its resources are chosen for a run must not change where their state
    is kept.

    Attributes:
        source_name: What the source is called; for data that is no dlt source, its type.
        parts: How many parts the source has; 0 for data that is no dlt source.
        dev_mode: Whether the pipeline loads into a new dataset each time it is built.
        shared_tables: Tables that several parts write to, with those parts.
        replaced: Which of these tables at least one of the parts replaces.
        shared_names: Names of derived pipelines that several parts would have, with those parts.
        staged_together: Parts that load through a staging area which cannot be separated.
        staging: Why it cannot.
        one_at_a_time: Why the destination should have one load at a time; empty when it takes several.
        loaded_as: How earlier runs have loaded the source, and so, where its state is; None when none has, as far as is
            known.
        remembered: Resources that the pipelines which have loaded it so remember something of, on this machine.
    """

    source_name: str
    parts: int
    dev_mode: bool = False
    shared_tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    replaced: frozenset[str] = frozenset()
    shared_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    staged_together: tuple[str, ...] = ()
    staging: str = ""
    one_at_a_time: str = ""
    loaded_as: LoadedAs | None = None
    remembered: tuple[str, ...] = ()


def choose_mode(  # noqa: PLR0911 - one for each reason
    decompose: Decompose, circumstances: Circumstances
) -> tuple[Mode, str]:
    """Return the mode to load in, and why; a mode that was asked for is taken or refused, and "auto" chooses.

    What earlier runs have loaded stays with the pipelines that remember it: with new ones, incremental resources would
    load everything once more. Else the widest mode is taken that loses nothing.

    Raises:
        NotASourceError: If what is to be taken apart is no dlt source.
        ConfigurationError: If the pipeline is in dev mode.
        CollisionError: If parts would write to one table, or be loaded by pipelines of one name.
        SharedStagingError: If parts that load at the same time would share a staging area.
    """
    if decompose != "auto":
        check_mode(decompose, circumstances)
        return decompose, f"decompose={decompose!r}"
    if not circumstances.parts:
        return "none", f"{circumstances.source_name} is no dlt source"
    if circumstances.dev_mode:
        return "none", "in dev_mode, each task would have a dataset of its own"
    if circumstances.loaded_as == "parts":
        check_mode("parallel", circumstances)
        return "parallel", "earlier runs have loaded each part with a pipeline of its own, which remembers its state"
    if circumstances.parts == 1:
        return "none", f"source {circumstances.source_name!r} has one part only"
    why_not = _why_not_parallel(circumstances)
    if not why_not:
        parts = f"the {circumstances.parts} parts of source {circumstances.source_name!r}"
        return "parallel", f"{parts} share nothing, and the destination takes several loads at a time"
    if (refusal := _refusal("sequential", circumstances)) is None:
        return "sequential", why_not
    return "none", _in_short(refusal)


def left_behind(mode: Mode, on: Circumstances) -> str:
    """Return what a mode leaves behind that earlier runs remember, and what to do; empty where that is nothing.

    "none" is not looked at: the source is not built before it runs.
    """
    if not on.remembered or (mode, on.loaded_as) not in {("parallel", "whole"), ("sequential", "parts")}:
        return ""
    kept, many = shortened(", ".join(on.remembered), LONGEST_LIST), len(on.remembered) > 1
    by, other = ("one pipeline", "sequential") if mode == "parallel" else ("a pipeline for each part", "parallel")
    return (
        f"Earlier runs have loaded source {on.source_name!r} with {by}, which remembers the state of {kept}: with "
        f"decompose={mode!r} {'they are' if many else 'it is'} read from the beginning, and what is appended is there "
        f"twice. To go on, load with decompose={other!r}; to begin anew, with full_refresh=True"
    )


def check_mode(mode: Mode, circumstances: Circumstances) -> None:
    """Raise the error that says why a source cannot be loaded in a mode, as `choose_mode` does."""
    if (refusal := _refusal(mode, circumstances)) is not None:
        raise refusal


def _refusal(mode: Mode, on: Circumstances) -> Exception | None:  # noqa: PLR0911 - one for each
    if mode == "none":
        return None
    if not on.parts:
        return NotASourceError(on.source_name)
    if on.dev_mode:
        expected = (
            f"with decompose={mode!r} each task would load into a dataset of its own; leave it out of the pipeline"
        )
        return ConfigurationError("dev_mode", True, expected)
    if mode == "sequential":
        # They load one after another, with one schema: only a table that is replaced would lose what came before.
        lost = {table: parts for table, parts in on.shared_tables.items() if table in on.replaced}
        return CollisionError(on.source_name, mode, "table", lost) if lost else None
    if on.shared_names:
        return CollisionError(on.source_name, mode, "pipeline", dict(on.shared_names))
    if on.shared_tables:
        return CollisionError(on.source_name, mode, "table", dict(on.shared_tables))
    if on.staged_together:
        return SharedStagingError(on.source_name, on.staged_together, on.staging)
    return None


def _why_not_parallel(on: Circumstances) -> str:
    if on.loaded_as == "whole":
        return "earlier runs have loaded it with one pipeline, which remembers the state of all parts"
    if (refusal := _refusal("parallel", on)) is not None:
        return _in_short(refusal)
    return on.one_at_a_time


def _in_short(refusal: Exception) -> str:
    if isinstance(refusal, CollisionError):
        return "; ".join(refusal.lines()[:MOST_COLLISIONS])
    return f"its parts would share a staging area: {getattr(refusal, 'reason', refusal)}"
