"""Build a source once for the parts that a thread loads one after another, rather than for each of them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dlt.extract import DltSource
from dlt.pipeline.pipeline import Pipeline
from typing_extensions import override

from prefect_dlt.decompose import select
from prefect_dlt.scoped_config import may_be_configured_alone

FRESH_SECONDS = 60.0
"""Seconds that what was built is taken from: what a source asks for when it is built, a token or the time, gets old."""


@dataclass
class _Built:
    """A source, and what has been taken out of it.

    Attributes:
        source: The source.
        at: When it was built, in seconds of the clock.
        taken: Names of resources that a part was made of: what they have read may not come again.
    """

    source: DltSource
    at: float
    taken: set[str] = field(default_factory=set[str])


class BuiltSources:
    """What the threads of one run of a flow have built of one source.

    Each thread has its own: a source may hold connections, and hold others up while one waits for it. It is built anew
    for what was taken before, for a second attempt therefore, and after `FRESH_SECONDS`. And for each part by itself,
    as it would be without this, where the part might get another one: because something is configured for its pipeline
    alone, or because the source looks at the pipeline when it is built.

    Args:
        build: Builds the source.
        clock: Returns the time in seconds; for tests.
    """

    def __init__(self, build: Callable[[], Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._build = build
        self._clock = clock
        self._of_thread = threading.local()

    def take(self, pipeline: Pipeline, resources: Collection[str], members: Collection[str]) -> Any:
        """Return a source with these resources selected, of which nothing else holds the resources.

        Args:
            pipeline: The pipeline that will load it, active in this thread.
            resources: The names of the resources.
            members: All resources of the part, those that are not selected too.
        """
        if may_be_configured_alone(pipeline.pipeline_name):
            return select(self._build(), list(resources), members)
        built: _Built | None = getattr(self._of_thread, "built", None)
        wanted = {*resources, *members}
        if built is None or not self._serves(built, wanted):
            self._of_thread.built = None
            with _watched(pipeline) as looks:
                source = self._build()
            if looks() or not isinstance(source, DltSource):
                return select(source, list(resources), members)
            built = self._of_thread.built = _Built(source, self._clock())
        built.taken |= wanted
        return select(built.source, list(resources), members)

    def _serves(self, built: _Built, wanted: set[str]) -> bool:
        is_fresh = self._clock() - built.at < FRESH_SECONDS
        return is_fresh and not wanted & built.taken and wanted <= built.source.resources.keys()


_READ_BY_DLT = frozenset({"pipeline_name", "default_schema_name"})
"""What dlt itself reads of the active pipeline while a source is built, to find what is configured for it."""


class _Watched(Pipeline):
    """A pipeline that notes when anything but dlt's configuration reads an attribute of it."""

    @override
    def __getattribute__(self, name: str) -> Any:
        # Not kept in a variable: a frame that refers to itself would keep the pipeline.
        caller = str(sys._getframe(1).f_globals.get("__name__"))  # pyright: ignore[reportPrivateUsage] # noqa: SLF001
        by_dlt = caller.startswith("dlt.extract.") and name in _READ_BY_DLT
        if not by_dlt and not name.startswith("__"):
            vars(self)["_prefect_dlt_is_read"] = True
        return super().__getattribute__(name)


@contextmanager
def _watched(pipeline: Pipeline) -> Generator[Callable[[], bool]]:
    """Find out whether what is built inside depends on the pipeline; give what tells so afterwards."""
    kind = type(pipeline)
    if kind is not Pipeline:
        yield lambda: True
        return
    before = sys.getrefcount(pipeline)
    pipeline.__class__ = _Watched
    try:
        yield lambda: is_read or is_kept
    finally:
        pipeline.__class__ = kind
        is_read = bool(vars(pipeline).pop("_prefect_dlt_is_read", False))
        # To be read later, by a resource.
        is_kept = sys.getrefcount(pipeline) > before
