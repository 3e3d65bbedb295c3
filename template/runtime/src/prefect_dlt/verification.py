"""What a verification of loaded packages found: data and text; pure, without any question to a destination."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

MOST_NAMED = 5
"""Tables that a line names of those with the same reason."""

EARLIER_PACKAGE = "a later load package of the same run wrote to it as well"
"""Why what an earlier one left there cannot be told apart any more."""


@dataclass(frozen=True)
class Expected:
    """What one load package should have left in the destination.

    Attributes:
        load_id: The package.
        rows: Rows that were normalised, by table; why they are not known where they are not.
        dispositions: Each of those tables to its root table and the write disposition of that.
        emptied: Tables that were dropped or emptied before the package was loaded.
    """

    load_id: str
    rows: Mapping[str, int | str]
    dispositions: Mapping[str, tuple[str, str]]
    emptied: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Held:
    """What the destination was asked about one table of one load package, and what it answered.

    Attributes:
        load_id: The package.
        table: The table.
        what: What was counted: "rows of the load", for example.
        expected: How many there should be.
        found: How many there are.
    """

    load_id: str
    table: str
    what: str
    expected: int
    found: int

    @property
    def is_right(self) -> bool:
        """Whether the destination holds what was normalised."""
        return self.expected == self.found


@dataclass(frozen=True)
class NotVerified:
    """A table of a load package that could not be verified.

    Attributes:
        load_id: The package.
        table: The table.
        reason: Why it could not.
        is_trouble: Whether something went wrong, so that another time it could be verified.
    """

    load_id: str
    table: str
    reason: str
    is_trouble: bool = False


@dataclass(frozen=True)
class Verification:
    """What was verified after a run.

    Attributes:
        held: What the destination answered, in the order in which it was asked.
        not_verified: What could not be verified, dlt's own tables too.
    """

    held: tuple[Held, ...] = ()
    not_verified: tuple[NotVerified, ...] = field(default=())

    def __add__(self, other: Verification) -> Verification:
        return Verification((*self.held, *other.held), (*self.not_verified, *other.not_verified))

    @property
    def differences(self) -> tuple[Held, ...]:
        """Where the destination does not hold what was normalised."""
        return tuple(each for each in self.held if not each.is_right)

    @property
    def tables(self) -> list[str]:
        """The tables that were verified and are right, dlt's own left out; by name."""
        wrong = {each.table for each in self.differences}
        return sorted({each.table for each in self.held if is_of_the_user(each.table)} - wrong)

    @property
    def load_ids(self) -> tuple[str, ...]:
        """The load packages that were verified, as far as they could be."""
        return tuple(dict.fromkeys(each.load_id for each in (*self.held, *self.not_verified)))

    @property
    def is_trouble(self) -> bool:
        """Whether something went wrong while the destination was asked."""
        return any(each.is_trouble for each in self.not_verified)

    def outcome(self) -> str:
        """Say how many tables were verified: "12 tables verified; 1 different: items; 1 not verified"."""
        rest = {each.table for each in self.not_verified}
        return "; ".join([*self._asked(), *([f"{len(rest):,} not verified"] if rest else [])])

    def line(self) -> str:
        """Say the same with the reasons: "12 tables verified; 1 not verified: events, because …"."""
        rest = [
            f"{len(tables):,} not verified: {named(tables)}, because {reason}"
            for reason, tables in self.reasons().items()
        ]
        return "; ".join([*self._asked(), *rest])

    def _asked(self) -> list[str]:
        wrong = dict.fromkeys(each.table for each in self.differences)
        return [
            f"{_tables(len(self.tables))} verified",
            *([f"{len(wrong):,} different: {named(wrong)}"] if wrong else []),
        ]

    def reasons(self) -> dict[str, list[str]]:
        """Return each reason for which tables were not verified, with the tables."""
        by_reason: dict[str, dict[str, None]] = {}
        for each in self.not_verified:
            by_reason.setdefault(each.reason, {})[each.table] = None
        return {reason: list(tables) for reason, tables in by_reason.items()}


def written_again(packages: Sequence[Expected]) -> set[tuple[str, str]]:
    """Return load id and table of what a later package of the same run may have changed.

    The destination is asked when all of them are loaded. Rows that were appended are still told apart by then, by load
    id, if the later packages only appended to the table as well.

    Args:
        packages: All that were loaded since the destination was asked the last time, in the order of loading.
    """
    again: set[tuple[str, str]] = set()
    for place, package in enumerate(packages):
        for table, (root, disposition) in package.dispositions.items():
            later = {how for each in packages[place + 1 :] for of, how in each.dispositions.values() if of == root}
            later |= {"replace" for each in packages[place + 1 :] if root in each.emptied}
            if later and later | {disposition} != {"append"}:
                again.add((package.load_id, table))
    return again


def is_of_the_user(table: str) -> bool:
    """Tell whether a table is none of dlt's own."""
    return not table.lower().startswith("_dlt")


def named(tables: Iterable[str]) -> str:
    """Return names of tables, the first few of many."""
    names = list(tables)
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _tables(count: int) -> str:
    return f"{count:,} table" if count == 1 else f"{count:,} tables"
