"""What an error comes down to: the exception of the source or the destination, without what dlt puts around it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from dlt.destinations.exceptions import DestinationConnectionError
from dlt.load.exceptions import LoadClientJobException
from dlt.pipeline.exceptions import PipelineStepFailed

from prefect_dlt.markdown import printable, shortened

LONGEST_LINE = 200
"""Characters of a reason that is told in one line."""

_TRACEBACK = "Traceback (most recent call last):\n"

# What follows its first line, up to the name of the exception that it ends with.
_FRAMES = re.compile(r"(?:[ \t].*\n|\n)*(?:\w+\.)*")


def reason(error: BaseException) -> str:
    """Return type and message of the exception behind an error: that of a driver or of the user's code, if known.

    dlt raises its own from it, which says where it happened rather than what.
    """
    while (cause := _behind(error)) is not None:
        error = cause
    return text_of(error)


def reason_line(error: BaseException, safe: Callable[[str], str]) -> str:
    """Return the reason in one line of bounded length.

    Args:
        error: What was raised.
        safe: Takes the secrets out of a text.
    """
    return shortened(printable(" ".join(safe(reason(error)).split())), LONGEST_LINE)


def reason_in_trace(traces: Sequence[Mapping[str, Any]], otherwise: str) -> str:
    """Return the same of a step in dlt's trace, which has texts only.

    Args:
        traces: The step's `exception_traces`, the outermost first.
        otherwise: What to return when they are empty.
    """
    found = [each for each in traces if not str(each.get("exception_type")).endswith("PipelineStepFailed")]
    if not found:
        return without_tracebacks(otherwise)
    # Behind the user's own exception there may be others, which say less of what was tried.
    last = next((each for each in found if not str(each.get("exception_type")).startswith("dlt.")), found[0])
    name = str(last.get("exception_type")).rpartition(".")[2]
    return f"{name}: {without_tracebacks(str(last.get('message')))}"


def text_of(error: BaseException) -> str:
    """Return type and message of an error."""
    message = without_tracebacks(str(error))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def without_tracebacks(text: str) -> str:
    """Return a text with what a traceback in it ends with in its place; dlt puts whole ones into its messages.

    From the first one to the last that begins a line they are one chain, of which the last is left.
    """
    kept, at, last = list[str](), 0, text.rfind(f"\n{_TRACEBACK}") + 1
    while (begin := text.find(_TRACEBACK, at)) >= 0:
        frames = _FRAMES.match(text, max(begin, last) + len(_TRACEBACK))
        kept.append(text[at:begin])
        at = frames.end() if frames else len(text)
    return "".join([*kept, text[at:]]).strip()


def _behind(error: BaseException) -> BaseException | None:
    if isinstance(error, PipelineStepFailed):
        return error.exception
    if isinstance(error, LoadClientJobException):
        # It is unknown when a job failed in an earlier run.
        return cast("BaseException | None", error.client_exception)
    if isinstance(error, DestinationConnectionError):
        # Its own message comes to the reason after three sentences on what it may be.
        return error.inner_exc
    return error.__cause__ if type(error).__module__.startswith("dlt.") else None
