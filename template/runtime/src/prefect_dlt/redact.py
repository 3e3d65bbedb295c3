"""Take secrets out of text before it is shown, stored or sent."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from dlt.common.configuration.specs.base_configuration import is_secret_hint
from dlt.common.configuration.utils import get_resolved_traces

MASK = "***"

SHORTEST_SECRET = 4
"""Characters of a value that is masked wherever it stands; a shorter one would hit ordinary words."""

# The password of an address: scheme://user:password@host, up to the last @ before the next blank or slash.
_URL_PASSWORD = re.compile(r"(?P<head>[a-z][a-z0-9+.-]*://[^\s:/@]*:)(?P<secret>[^\s]+)(?=@)", re.IGNORECASE)

# name = value and name: value, where the name says that the value is a secret.
_NAMED_SECRET = re.compile(
    r"(?P<head>\b[\w.-]*(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?)"
    r"[\w.-]*[\"']?\s*(?:=|:)\s*)"
    r"(?P<secret>\"[^\"]*\"|'[^']*'|[^\s,;&)\]}]+)",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(r"(?P<head>\b(?:bearer|basic)\s+)(?P<secret>[A-Za-z0-9._~+/=-]{8,})", re.IGNORECASE)


def redact(text: str, known_secrets: Iterable[str] = ()) -> str:
    """Return the text with secrets replaced by three asterisks.

    Masked are the values in `known_secrets` of at least `SHORTEST_SECRET` characters, passwords in addresses, values
    whose name says that they are secret, and bearer and basic tokens.
    """
    for secret in sorted(set(known_secrets), key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, MASK)
    for pattern in (_URL_PASSWORD, _NAMED_SECRET, _AUTHORIZATION):
        text = pattern.sub(rf"\g<head>{MASK}", text)
    return text


def resolved_secrets() -> set[str]:
    """Return the secret values that dlt has resolved in this thread since its last trace ended.

    The password inside an address counts as a value of its own, both as it is written there and unquoted.
    """
    secrets: set[str] = set()
    for entry in get_resolved_traces().resolved_traces:
        if is_secret_hint(entry.hint) and isinstance(entry.value, str):
            secrets.add(entry.value)
            with contextlib.suppress(ValueError):
                if password := urlsplit(entry.value).password:
                    secrets |= {password, unquote(password)}
    return secrets
