"""Ask a destination once what it can, rather than at each step of a run."""

from __future__ import annotations

import copy
from typing import Any, cast

from dlt.common.destination import DestinationCapabilitiesContext


def with_remembered_capabilities(destination: Any) -> Any:
    """Return a copy of a destination, for one run of one pipeline, that remembers what it can.

    dlt asks some eight times a run, and resolves the destination's configuration each time: for a few rows that takes
    longer than to load them. Asked with a configuration that is resolved, it answers anew, as before.
    """
    kind: Any = cast("Any", type(destination))
    known: dict[Any, DestinationCapabilitiesContext] = {}

    def capabilities(self: Any, config: Any = None, naming: Any = None) -> DestinationCapabilitiesContext:
        if config is not None:
            return kind.capabilities(self, config, naming)
        asked = None if naming is None else (naming.name(), naming.max_length)
        # In two threads at once it is found out twice, which is one time too many and nothing else.
        if asked not in known:
            known[asked] = kind.capabilities(self, None, naming)
        return _copied(known[asked])

    own = copy.copy(destination)
    # dlt names destinations by their class.
    own.__class__ = type(kind.__name__, (kind,), {"capabilities": capabilities, "__module__": kind.__module__})
    return own


def _copied(found: DestinationCapabilitiesContext) -> DestinationCapabilitiesContext:
    # dlt changes what it is given, lists in it too.
    copied = found.copy()
    for name, value in found.items():
        if isinstance(value, list):
            copied[name] = list(cast("list[Any]", value))
    return copied
