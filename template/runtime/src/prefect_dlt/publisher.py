"""Send artifacts and events to Prefect from a thread of its own, so that no load waits for its API or fails with it."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import hashlib
import logging
import math
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from prefect.context import SettingsContext, get_settings_context
from prefect.events.schemas.events import Event, RelatedResource, Resource
from prefect.settings.models.root import Settings
from pydantic import SecretStr

from prefect_dlt.look_ups import LookUp, LookUps
from prefect_dlt.outbox import Artifact, Draft, Letter, Outbox, Parcel, Place, Rank, Run
from prefect_dlt.prefect_api import CONNECTIONS, Failure, PrefectApi, described, failure, retry_after

__all__ = ["Draft", "Place", "Publisher", "Rank", "Run", "publisher", "wait_until_sent"]

logger = logging.getLogger("prefect_dlt")

FLUSH_PERIOD = 1.0
"""Seconds between two rounds of API calls; of what is put meanwhile, the latest version of each artifact is sent."""

LONGEST_PAUSE = 5.0
"""Seconds between two attempts at most, while the API takes nothing: the pause doubles until then."""

MAX_RETRY_AFTER = 60.0
"""Seconds that the publisher leaves the API alone at most, when the API asks for more."""

SILENCE = 4.0
"""Seconds without an answer after which, when a run waits, a call is given up for a new one, and the API is away."""

EXIT_TIMEOUT = 2.0
"""Seconds, at most, that the end of the process waits for what no run has waited for."""

MOST_FAILURES = 3
"""Failed calls in a row that end a round."""


@dataclass
class _Round:
    """How a round of calls goes."""

    failures: int = 0
    is_over: bool = False
    has_sent: bool = False
    problem: Exception | None = None

    def failed(self, error: Exception) -> Failure:
        kind = failure(error)
        self.problem = error
        self.failures += kind is not Failure.REFUSED
        self.is_over |= kind not in (Failure.REFUSED, Failure.ANSWERED) or self.failures >= MOST_FAILURES
        return kind

    def succeeded(self) -> None:
        self.has_sent = True
        self.failures = 0


class Publisher:
    """Keeps the latest draft of each artifact, and events, and sends them from a daemon thread.

    Args:
        settings: Prefect's settings that say where the API is; by default those of the caller.
    """

    def __init__(self, settings: SettingsContext | None = None) -> None:
        context = settings or get_settings_context()
        # Prefect's own copy_with_update takes a tenth of a second.
        once = context.settings.client.model_copy(update={"max_retries": 0})
        self._settings = context.settings.model_copy(update={"client": once})
        self._profile = context.profile
        self._outbox = Outbox()
        self._changed = threading.Condition()
        self._api = PrefectApi(self._heard)
        self._look_ups = LookUps(self._api.connect, self._own_settings())
        self._is_closing = False
        self._is_sending = False
        self._is_urgent = False
        # Whether a run has waited in vain, and nothing has been heard since.
        self._is_silent = False
        self._is_unreachable = False
        self._flushing: list[tuple[Run, int]] = []
        self._rounds = 0
        self._unreachable_round = -1
        self._failed_rounds = 0
        self._answers = 0
        self._heard_at = 0.0
        self._next_round = 0.0
        self._next_live = 0.0
        self._left_alone_until = 0.0
        self._trouble = ""
        # Not in the context of the run that starts it: that would keep the run's context as long as the process lives.
        self._thread = threading.Thread(
            target=contextvars.Context().run, args=(self._work,), name="prefect-dlt-publisher", daemon=True
        )
        self._thread.start()

    @property
    def trouble(self) -> str:
        """What the last call that failed failed with, as far as it may be shown: "ConnectError", "HTTP 500"."""
        return self._trouble

    def put(self, place: Place, draft: Draft, live: bool = False, hold: float = 0.0) -> None:
        """Take a draft, in place of the one that waits for the same artifact; returns at once.

        Args:
            place: Which artifact.
            draft: What it shows from now on.
            live: Whether another draft will follow soon, as with progress. One of those is sent a second, whichever
                has waited longest, however many runs the process has; all others go with the next round.
            hold: Seconds that it may be taken back; it is sent sooner where its run waits for it.
        """
        with self._changed:
            self._outbox.put(place, draft, live, time.monotonic() + hold)
            self._changed.notify_all()

    def withdraw(self, place: Place) -> bool:
        """Take back an artifact of which nothing has been sent, nor is under way; tell whether there was one."""
        with self._changed:
            return self._outbox.withdraw(place)

    def emit(self, event: Event, run: Run | None = None) -> None:
        """Take an event, to be sent with the next round, in order and at least once; returns at once.

        Args:
            event: The event; the API drops those whose id it knows.
            run: The run whose flush waits for it; every run's by default.
        """
        try:
            text = event.model_dump_json()
        except ValueError:
            logger.debug("An event cannot be written as JSON", exc_info=True)
            return
        with self._changed:
            self._outbox.emit(text, run)
            self._changed.notify_all()

    def ask(self, look_up: LookUp) -> None:
        """Take a look-up, called once on a thread that no draft and no flush waits for; returns at once.

        When it fails, a line of debug says so, and nothing else.

        Args:
            look_up: Reads from the API and keeps what it learns; it may not write.
        """
        self._look_ups.ask(look_up)

    def flush(self, timeout: float, run: Run) -> list[str]:
        """Wait until what a run has put so far is sent, at most `timeout` seconds; return what is not.

        Ends early when the API cannot be reached, asks to be left alone for longer, or has been silent all the time
        that an earlier run waited. What is returned, keys of artifacts and "3 events", is tried again as long as the
        process lives, but for what the API refused. Whoever calls this tells the user.

        What is under way is let end; after that, what has the highest rank goes first, and events last.
        """
        began = time.monotonic()
        with self._changed:
            until, answers, first = self._outbox.now(), self._answers, self._rounds + self._is_sending
            if not self._outbox.is_pending(run, until):
                return self._outbox.tell(run, until)
            if self._is_sending and began - self._heard_at > SILENCE:
                # What hangs may do so for long after the API is back; a new call tells.
                self._api.interrupt()
            waiter = (run, until)
            self._flushing.append(waiter)
            self._is_urgent = True
            self._changed.notify_all()

            def is_over() -> bool:
                # One refused connection may be a restart; two are enough, and one when a run has seen two before.
                is_away = self._is_silent or self._unreachable_round > first - self._is_unreachable
                is_vain = is_away or self._left_alone_until > began + timeout or self._is_closing
                return is_vain or not self._outbox.is_pending(run, until)

            is_known = self._changed.wait_for(is_over, timeout)
            self._flushing.remove(waiter)
            if self._answers == answers:
                self._is_unreachable |= self._unreachable_round > first
                self._is_silent |= not is_known and timeout >= SILENCE
                self._changed.notify_all()
            return self._outbox.tell(run, until)

    def forget(self, run: Run) -> None:
        """Let a run that has ended begin anew: what it puts from now on are new versions of its artifacts."""
        with self._changed:
            self._outbox.forget(run)

    def close(self, timeout: float = EXIT_TIMEOUT) -> None:
        """End the thread, after one more round if the API takes what is sent. For the end of the process.

        Warns of what has not been sent, and no run was told of.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        self._api.shut()
        self._thread.join(timeout)
        with self._changed:
            names = self._outbox.untold()
        if names:
            logger.warning("Not shown in Prefect: %s (%s)", ", ".join(names), self._trouble or "the process ended")

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with self._own_settings():
            is_last = False
            while not is_last:
                with self._changed:
                    self._changed.wait_for(lambda: self._outbox.has_work() or self._is_closing)
                    is_last = self._is_closing
                    if is_last and (self._failed_rounds or not self._outbox.has_work()):
                        break
                    now = time.monotonic()
                    is_live_due = now >= self._next_live
                    hurry = {run for run, _ in self._flushing}
                    letters = self._outbox.take_letters(is_live_due, hurry, math.inf if is_last else now)
                    if is_live_due:
                        self._next_live = now + FLUSH_PERIOD
                    self._is_urgent = False
                    self._is_sending = True
                    self._heard_at = now
                self._settle(self._send(letters))
                with self._changed:
                    while (rest := self._pause_left()) > 0:
                        self._changed.wait(rest)
            # All is sent that will be, and nobody waits for a look-up.
            self._api.shut()
            self._look_ups.close(EXIT_TIMEOUT)
            self._api.close()

    def _send(self, letters: list[Letter]) -> _Round:
        state = _Round()
        self._send_letters(letters, state)
        if not (state.is_over or self._is_urgent):
            self._send_events(state)
        return state

    def _settle(self, state: _Round) -> None:
        """Decide when the next round is due."""
        with self._changed:
            now = time.monotonic()
            is_failure = state.failures > 0 and not state.has_sent
            self._failed_rounds = self._failed_rounds + 1 if is_failure else 0
            pause = min(FLUSH_PERIOD * 2 ** max(0, self._failed_rounds - 1), max(LONGEST_PAUSE, FLUSH_PERIOD))
            if state.problem is not None:
                self._trouble = described(state.problem)
                if failure(state.problem) is Failure.UNREACHABLE:
                    self._unreachable_round = self._rounds
                if (wish := retry_after(state.problem)) is not None:
                    self._left_alone_until = now + min(wish, MAX_RETRY_AFTER)
                if self._failed_rounds == 1:
                    logger.info("Prefect's API takes no reports (%s); they wait, and the load goes on", self._trouble)
            is_waited_for = any(self._outbox.is_pending(run, until) for run, until in self._flushing)
            if is_waited_for:
                pause = FLUSH_PERIOD if is_failure else 0.0
            self._next_round = now + pause
            self._is_sending = False
            self._rounds += 1
            self._changed.notify_all()

    def _pause_left(self) -> float:
        if self._is_closing:
            return 0.0
        due = self._left_alone_until if self._is_urgent else max(self._left_alone_until, self._next_round)
        return due - time.monotonic()

    def _send_letters(self, letters: list[Letter], state: _Round) -> None:
        """Send drafts, several at a time: an API that is slow gets them sooner, and one that is not, as soon."""
        waiting = deque(letters)

        def work() -> None:
            # When a run begins to wait, the next round is for what it waits for.
            while not (state.is_over or self._is_urgent):
                try:
                    letter = waiting.popleft()
                except IndexError:
                    return
                self._send_letter(letter, state)

        helpers = [
            threading.Thread(
                target=contextvars.Context().run, args=(self._help, work), name="prefect-dlt-helper", daemon=True
            )
            for _ in range(min(CONNECTIONS, len(letters)) - 1)
        ]
        # At the end of the process no thread can be started.
        with contextlib.suppress(RuntimeError):
            for helper in helpers:
                helper.start()
        work()
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
        self._returned(*waiting)

    def _help(self, work: Callable[[], None]) -> None:
        with self._own_settings():
            work()

    def _send_letter(self, letter: Letter, state: _Round) -> None:
        try:
            is_new = self._api.show(letter.artifact, letter.draft)
        except Exception as error:  # noqa: BLE001 - no report is worth the thread that sends the next ones
            if state.failed(error) is Failure.REFUSED:
                with self._changed:
                    self._outbox.refused(letter)
            else:
                self._returned(letter)
            return
        state.succeeded()
        if is_new:
            self.emit(_created(letter.artifact, letter.draft), letter.run)
        self._sent(letter)

    def _send_events(self, state: _Round) -> None:
        with self._changed:
            batch = self._outbox.take_events()
        if not batch:
            return
        try:
            self._api.send_events([event.text for event in batch])
        except Exception as error:  # noqa: BLE001 - as with drafts
            kind = state.failed(error)
            if kind in (Failure.REFUSED, Failure.ANSWERED):
                with self._changed:
                    self._outbox.split(batch, kind is Failure.REFUSED)
            else:
                self._returned(*batch)
            return
        state.succeeded()
        self._sent(*batch)

    def _sent(self, *parcels: Parcel) -> None:
        with self._changed:
            self._outbox.sent(parcels)
            self._changed.notify_all()

    def _returned(self, *parcels: Parcel) -> None:
        with self._changed:
            self._outbox.returned(parcels)

    def _heard(self) -> None:
        with self._changed:
            self._answers += 1
            self._heard_at = time.monotonic()
            self._is_silent = self._is_unreachable = False

    def _own_settings(self) -> SettingsContext:
        return SettingsContext(profile=self._profile, settings=self._settings)


def _created(artifact: Artifact, draft: Draft) -> Event:
    """Return the event that Prefect's own functions send when they have created an artifact."""
    run = artifact.place.run
    runs = {"flow-run": run.flow_run_id, "task-run": run.task_run_id}
    return Event(
        event="prefect.artifact.created",
        resource=Resource(
            {
                "prefect.resource.id": f"prefect.artifact.{artifact.id}",
                "prefect.resource.name": artifact.place.key,
            }
        ),
        related=[
            RelatedResource({"prefect.resource.id": f"prefect.{role}.{identity}", "prefect.resource.role": role})
            for role, identity in runs.items()
            if identity is not None
        ],
        payload={"key": artifact.place.key, "type": draft.type, "description": draft.description},
    )


def wait_until_sent(sender: Publisher, run: Run, timeout: float, *, goes_on: bool = False) -> None:
    """Wait until what a run has put is sent, and warn of what is not; the run then begins anew, unless it goes on."""
    unsent = sender.flush(timeout, run)
    if not goes_on:
        sender.forget(run)
    if unsent:
        logger.warning(
            "Not shown in Prefect: %s (%s). The run is not affected, and it is sent again while this process lives",
            ", ".join(unsent),
            sender.trouble or "no answer",
        )


# -- one publisher for each API ----------------------------------------------------------------------------------------

_publishers: dict[str, Publisher] = {}
_publishers_lock = threading.Lock()
_salt = secrets.token_bytes(16)


def publisher() -> Publisher:
    """Return the publisher of this process for the API, and the credentials, of the current run."""
    context = get_settings_context()
    identity = _identity(context.settings)
    with _publishers_lock:
        if identity not in _publishers:
            _publishers[identity] = Publisher(context)
        return _publishers[identity]


def _identity(settings: Settings) -> str:
    """Tell APIs and credentials apart, without keeping the credentials."""
    parts = {**settings.api.model_dump(), "headers": settings.client.custom_headers}
    values = {name: each.get_secret_value() if isinstance(each, SecretStr) else each for name, each in parts.items()}
    return hashlib.sha256(_salt + repr(values).encode()).hexdigest()


@atexit.register
def _close_publishers() -> None:
    # A daemon thread that is still there when the interpreter goes keeps it from tidying up, which DuckDB complains of.
    for each in list(_publishers.values()):
        each.close()


def _start_anew() -> None:
    # A fork copies the publishers, but not the threads behind them, and the lock as it was at that moment.
    global _publishers_lock  # noqa: PLW0603 - that is the point
    _publishers_lock = threading.Lock()
    _publishers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
