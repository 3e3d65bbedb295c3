"""What is sent next, what is dropped when too much waits, and what a run is told."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from prefect_dlt import outbox as module
from prefect_dlt.outbox import Draft, Letter, Outbox, Place, Rank, Run

# Two pipelines in one flow run and task run.
RUN = Run(UUID(int=1), UUID(int=2))
OTHER = Run(UUID(int=1), UUID(int=2))


def place(key: str, run: Run = RUN) -> Place:
    return Place(key, run)


def draft(text: str = "x") -> Draft:
    return Draft("markdown", "One line", text)


def shown(letters: list[Letter]) -> dict[str, Any]:
    return {letter.artifact.place.key: letter.draft.data for letter in letters}


def test_reports_go_at_once_and_progress_one_at_a_time_in_turn() -> None:
    outbox, runs = Outbox(), [Run(None, uuid4()) for _ in range(8)]
    for component in range(8):
        outbox.put(place(f"part-{component}", runs[component]), draft(), live=True)
    for report in range(3):
        outbox.put(place(f"report-{report}"), draft(), live=False)

    first = outbox.take_letters(live=True, hurry=(), now=0.0)
    outbox.sent(first)
    assert set(shown(first)) == {"report-0", "report-1", "report-2", "part-0"}
    outbox.put(place("part-1", runs[1]), draft(), live=True)
    following = [key for _ in range(7) for key in shown(outbox.take_letters(live=True, hurry=(), now=0.0))]

    assert following == [f"part-{component}" for component in range(1, 8)]


def test_progress_waits_while_its_turn_has_not_come_and_goes_when_its_run_ends() -> None:
    outbox = Outbox()
    for run in (RUN, OTHER):
        outbox.put(place("load", run), draft(), live=True)

    assert outbox.take_letters(live=False, hurry=(), now=0.0) == []
    assert [letter.run for letter in outbox.take_letters(live=False, hurry=[OTHER], now=0.0)] == [OTHER]


def test_of_a_run_that_waits_the_summary_goes_first_and_progress_last_and_others_behind_it() -> None:
    outbox = Outbox()
    outbox.put(place("summary", OTHER), Draft("markdown", "Of another run", "x", Rank.SUMMARY), live=False)
    for rank in (Rank.PROGRESS, Rank.REPORT, Rank.FAILURE, Rank.SUMMARY):
        outbox.put(place(rank.name), Draft("markdown", "One line", "x", rank), live=rank is Rank.PROGRESS)

    letters = outbox.take_letters(live=False, hurry=[RUN], now=0.0)

    assert list(shown(letters)) == ["SUMMARY", "FAILURE", "REPORT", "PROGRESS", "summary"]


def test_progress_that_takes_the_place_of_a_first_state_is_as_urgent() -> None:
    outbox = Outbox()
    outbox.put(place("load"), draft("first"), live=False)
    outbox.put(place("load"), draft("second"), live=True)

    assert shown(outbox.take_letters(live=False, hurry=(), now=0.0)) == {"load": "second"}


def test_what_is_held_goes_when_it_is_due_or_its_run_waits() -> None:
    outbox = Outbox()
    outbox.put(place("report", OTHER), draft(), live=False, held_until=5.0)
    outbox.put(place("report"), draft(), live=False, held_until=5.0)
    outbox.put(place("load", OTHER), draft(), live=True, held_until=7.0)

    assert outbox.take_letters(live=True, hurry=(), now=4.9) == []
    assert [letter.run for letter in outbox.take_letters(live=True, hurry=[RUN], now=4.9)] == [RUN]
    assert shown(outbox.take_letters(live=True, hurry=(), now=5.0)) == {"report": "x"}
    assert shown(outbox.take_letters(live=True, hurry=(), now=7.0)) == {"load": "x"}


@pytest.mark.parametrize(("first", "second"), [(5.0, 9.0), (9.0, 5.0)])
def test_a_draft_in_place_of_another_is_held_no_longer_than_either(first: float, second: float) -> None:
    outbox = Outbox()
    outbox.put(place("report"), draft("first"), live=False, held_until=first)
    outbox.put(place("report"), draft("second"), live=False, held_until=second)

    assert shown(outbox.take_letters(live=True, hurry=(), now=5.0)) == {"report": "second"}


def test_what_has_not_been_sent_can_be_taken_back_and_nobody_is_told_of_it() -> None:
    outbox = Outbox()
    outbox.put(place("load"), draft(), live=False)

    assert outbox.withdraw(place("load"))
    assert not outbox.withdraw(place("load"))
    assert not outbox.has_work()
    assert outbox.tell(RUN, outbox.now()) == []
    outbox.put(place("load"), draft("again"), live=False)
    assert shown(outbox.take_letters(live=True, hurry=(), now=0.0)) == {"load": "again"}


def test_what_is_under_way_or_was_sent_stays() -> None:
    outbox = Outbox()
    outbox.put(place("load"), draft(), live=False)
    (letter,) = outbox.take_letters(live=True, hurry=(), now=0.0)

    outbox.put(place("load"), draft("newer"), live=False)
    assert not outbox.withdraw(place("load"))
    letter.artifact.id = uuid4()
    outbox.sent([letter])
    assert not outbox.withdraw(place("load"))
    assert shown(outbox.take_letters(live=True, hurry=(), now=0.0)) == {"load": "newer"}


def test_a_draft_that_comes_back_never_takes_the_place_of_a_newer_one() -> None:
    outbox = Outbox()
    outbox.put(place("load"), draft("old"), live=False)
    taken = outbox.take_letters(live=True, hurry=(), now=0.0)
    outbox.put(place("load"), draft("new"), live=True)

    outbox.returned(taken)

    assert shown(outbox.take_letters(live=False, hurry=(), now=0.0)) == {"load": "new"}
    assert outbox.take_letters(live=True, hurry=(), now=0.0) == []


def test_what_a_run_puts_after_its_end_is_another_version_and_what_waits_stays_with_the_first() -> None:
    outbox = Outbox()
    for run in (RUN, OTHER):
        outbox.put(place("load", run), draft("first"), live=False)
    outbox.forget(RUN)
    for run in (RUN, OTHER):
        outbox.put(place("load", run), draft("second"), live=False)

    letters = outbox.take_letters(live=True, hurry=(), now=0.0)

    assert [(letter.run, letter.draft.data) for letter in letters] == [
        (RUN, "first"),
        (OTHER, "second"),
        (RUN, "second"),
    ]
    assert len({letter.artifact.mark for letter in letters}) == 3


def test_a_run_is_told_of_what_has_not_been_sent_and_nobody_is_told_twice() -> None:
    outbox = Outbox()
    outbox.put(place("summary"), draft(), live=False)
    outbox.emit("{}", RUN)
    outbox.emit("{}", None)
    outbox.put(place("other", OTHER), draft(), live=False)

    assert outbox.is_pending(RUN, outbox.now())
    assert outbox.tell(RUN, outbox.now()) == ["summary", "2 events"]
    assert outbox.untold() == ["other"]


def test_what_is_under_way_is_pending_until_it_is_sent() -> None:
    outbox = Outbox()
    outbox.put(place("summary"), draft(), live=False)
    taken = outbox.take_letters(live=True, hurry=(), now=0.0)

    assert outbox.tell(RUN, outbox.now()) == ["summary"]
    outbox.sent(taken)
    assert not outbox.is_pending(RUN, outbox.now())


def test_what_is_put_later_is_not_waited_for() -> None:
    outbox = Outbox()
    until = outbox.now()
    outbox.put(place("summary"), draft(), live=False)

    assert not outbox.is_pending(RUN, until)


def test_however_long_the_api_is_away_memory_is_bounded_and_progress_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1_000_000)
    outbox = Outbox()
    for number in range(100):
        outbox.put(place(f"progress-{number:03}"), draft("p" * 4_000), live=True)
        outbox.put(place(f"report-{number:03}"), draft("r" * 8_000), live=False)

    waiting = shown(outbox.take_letters(live=False, hurry=[RUN], now=0.0))

    assert sum(map(len, waiting.values())) < 1_000_000
    assert [key for key in waiting if key.startswith("report")] == [f"report-{number:03}" for number in range(100)]
    lost = outbox.tell(RUN, 0)
    assert lost[0] == "progress-000"
    assert not set(lost) & set(waiting)


@pytest.mark.parametrize("live", [True, False])
def test_as_many_drafts_wait_as_may(monkeypatch: pytest.MonkeyPatch, live: bool) -> None:
    monkeypatch.setattr(module, "MOST_DRAFTS", 10)
    outbox = Outbox()
    for number in range(25):
        outbox.put(place(f"key-{number:02}", Run(None, uuid4())), draft(), live=live)

    assert set(shown(outbox.take_letters(live=False, hurry=[], now=0.0))) == (
        set() if live else {f"key-{number}" for number in range(15, 25)}
    )
    assert len(outbox.untold()) == 25


def test_events_are_bounded_in_number_and_bytes_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EVENTS", 100)
    monkeypatch.setattr(module, "MOST_BYTES", 1_000)
    outbox = Outbox()
    for number in range(300):
        outbox.emit(f"{number:050}", RUN)

    assert [int(event.text) for event in outbox.take_events()] == list(range(280, 300))
    assert outbox.tell(RUN, 300) == ["300 events"]


def test_a_batch_of_events_is_bounded_and_one_that_is_larger_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 100)
    outbox = Outbox()
    for size in (40, 40, 40, 400, 1):
        outbox.emit("x" * size, RUN)

    batches = [[len(event.text) for event in outbox.take_events()] for _ in range(4)]

    assert batches == [[40, 40], [40], [400], [1]]


def test_what_was_dropped_and_then_put_again_and_sent_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_DRAFTS", 1)
    outbox = Outbox()
    outbox.put(place("load"), draft(), live=True)
    outbox.put(place("other"), draft(), live=False)
    outbox.put(place("load"), draft(), live=False)

    outbox.sent(outbox.take_letters(live=True, hurry=(), now=0.0))

    assert outbox.tell(RUN, outbox.now()) == ["other"]


def test_ids_of_runs_that_never_ended_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ARTIFACTS", 10)
    outbox = Outbox()
    for _ in range(50):
        outbox.put(place("load", Run(uuid4(), None)), draft(), live=False)

    assert len(outbox._artifacts) == 10
