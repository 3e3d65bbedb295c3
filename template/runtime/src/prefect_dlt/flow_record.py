"""What is known of one run of a flow that loads a source, as data that fills while it goes on; no Prefect."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from prefect_dlt.results import ComponentResult


@dataclass
class FlowRecord:
    """What is known of a flow run: its components, and what became of each.

    Attributes:
        flow_name: Name of the flow.
        pipeline_name: The pipeline that the components are loaded with, or derive theirs from; empty until it is known.
        mode: How the source is taken apart: "none", "sequential" or "parallel"; empty until it is known.
        reason: Why so, where the mode was chosen; empty where it was given.
        most_at_once: How many components the task runner runs at a time at most; None where it does not say.
        seed_seconds: What preparing the dataset took, in seconds; 0 where nothing had to be prepared.
        started_at: When it began.
        finished_at: When it ended; None while it runs.
        error: What ended it, if something did.
        results: What became of each component that has ended, by name.
    """

    flow_name: str
    pipeline_name: str = ""
    mode: str = ""
    reason: str = ""
    most_at_once: int | None = None
    seed_seconds: float = 0.0
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    finished_at: datetime | None = None
    error: BaseException | None = None
    results: dict[str, ComponentResult] = field(default_factory=dict[str, ComponentResult])
    _expected: dict[str, Callable[[], ComponentResult | None] | None] = field(
        default_factory=dict[str, Callable[[], ComponentResult | None] | None], repr=False
    )

    # -- filling it ---------------------------------------------------------------------------------------------------

    def expect(self, names: Iterable[str]) -> None:
        """Note the names of components that the flow is going to load."""
        self._expected.update(dict.fromkeys(names))

    def watch(self, name: str, result: Callable[[], ComponentResult | None]) -> None:
        """Note how to ask, when the flow ends early, for the result of a component; None where it has not ended."""
        self._expected[name] = result

    def add(self, result: ComponentResult) -> ComponentResult:
        """Take the result of a component, and give it back."""
        self.results[result.name] = result
        # Of a source that is loaded whole, the pipeline is made where the task runs.
        if self.mode == "none":
            self.pipeline_name = self.pipeline_name or result.pipeline_name or ""
        return result

    def finish(self, error: BaseException | None) -> None:
        """End the record."""
        self.error = error
        self.finished_at = datetime.now(timezone.utc)
        for name, ask in self._expected.items():
            if name not in self.results and ask is not None and (result := ask()) is not None:
                self.results[name] = result

    # -- reading it ---------------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """How long the flow took, or has taken so far, in seconds."""
        return ((self.finished_at or datetime.now(timezone.utc)) - self.started_at).total_seconds()

    @property
    def components(self) -> list[ComponentResult]:
        """What became of each component, those that have no result because the flow ended before them included."""
        names = dict.fromkeys([*self._expected, *self.results])
        return [self.results.get(name) or ComponentResult(name, error="", failed_as="not started") for name in names]

    @property
    def width(self) -> int:
        """How many components could run at a time: what the task runner allows, as far as there are so many.

        Where it does not say, it is the most that did.
        """
        if self.mode != "parallel":
            return 1
        count = max(1, len(self.components))
        return min(count, self.most_at_once if self.most_at_once is not None else max(1, self.most_at_work))

    @property
    def most_at_work(self) -> int:
        """How many components were at work at the same time, at most."""
        changes = sorted(
            change
            for each in self.components
            if each.started_at is not None and each.finished_at is not None
            # Where one ends as another begins, they are not at work together.
            for change in ((each.started_at, 1), (each.finished_at, -1))
        )
        most = at_work = 0
        for _, change in changes:
            at_work += change
            most = max(most, at_work)
        return most

    @property
    def busy_seconds(self) -> float:
        """How long components were at work, all together, in seconds."""
        return sum(each.seconds for each in self.components)

    @property
    def share_used(self) -> float | None:
        """Which share of the width was used, from 0 to 1: busy seconds over the flow's seconds times the width.

        None where nothing was at work.
        """
        whole = self.seconds * self.width
        return min(1.0, self.busy_seconds / whole) if whole and self.busy_seconds else None


def interrupted(name: str, started_at: datetime | None = None) -> ComponentResult:
    """Return the result of a component that was stopped."""
    result = ComponentResult(name, error="stopped, because the flow was", failed_as="interrupted")
    if started_at is None:
        return result
    now = datetime.now(timezone.utc)
    return replace(result, started_at=started_at, finished_at=now, seconds=(now - started_at).total_seconds())
