"""What a flow would run, in which order, and why: as data, and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefect_dlt.decompose import Component, Mode

BY_ROW = "by each row"
"""Stands for tables whose names the data decides."""


@dataclass(frozen=True)
class PlannedComponent:
    """One part of a source, or the whole of it, as a flow would load it.

    Attributes:
        name: The part, as in its `ComponentResult`.
        pipeline_name: The pipeline that would load it.
        resources: The resources that are loaded, in alphabetical order.
        tables: The tables that they write to, as far as source and earlier runs tell.
        state: What its pipeline remembers on this machine: "nothing", or when it extracted last, and of which resources
            it keeps state. A worker on another machine asks the destination.
        pending: What waits in its working directory on this machine, one line for each load package.
        seconds: How long it took when it was loaded last; None when that is not known.
    """

    name: str
    pipeline_name: str
    resources: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    state: str = "nothing"
    pending: tuple[str, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a flow would run; as text, a short table of it.

    Attributes:
        flow_name: The flow.
        mode: "none", "sequential" or "parallel".
        reason: Why this mode.
        pipeline_name: The pipeline as it was given.
        destination: Where it loads to: the type of the destination.
        dataset_name: The dataset there.
        components: The parts, in the order in which they are started.
        refresh: What is dropped before they are; None for nothing.
    """

    flow_name: str
    mode: Mode
    reason: str
    pipeline_name: str
    destination: str
    dataset_name: str | None
    components: tuple[PlannedComponent, ...]
    refresh: str | None = None

    def __str__(self) -> str:
        parts = "1 part" if len(self.components) == 1 else f"{len(self.components)} parts"
        where = f"dataset {self.dataset_name!r} of {self.destination}"
        lines = [f"{self.flow_name}: {self.mode}, {parts}, into {where}", f"because: {self.reason}"]
        if self.refresh:
            lines.append(f"first, once: refresh={self.refresh!r}")
        rows = [("", "part", "pipeline", "resources", "tables", "last took", "remembers", "pending")]
        for number, each in enumerate(self.components, start=1):
            seconds = "" if each.seconds is None else f"{each.seconds:,.1f} s"
            names = ", ".join(each.resources), ", ".join(each.tables)
            # What waits is told below, where there is room for it.
            pending = f"{len(each.pending)} packages" if len(each.pending) > 1 else "1 package" * len(each.pending)
            rows.append((str(number), each.name, each.pipeline_name, *names, seconds, each.state, pending or "nothing"))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += [
            "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines += [f"{each.pipeline_name}: {line}" for each in self.components for line in each.pending]
        return "\n".join(lines)


def largest_first(parts: Sequence[Component], seconds: Mapping[str, float]) -> list[Component]:
    """Return the parts in the order in which they are started: those that took longest before come first.

    Of a part that was never loaded nothing is known; its first load is as long as any, so it comes before the others.
    """
    return sorted(parts, key=lambda part: (part.name in seconds, -seconds.get(part.name, 0.0), part.name))
