"""How long the parts of a source took in earlier runs, kept on this machine with the pipeline they derive from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from dlt.pipeline.pipeline import Pipeline

logger = logging.getLogger("prefect_dlt")

_KEY = "prefect_dlt_durations"


def known_durations(pipeline: Pipeline) -> dict[str, float]:
    """Return how long each part took when it was loaded last, in seconds, by its name."""
    kept: Any = None
    with suppress(KeyError):
        kept = pipeline.get_local_state_val(_KEY)
    if not isinstance(kept, dict):
        return {}
    found = cast("dict[Any, Any]", kept)
    return {str(name): float(each) for name, each in found.items() if isinstance(each, int | float) and each >= 0}


def keep_durations(pipeline: Pipeline, seconds: Mapping[str, float]) -> None:
    """Note how long parts took; of parts that were not loaded now, what is known stays. Never raises."""
    if not seconds:
        return
    try:
        # Of dlt's state this is the part that stays on the machine; it needs no load to be kept.
        known = known_durations(pipeline) | {name: round(each, 3) for name, each in seconds.items()}
        pipeline.set_local_state_val(_KEY, known)
    except Exception:
        logger.warning("How long the parts took could not be noted for %r", pipeline.pipeline_name, exc_info=True)
