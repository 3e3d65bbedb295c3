"""Configuration that counts for one pipeline, in one thread and in the processes that dlt starts from it.

dlt asks its providers of configuration for each value. The ones that are added here answer only where a scope is open:
in the thread that opened it, in those that dlt starts for it, and in the processes that normalise for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from dlt.common.configuration import configspec
from dlt.common.configuration.container import Container
from dlt.common.configuration.providers.doc import BaseDocProvider
from dlt.common.configuration.providers.environ import SECRET_STORAGE_PATH, EnvironProvider
from dlt.common.configuration.providers.provider import ConfigProvider
from dlt.common.configuration.specs import ContainerInjectableContext, PluggableRunContext
from dlt.common.configuration.specs.base_configuration import NotResolved
from dlt.common.configuration.specs.config_section_context import ConfigSectionContext


@dataclass(frozen=True)
class Scope:
    """What counts for one pipeline besides what is configured for it.

    Attributes:
        values: By section and key; they count before all that is configured.
        base: The pipeline that it derives from. What is configured for that one counts for this one too, after what is
            configured for this one, and before what is configured for all.
    """

    values: Mapping[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])
    base: str | None = None


@contextmanager
def scoped_config(pipeline_name: str, scope: Scope) -> Generator[None]:
    """Let what a scope says count for a pipeline, inside and in this thread.

    Nothing else sees it: not the process's environment, not dlt's other threads, not another pipeline that this thread
    runs meanwhile, nor one of the same name in another thread.
    """
    scopes = {**_scopes(), pipeline_name: scope}
    with _providers.in_use(scope), Container().injectable_context(ScopesContext(scopes=scopes)):
        yield


@configspec
class ScopesContext(ContainerInjectableContext):
    """The scopes that are open in a thread, by the names of the pipelines; dlt hands it on to normalize workers."""

    scopes: Annotated[Any, NotResolved()] = None

    can_create_default: ClassVar[bool] = False
    worker_affinity: ClassVar[bool] = True

    def after_add(self) -> None:
        """Have the scopes asked: in a worker this is the only call there is."""
        super().after_add()
        _providers.put_in(self.scopes)


def _scopes() -> Mapping[str, Scope]:
    container = Container()
    return container[ScopesContext].scopes if ScopesContext in container else {}


class _ScopeValues(ConfigProvider):
    """Answers with the values of the scope; asked before all others."""

    @property
    def name(self) -> str:
        return "prefect-dlt"

    @property
    def supports_secrets(self) -> bool:
        return False

    @property
    def supports_sections(self) -> bool:
        return True

    @property
    def is_empty(self) -> bool:
        # dlt asks this for each value it looks up, hundreds of times a run: not by thread, which takes longer.
        return not _providers.keys

    def get_value(
        self,
        key: str,
        hint: type[Any],  # noqa: ARG002 - dlt gives it by position
        pipeline_name: str | None,
        *sections: str,
    ) -> tuple[Any, str]:
        # dlt asks with all sections first and with the last one alone in the end; a resource may be called like one.
        if len(sections) != 1 or (sections[0], key) not in _providers.keys:
            return None, key
        scope = _scopes().get(pipeline_name or "")
        return (scope.values.get((sections[0], key)) if scope is not None else None), key


class _BaseValues(ConfigProvider):
    """Answers with what another provider has for the pipeline that the one in question derives from."""

    def __init__(self, provider: ConfigProvider) -> None:
        self.provider = provider

    @property
    def name(self) -> str:
        return f"{self.provider.name}, for the pipeline it derives from"

    @property
    def supports_secrets(self) -> bool:
        return self.provider.supports_secrets

    @property
    def supports_sections(self) -> bool:
        return self.provider.supports_sections

    @property
    def is_empty(self) -> bool:
        # As above. Mostly nothing is configured for a base, and to ask for each value would double what dlt takes.
        return not any(_may_have_for(self.provider, base) for base in _providers.bases)

    @property
    def locations(self) -> Sequence[str]:
        return self.provider.locations

    @property
    def present_locations(self) -> Sequence[str]:
        return self.provider.present_locations

    def get_value(self, key: str, hint: type[Any], pipeline_name: str | None, *sections: str) -> tuple[Any, str]:
        base = self._base_of(pipeline_name)
        if base is None:
            return None, key
        value, name = self.provider.get_value(key, hint, base, *sections)
        # A pipeline's own settings may stand in [pipelines.<pipeline>] as well, which dlt looks at last.
        asked = Container()[ConfigSectionContext].sections
        if value is None and not sections and asked and tuple(asked) == ("pipelines", pipeline_name):
            value, name = self.provider.get_value(key, hint, None, "pipelines", base)
        return value, name

    def get_value_location(self, key: str, pipeline_name: str | None, *sections: str) -> str:
        return self.provider.get_value_location(key, self._base_of(pipeline_name), *sections)

    @staticmethod
    def _base_of(pipeline_name: str | None) -> str | None:
        scope = _scopes().get(pipeline_name) if pipeline_name else None
        return scope.base if scope is not None else None


def may_be_configured_alone(pipeline_name: str) -> bool:
    """Tell whether something may be configured for one pipeline by its name, in this process; a vault always may."""
    return any(_may_have_for(provider, pipeline_name) for provider in _of_dlt())


def _may_have_for(provider: ConfigProvider, pipeline_name: str) -> bool:
    """Tell whether a provider may have anything that is configured for one pipeline by itself."""
    if provider.is_empty:
        return False
    if type(provider) is EnvironProvider:
        return _variables.are_there_for(pipeline_name)
    if isinstance(provider, BaseDocProvider) and type(provider).get_value is BaseDocProvider.get_value:
        return any(provider.get_value(pipeline_name, dict, "", *section)[0] is not None for section in _OWN_SECTIONS)
    # A vault, which has to be asked for each value by itself, or somebody's own.
    return True


_OWN_SECTIONS = ((), ("pipelines",))
"""Where sections of one pipeline may stand."""


class _Variables:
    """Which variables of the environment there are for single pipelines, by the beginnings of their names."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], bool] = {}

    def are_there_for(self, pipeline_name: str) -> bool:
        # To go through all takes too long for each value. What comes while as many go is known from the next scope on.
        known, place = self._known, (len(os.environ), pipeline_name)
        if place not in known:
            known[place] = _is_in_environment(pipeline_name)
        return known[place]

    def look_again(self) -> None:
        # Another one, for threads that look meanwhile.
        self._known = {}


def _is_in_environment(pipeline_name: str) -> bool:
    beginnings = tuple(EnvironProvider.get_key_name("", *section, pipeline_name) for section in _OWN_SECTIONS)
    if any(name.startswith(beginnings) for name in os.environ):
        return True
    # Secrets in files, which dlt takes for variables: called alike, with a dash for each underscore.
    with suppress(OSError):
        files = Path(SECRET_STORAGE_PATH % "").iterdir()
        return any(file.name.replace("-", "_").upper().startswith(beginnings) for file in files)
    return False


class _Providers:
    """Our providers among dlt's, which all threads share: there as long as a scope is open anywhere.

    Attributes:
        keys: Sections and keys that an open scope of any thread has values for.
        bases: Pipelines that those of open scopes derive from.
    """

    def __init__(self) -> None:
        self.keys: frozenset[tuple[str, str]] = frozenset()
        self.bases: frozenset[str] = frozenset()
        self._open: list[Scope] = []
        self._changing = threading.Lock()

    @contextmanager
    def in_use(self, scope: Scope) -> Generator[None]:
        with self._changing:
            self._note([*self._open, scope])
        try:
            yield
        finally:
            with self._changing:
                at = next(number for number, each in enumerate(self._open) if each is scope)
                self._note(self._open[:at] + self._open[at + 1 :])
                if not self._open:
                    _replace(_of_dlt())

    def put_in(self, scopes: Mapping[str, Scope]) -> None:
        """Ask the scope before all other providers, and for the base of a pipeline after all others."""
        with self._changing:
            if not self._open:
                # In a worker, which ends with the scopes.
                self._note(list(scopes.values()))
            theirs = _of_dlt()
            present = Container()[PluggableRunContext].providers.providers
            wrapped = [provider.provider for provider in present if isinstance(provider, _BaseValues)]
            if wrapped != theirs or not isinstance(present[0], _ScopeValues):
                _replace([_ScopeValues(), *theirs, *map(_BaseValues, theirs)])

    def _note(self, scopes: list[Scope]) -> None:
        self._open = scopes
        self.keys = frozenset(place for scope in scopes for place in scope.values)
        self.bases = frozenset(scope.base for scope in scopes if scope.base)
        _variables.look_again()

    def start_anew(self) -> None:
        """Make the lock anew in a forked process: the fork has copied it as it was at that moment."""
        self._changing = threading.Lock()


def _of_dlt() -> list[ConfigProvider]:
    providers = Container()[PluggableRunContext].providers.providers
    return [provider for provider in providers if not isinstance(provider, _ScopeValues | _BaseValues)]


def _replace(providers: list[ConfigProvider]) -> None:
    # Another list rather than another order: other threads are going through the one that is there.
    Container()[PluggableRunContext].providers.providers = providers


_variables = _Variables()
_providers = _Providers()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_providers.start_anew)
