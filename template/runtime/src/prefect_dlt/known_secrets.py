"""What this process knows to be secret: learnt from dlt wherever dlt keeps it, and kept after dlt has forgotten it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from inspect import unwrap
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from dlt.common.configuration.container import Container
from dlt.common.configuration.inject import get_fun_last_config, get_fun_spec
from dlt.common.configuration.providers.doc import BaseDocProvider
from dlt.common.configuration.specs import BaseConfiguration, PluggableRunContext
from dlt.common.configuration.specs.base_configuration import is_secret_hint
from dlt.common.configuration.utils import ResolvedValueTrace, TraceLogContext, get_resolved_traces
from dlt.extract.reference import SourceReference
from dlt.extract.resource import DltResource
from dlt.extract.source import DltSource, SourceInjectableContext

from prefect_dlt.redact import SHORTEST_SECRET, secrets_in, secrets_in_document

logger = logging.getLogger("prefect_dlt")

MOST_SECRETS = 2_000
"""Values that are known at a time; those that were not met for the longest time are forgotten first."""

DEEPEST = 5
"""Levels of configurations within configurations, and of lists of data, that are looked into."""


def known_secrets() -> frozenset[str]:
    """Return what is known to be secret by now, whichever thread, pipeline or run it comes from. Never raises.

    Cheap enough for each line of a log: only what dlt has resolved since the last call is looked at.
    """
    _guarded(_store.look_at_traces)
    return _store.secrets


def learn_secrets(pipeline: Any = None, data: Any = None) -> frozenset[str]:
    """Look everywhere where secrets can be met, and return what is known by now. Never raises.

    dlt keeps what it resolves for each thread by itself, and forgets it at the end of the thread's next trace; values
    that are given in code are not among it. So call this before something may be forgotten, and when something new may
    be there: when a pipeline's collector or runner is made, and when a run or a stage begins or ends.

    Looked at are, of all threads, the values that dlt has resolved and the configurations it has put them into; the
    sources that are being extracted; the latest configuration of each source that is defined at the level of a module;
    the documents of providers of secrets, `secrets.toml` for example; and what is given here. Of earlier calls of one
    source, dlt keeps nothing where all arguments were given in code; nor of a source that is defined inside a function,
    until it is extracted or given here.

    Args:
        pipeline: A pipeline, for what its destination and its staging were given in code.
        data: What `pipeline.run` takes, for what its sources and resources were given in code.
    """
    _guarded(lambda: _store.look_everywhere(pipeline, data))
    return _store.secrets


@contextmanager
def forgotten_afterwards() -> Generator[None]:
    """Have dlt forget, at the end, what it resolved on this thread, once its secrets are learnt. Never raises.

    dlt does so at the end of each trace; what it resolves after the last one, for a look into the destination for
    example, it would keep. A configuration that lacks a value holds the error that says so, and with its traceback all
    that was in use at that moment: connections, clients, data.
    """
    try:
        yield
    finally:
        _guarded(_store.let_go)


def _guarded(look: Callable[[], None]) -> None:
    try:
        look()
    except Exception as error:  # noqa: BLE001 - no report is worth a load; an error's text could hold what is secret
        # Once, not at each line of a log.
        if (name := type(error).__name__) not in _store.problems:
            _store.problems.add(name)
            logger.warning("Secrets could not be looked for everywhere, and are masked as far as known (%s)", name)


@dataclass(eq=False)
class _Seen:
    """What has been looked at of the traces of one thread.

    Attributes:
        resolved: dlt's list of resolved values; it is another one after a trace has ended.
        all: dlt's list of everything that it looked up.
        counts: How many of both have been looked at.
        unsettled: What the values were resolved for, may hold secrets, and was not resolved yet at the last look; by
            id, since the lists keep it alive.
        settled: The same, of what was.
    """

    resolved: list[ResolvedValueTrace]
    all: list[ResolvedValueTrace]
    counts: tuple[int, int] = (0, 0)
    unsettled: dict[int, BaseConfiguration] = field(default_factory=dict[int, BaseConfiguration])
    settled: dict[int, BaseConfiguration] = field(default_factory=dict[int, BaseConfiguration])

    def look(self, *, again: bool, settled: bool = False) -> Iterator[str]:
        """Yield the secrets in what has come since the last look.

        Args:
            again: Whether to look once more at the configurations that were not resolved at the last look.
            settled: Whether to look once more at the others: a token may have been put there since.
        """
        (first, first_of_all), counts = self.counts, (len(self.resolved), len(self.all))
        if not again and self.counts == counts:
            return
        self.counts = counts
        for entry in self.resolved[first:]:
            if is_secret_hint(entry.hint):
                yield from secrets_in(entry.value, entry.hint)
        if settled:
            for config in self.settled.values():
                yield from _in_config(config)
        # What is given in code is in no entry; it is in the configuration that the other values are for.
        new = (entry.config for entry in self.all[first_of_all:])
        self.unsettled |= {id(config): config for config in new if _telling_fields(type(config))}
        for place, config in list(self.unsettled.items()):
            # Asked before, since another thread may be about to resolve it.
            is_settled = config.is_resolved()
            yield from _in_config(config)
            if is_settled:
                self.settled[place] = self.unsettled.pop(place)


class _Store:
    """The secrets of a process; safe to use from all threads."""

    def __init__(self) -> None:
        self.secrets: frozenset[str] = frozenset()
        self.problems: set[str] = set()
        # In the order in which they were met last.
        self._met: dict[str, None] = {}
        self._seen: dict[int, _Seen] = {}
        self._looking = threading.RLock()

    def look_at_traces(self) -> None:
        with self._looking:
            self._add(self._in_traces(again=False))

    def let_go(self) -> None:
        with self._looking:
            self.look_at_traces()
            get_resolved_traces().clear()
            # From now on at dlt's new lists, so that the old ones are held by nobody.
            self.look_at_traces()

    def look_everywhere(self, pipeline: Any, data: Any) -> None:
        with self._looking:
            for found in (
                self._in_traces(again=True),
                _in_contexts(),
                _in_sources(),
                _in_destinations(pipeline),
                _in_data(data),
            ):
                _guarded(partial(self._add, found))

    def start_anew(self) -> None:
        """Make the lock anew in a forked process: the fork has copied it as it was at that moment."""
        self._looking = threading.RLock()

    def forget(self) -> None:
        """Forget all that is known; for tests."""
        with self._looking:
            self.secrets, self._met, self._seen, self.problems = frozenset(), {}, {}, set()

    def _add(self, found: Iterable[str]) -> None:
        new = False
        for secret in found:
            if len(secret) >= SHORTEST_SECRET:
                new |= secret not in self._met
                self._met.pop(secret, None)
                self._met[secret] = None
        if new:
            for secret in list(self._met)[:-MOST_SECRETS]:
                del self._met[secret]
            self.secrets = frozenset(self._met)

    def _in_traces(self, *, again: bool) -> Iterator[str]:
        """Yield what dlt has resolved on all threads; `again` looks also at configurations that were seen before.

        Of those of other threads, at the ones that may be incomplete: these threads look at the others themselves, and
        for each of them to look at those of all would take the longer, the more there are.
        """
        own = threading.get_ident()
        logs = _contexts(TraceLogContext)
        self._seen = {thread: seen for thread, seen in self._seen.items() if thread in logs}
        for thread, log in logs.items():
            seen = self._seen.get(thread)
            if seen is None or seen.resolved is not log.resolved_traces or seen.all is not log.all_traces:
                if seen is not None:
                    # dlt begins new lists when a trace has ended; the old ones may have grown until then.
                    yield from seen.look(again=True, settled=True)
                seen = self._seen[thread] = _Seen(log.resolved_traces, log.all_traces)
            yield from seen.look(again=again, settled=again and thread == own)


def _contexts(of: type[Any]) -> dict[int, Any]:
    """Return dlt's contexts of one type by the thread that they are of."""
    found = {thread: contexts.get(of) for thread, (contexts, _) in tuple(Container().thread_contexts.items())}
    return {thread: context for thread, context in found.items() if context is not None}


def _in_contexts() -> Iterator[str]:
    for context in _contexts(SourceInjectableContext).values():
        yield from _in_data(context.source)
    for context in _contexts(PluggableRunContext).values():
        for provider in tuple(context.providers.providers):
            if isinstance(provider, BaseDocProvider) and provider.supports_secrets:
                yield from secrets_in_document(provider._config_doc)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def _in_sources() -> Iterator[str]:
    for reference in tuple(SourceReference.SOURCES.values()):
        yield from _in_config(get_fun_last_config(cast("Any", reference.factory)))


def _in_destinations(pipeline: Any) -> Iterator[str]:
    for destination in (getattr(pipeline, "destination", None), getattr(pipeline, "staging", None)):
        if destination is not None:
            yield from _in_arguments(destination.config_params, destination.spec)


def _in_data(data: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(data, DltSource):
        if (factory := getattr(data, "_factory", None)) is not None:
            yield from _in_config(get_fun_last_config(factory))
        for resource in data.resources.values():
            yield from _in_resource(resource)
    elif isinstance(data, DltResource):
        yield from _in_resource(data)
    elif isinstance(data, list | tuple) and depth < DEEPEST:
        # Rows may be given as well, and many of them.
        for each in cast("list[Any]", data[:MOST_SECRETS]):
            yield from _in_data(each, depth + 1)


def _in_resource(resource: DltResource) -> Iterator[str]:
    made_by = cast("Any", resource._pipe.gen) if not resource._pipe.is_empty else None  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if not callable(made_by):
        return
    yield from _in_config(get_fun_last_config(unwrap(made_by)))
    arguments = cast("Mapping[str, Any] | None", resource._explicit_args)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if arguments and (spec := get_fun_spec(unwrap(made_by))) is not None:  # pyright: ignore[reportUnnecessaryComparison]
        yield from _in_arguments(arguments, spec)


def _in_arguments(arguments: Mapping[str, Any], spec: type[BaseConfiguration]) -> Iterator[str]:
    for name, hint, is_secret in _telling_fields(spec):
        yield from _in_field(arguments.get(name), hint, 0, is_secret=is_secret)


def _in_config(config: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(config, BaseConfiguration) and depth < DEEPEST:
        for name, hint, is_secret in _telling_fields(type(config)):
            yield from _in_field(getattr(config, name, None), hint, depth, is_secret=is_secret)


def _in_field(value: Any, hint: Any, depth: int, *, is_secret: bool) -> Iterator[str]:
    if isinstance(value, BaseConfiguration):
        yield from _in_config(value, depth + 1)
    elif value is not None and is_secret:
        yield from secrets_in(value, hint)


@lru_cache(maxsize=1_000)
def _telling_fields(spec: type[BaseConfiguration]) -> tuple[tuple[str, Any, bool], ...]:
    """Return name and hint of each field that may hold a secret, and whether it is a secret's itself.

    Working these out takes longer than all else; and most fields, a number of workers for example, cannot.
    """
    told = ((name, hint, is_secret_hint(hint)) for name, hint in spec.get_resolvable_fields().items())
    return tuple((name, hint, is_secret) for name, hint, is_secret in told if is_secret or not _is_plain(hint))


def _is_plain(hint: Any) -> bool:
    """Tell whether values of a type are never configurations, which may have secrets in them."""
    if get_origin(hint) in (Union, UnionType):
        return all(map(_is_plain, get_args(hint)))
    return hint in _PLAIN or get_origin(hint) is Literal


_PLAIN = (str, int, float, bool, bytes, type(None))


_store = _Store()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_store.start_anew)
