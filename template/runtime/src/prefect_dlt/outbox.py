"""What waits to be sent to Prefect: of each artifact the latest draft, and events in their order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain, islice
from typing import Literal
from uuid import UUID, uuid4

MOST_DRAFTS = 2_000
"""Drafts that wait at most; beyond that, the oldest is dropped, progress that another draft would follow first."""

MOST_EVENTS = 5_000
"""Events that wait at most; beyond that, the oldest is dropped."""

MOST_BYTES = 32_000_000
"""Bytes, about, that drafts hold at most while they wait, and events as many again."""

MOST_ARTIFACTS = 10_000
"""Artifacts whose ids are remembered at most, of runs that never said that they ended."""

MOST_LOST = 1_000
"""Names of what was dropped or refused that are kept at most, until their runs ask."""

BATCH = 200
"""Events in one call at most."""

BATCH_BYTES = 1_000_000
"""Bytes of events in one call, at most; an event that is larger goes alone."""


@dataclass(frozen=True)
class Run:
    """A run of a pipeline, in a flow run or task run of Prefect's, which may have several of them, also at once.

    Attributes:
        flow_run_id: The flow run; None in a task that runs outside of one.
        task_run_id: The task run; None when the flow itself runs the pipeline.
        id: Tells it from others in the same flow run and task run; by default, it is a new run.
    """

    flow_run_id: UUID | None
    task_run_id: UUID | None
    id: UUID = field(default_factory=uuid4)


@dataclass(frozen=True)
class Place:
    """Which artifact: its key, and the run that it belongs to. The same key in another run is its next version."""

    key: str
    run: Run


class Rank(IntEnum):
    """What is sent first of a run that waits: what tells most about it."""

    SUMMARY = 0
    FAILURE = 1
    REPORT = 2
    PROGRESS = 3


@dataclass(frozen=True)
class Draft:
    """What an artifact shows: its type, one line of description, and its data; and how soon it has to.

    The data of a table is a JSON text: a list of objects, one for each row, with the columns as keys.
    """

    type: Literal["markdown", "progress", "table"]
    description: str
    data: str | float
    rank: Rank = Rank.REPORT

    @property
    def size(self) -> int:
        """Bytes that the draft takes, about."""
        return 500 + len(self.description) + (len(self.data) if isinstance(self.data, str) else 0)


@dataclass(eq=False)
class Artifact:
    """One version of an artifact, and what is known of it at the API.

    Attributes:
        place: Its key and its run.
        mark: Tells it from other versions with the same key and run.
        id: Its id, once the API has told it.
        is_doubtful: Whether it may exist already: it was sent, and no answer came.
    """

    place: Place
    mark: str = field(default_factory=lambda: uuid4().hex)
    id: UUID | None = None
    is_doubtful: bool = False


@dataclass(eq=False)
class Parcel:
    """One thing to be sent.

    Attributes:
        run: The run it belongs to; None when every run waits for it.
        since: Number of the oldest `put` that it stands for.
        is_told: Whether its run was told already that this had not been sent.
    """

    run: Run | None
    since: int
    is_told: bool = field(default=False, init=False)


@dataclass(eq=False)
class Letter(Parcel):
    """A draft, and the artifact that it is for.

    Attributes:
        artifact: Which artifact.
        draft: What it shows from now on.
        live: Whether another draft will follow soon.
        held_until: When it is due, in seconds of the clock that `take_letters` is told; at once by default.
    """

    artifact: Artifact
    draft: Draft
    live: bool
    held_until: float = 0.0


@dataclass(eq=False)
class EventText(Parcel):
    """An event, as JSON."""

    text: str


class Outbox:
    """Decides what is sent next, what is dropped when too much waits, and what a run is told was not sent.

    What is taken stays in the books until it is `sent`, `refused` or `returned`. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._count = 0
        self._artifacts: dict[Place, Artifact] = {}
        self._letters: dict[Artifact, Letter] = {}
        self._events: list[EventText] = []
        self._taken: set[Parcel] = set()
        self._lost: list[tuple[Run | None, str]] = []
        self._draft_bytes = 0
        self._event_bytes = 0
        self._batch = BATCH

    # -- what comes in -------------------------------------------------------------------------------------------------

    def put(self, place: Place, draft: Draft, live: bool, held_until: float = 0.0) -> None:
        """Take a draft, in place of the one that waits for the same artifact."""
        artifact = self._artifacts.get(place)
        if artifact is None:
            artifact = self._artifacts[place] = Artifact(place)
            if len(self._artifacts) > MOST_ARTIFACTS:
                del self._artifacts[next(iter(self._artifacts))]
        self._keep(Letter(place.run, self._next(), artifact, draft, live, held_until))
        while len(self._letters) > MOST_DRAFTS or self._draft_bytes > MOST_BYTES:
            letters = self._letters.values()
            oldest = next((each for each in letters if each.live), None) or next(iter(letters))
            self._discard(oldest)
            self._lose(oldest)

    def withdraw(self, place: Place) -> bool:
        """Take back an artifact of which nothing has been sent, nor is under way; tell whether there was one."""
        artifact = self._artifacts.get(place)
        letter = self._letters.get(artifact) if artifact is not None else None
        if artifact is None or letter is None or artifact.id is not None or artifact.is_doubtful:
            return False
        if any(isinstance(each, Letter) and each.artifact is artifact for each in self._taken):
            return False
        self._discard(letter)
        del self._artifacts[place]
        return True

    def emit(self, text: str, run: Run | None) -> None:
        """Take an event."""
        self._events.append(EventText(run, self._next(), text))
        self._event_bytes += len(text)
        while len(self._events) > MOST_EVENTS or self._event_bytes > MOST_BYTES:
            oldest = self._events.pop(0)
            self._event_bytes -= len(oldest.text)
            self._lose(oldest)

    # -- what goes out -------------------------------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Tell whether anything waits."""
        return bool(self._letters or self._events)

    def take_letters(self, live: bool, hurry: Collection[Run], now: float) -> list[Letter]:
        """Return the drafts that are due: all but those that others will follow, of which one goes at a time.

        Args:
            live: Whether one of those may go: the one that waits longest.
            hurry: Runs that wait for theirs, all of which go, held ones too, first and by rank.
            now: What is held until later than this stays, in seconds.
        """
        free = [each for each in self._letters.values() if each.run in hurry or each.held_until <= now]
        due = sorted((each for each in free if each.run in hurry), key=lambda letter: letter.draft.rank)
        due += [each for each in free if not each.live and each.run not in hurry]
        if live and (waiting := next((each for each in free if each.live), None)) is not None:
            due += [waiting] if waiting not in due else []
        for letter in due:
            self._discard(letter)
        self._taken.update(due)
        return due

    def take_events(self) -> list[EventText]:
        """Return the events that go with the next call."""
        batch: list[EventText] = []
        size = 0
        for event in islice(self._events, self._batch):
            size += len(event.text)
            if batch and size > BATCH_BYTES:
                break
            batch.append(event)
        del self._events[: len(batch)]
        self._event_bytes -= sum(len(event.text) for event in batch)
        self._taken.update(batch)
        return batch

    # -- what became of it ---------------------------------------------------------------------------------------------

    def sent(self, parcels: Collection[Parcel]) -> None:
        """Strike out what has been sent."""
        self._taken.difference_update(parcels)
        if self._lost:
            # Of what was dropped while too much waited, a newer draft has arrived.
            shown = {(each.run, _name(each)) for each in parcels if isinstance(each, Letter)}
            self._lost = [each for each in self._lost if each not in shown]
        if any(isinstance(each, EventText) for each in parcels):
            self._batch = min(BATCH, 2 * self._batch)

    def refused(self, letter: Letter) -> None:
        """Strike out a draft that the API will never take."""
        self._taken.discard(letter)
        self._lose(letter)

    def returned(self, parcels: Collection[Parcel]) -> None:
        """Take back what could not be sent; a draft that was put meanwhile is newer, and stays."""
        self._taken.difference_update(parcels)
        for letter in parcels:
            if isinstance(letter, Letter):
                self._keep(letter, is_newer=False)
        events = [each for each in parcels if isinstance(each, EventText)]
        self._events[:0] = events
        self._event_bytes += sum(len(event.text) for event in events)

    def split(self, batch: list[EventText], is_refusal: bool) -> None:
        """Take back events of which one at least is not taken, to be sent in smaller batches.

        One that is alone is dropped when it was refused, and else moves to the end, so that it holds up no other.
        """
        if len(batch) > 1:
            self.returned(batch)
            self._batch = max(1, len(batch) // 2)
            return
        self._taken.difference_update(batch)
        for event in batch:
            if is_refusal:
                self._lose(event)
            else:
                self._events.append(event)
                self._event_bytes += len(event.text)

    # -- what runs ask -------------------------------------------------------------------------------------------------

    def now(self) -> int:
        """Return the number of the latest thing that came in."""
        return self._count

    def is_pending(self, run: Run, until: int) -> bool:
        """Tell whether anything of a run that had come in by then has not been sent."""
        return next(self._pending(run, until), None) is not None

    def tell(self, run: Run, until: int) -> list[str]:
        """Return what a run is to know about: what has not been sent, and, once, what never will be."""
        names: list[str] = []
        for parcel in self._pending(run, until):
            parcel.is_told = True
            names.append(_name(parcel))
        mine = [(owner, name) for owner, name in self._lost if owner in (run, None)]
        self._lost = [each for each in self._lost if each not in mine]
        return _summed(names + [name for _, name in mine])

    def untold(self) -> list[str]:
        """Return what has not been sent, or never will be, and no run was told of."""
        waiting = [_name(parcel) for parcel in self._all() if not parcel.is_told]
        return _summed(waiting + [name for _, name in self._lost])

    def forget(self, run: Run) -> None:
        """Let what a run puts from now on be new versions of its artifacts; what waits belongs to the present ones."""
        for place in [place for place in self._artifacts if place.run == run]:
            del self._artifacts[place]

    # -- the books -----------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _keep(self, letter: Letter, *, is_newer: bool = True) -> None:
        """Let a draft wait, in place of an older one; what stands for both is as old, and due as soon, as either."""
        other = self._letters.get(letter.artifact)
        if other is None:
            self._letters[letter.artifact] = letter
            self._draft_bytes += letter.draft.size
            return
        if is_newer:
            self._draft_bytes += letter.draft.size - other.draft.size
            other.draft = letter.draft
            other.is_told = False
        other.live = other.live and letter.live
        other.held_until = min(other.held_until, letter.held_until)
        other.since = min(other.since, letter.since)

    def _discard(self, letter: Letter) -> None:
        del self._letters[letter.artifact]
        self._draft_bytes -= letter.draft.size

    def _lose(self, parcel: Parcel) -> None:
        if not parcel.is_told:
            self._lost.append((parcel.run, _name(parcel)))
        del self._lost[:-MOST_LOST]

    def _all(self) -> Iterator[Parcel]:
        return chain(self._letters.values(), self._events, self._taken)

    def _pending(self, run: Run, until: int) -> Iterator[Parcel]:
        return (each for each in self._all() if each.run in (run, None) and each.since <= until)


def _name(parcel: Parcel) -> str:
    return parcel.artifact.place.key if isinstance(parcel, Letter) else "event"


def _summed(names: list[str]) -> list[str]:
    """Return each key once, and how many events."""
    keys = sorted({name for name in names if name != "event"})
    events = names.count("event")
    return [*keys, *([f"{events} event{'s' * (events > 1)}"] if events else [])]
