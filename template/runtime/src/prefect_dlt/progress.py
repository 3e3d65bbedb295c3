"""How far a running stage is: counters in, a percentage and one plain line out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

Stage = Literal["extract", "normalize", "load"]
STAGES: tuple[Stage, ...] = get_args(Stage)

SHORTEST_RATE = 0.1
"""Seconds before a rate is told: over a shorter time it says nothing."""

LOWEST_WHOLE_RATE = 10
"""Rate from which on the digits behind the point say nothing."""

# What dlt counts in each stage: the counter that has a total, and the word for it.
_UNITS: dict[Stage, tuple[str, str]] = {
    "extract": ("Resources", "resources"),
    "normalize": ("Files", "files"),
    "load": ("Jobs", "jobs"),
}


@dataclass
class StageProgress:
    """Counters of one stage of one run.

    Attributes:
        stage: "extract", "normalize" or "load".
        started: When the stage began, in seconds of the clock that `line` is asked with.
        done: Resources, files or jobs that are finished.
        total: How many there will be, as far as known; grows while dlt finds more.
        rows: Rows written so far, dlt's own tables left out; stays 0 in load, where dlt counts jobs only.
        failed: Jobs that failed.
    """

    stage: Stage
    started: float
    done: int = 0
    total: int = 0
    rows: int = 0
    failed: int = 0
    _percent: float = field(default=0.0, repr=False)
    _before_part: tuple[int, int] = field(default=(0, 0), repr=False)
    _is_own_state: bool = field(default=False, repr=False)

    def open(self) -> None:
        """Note that dlt opened a part of the stage: a source or a load package."""
        self._before_part = (self.done, self.total)
        self._is_own_state = False

    def update(
        self,
        name: str,
        inc: int = 1,
        total: int | None = None,
        inc_total: int | None = None,
        label: str | None = None,
    ) -> None:
        """Take one update as dlt sends it to a collector."""
        if self._is_own_state:
            return
        counter, _ = _UNITS[self.stage]
        if name != counter:
            if not name.startswith("_dlt"):
                self.rows += inc
            elif self.stage == "extract":
                # dlt extracts its own state like a source, and by the name of one; only its table tells them apart.
                self._is_own_state = True
                self.done, self.total = self._before_part
            return
        if label == "Failed":
            self.failed += inc
        elif label is None:
            self.done += inc
            self.total += (total or 0) + (inc_total or 0)

    def finish(self) -> None:
        """Note that the stage has ended well; it may have had nothing to do."""
        self._percent = 100.0

    @property
    def percent(self) -> float:
        """Share of the work that is done, 0 to 100; never lower than it was told before."""
        if self.total > 0:
            self._percent = max(self._percent, min(100.0, 100.0 * self.done / self.total))
        return self._percent

    def line(self, now: float) -> str:
        """Say in one plain line how far the stage is.

        For example "extract · 3 of 5 resources · 212,400 rows · 41,000 rows/s".
        """
        _, unit = _UNITS[self.stage]
        total = max(self.total, self.done)
        parts = [self.stage, f"{self.done:,} of {total:,} {unit.removesuffix('s') if total == 1 else unit}"]
        if self.rows:
            parts.append(f"{self.rows:,} {'row' if self.rows == 1 else 'rows'}")
            if (seconds := now - self.started) >= SHORTEST_RATE:
                parts.append(f"{rate_text(self.rows / seconds)} rows/s")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return " · ".join(parts)


def rate_text(rate: float) -> str:
    """Return a rate as text: whole from 10 on, with one digit behind the point below, so that no slow one reads 0."""
    return f"{rate:,.0f}" if rate >= LOWEST_WHOLE_RATE else f"{rate:,.1f}"
