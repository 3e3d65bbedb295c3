"""Take secrets out of text before it is shown, stored or sent."""

from __future__ import annotations

import functools
import json
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast
from urllib.parse import quote, quote_plus, unquote, urlsplit

from dlt.common.configuration.specs import ConnectionStringCredentials
from dlt.common.configuration.specs.base_configuration import (
    extract_inner_hint,
    is_credentials_inner_hint,
    is_secret_hint,
)
from dlt.common.configuration.utils import get_resolved_traces
from dlt.common.typing import is_subclass

MASK = "***"

SHORTEST_SECRET = 4
"""Characters of a value that is masked where it stands as a word of its own; a shorter one would hit ordinary words."""

SHORTEST_SURE_SECRET = 12
"""Characters of a value that is masked even inside another word: no "postgres" in "postgresql", but any long token."""

SHORTEST_MIXED_SECRET = 8
"""The same for a value of both letters and digits, which is no ordinary word."""

# Text comes from anywhere and may be long, so each pattern is linear: it starts only at the beginning of a word, and
# what it repeats cannot be read in two ways.

# The password of an address: up to the last @ before a slash or, when there is none, up to the next @ within reach.
# Digits before a slash are a port, not a password.
_URL_PASSWORD = re.compile(
    r"(?P<head>://[^\s:/?#]*:)(?!\d{1,5}(?:[/?#\"'<>\s]|$))(?P<secret>[^\s/?#]*(?=@)|[^\s@]{1,200}(?=@))"
)

_NAME = (
    r"(?:pass(?:word|phrase|code|wd)|pwd|secrets?|token|credentials?|(?:api|access|account|private|secret|signing)[_-]?key"
    r"|connection[_-]?string|signature|authorization)"
    r"(?:[_-]?(?:key|value|id|hash|string|b64|base64|json|pem|\d+))*"
)
_QUOTED = (
    r'"""(?:[^"]|"{1,2}(?!"))*(?:""")?'
    r"|'''(?:[^']|'{1,2}(?!'))*(?:''')?"
    r'|\\+"[^"\n]*"?'  # quoted inside a quoted text
    r"|\\+'[^'\n]*'?"
    r'|"(?:[^"\\\n]|\\.)*"?'
    r"|'(?:[^'\\\n]|\\.)*'?"
)
# A comma or a bracket belongs to a bare value when it does not end it.
_BARE = r"(?:[^\s,;&)\]}]|[,)\]}](?![\s,;&)\]}.:'\"`]|$|\w+\s?[=:]))+"

# name = value and name: value, where the name says that the value is a secret. Code that compares or annotates, and
# values that are none, stay as they are.
_NAMED_SECRET = re.compile(
    rf"(?P<head>(?<![\w.-])[\w.-]*{_NAME}(?:\\*[\"'])?[ \t]*(?:=>?|:=?)(?![=:]|//)[ \t]*)"
    r"(?!(?:None|null|true|false)\b|[\[({](?:[\[({\"'\s]|$)|[=\s]|<secret>)"
    # A scheme says how to read the token that follows.
    rf"(?P<secret>(?:(?:bearer|basic|token)[ \t]+)?(?:{_QUOTED}|\{{[^}}\"'\n]*\}}|{_BARE}))",
    re.IGNORECASE,
)
_OPTION = re.compile(rf"(?P<head>(?<![\w-])--[\w-]*{_NAME}[ \t]+)(?P<secret>{_QUOTED}|[^\s-]\S*)", re.IGNORECASE)
_BEARER = re.compile(r"(?P<head>\bbearer[ \t]+)(?P<secret>(?=[\w.~+/=-]*\d)[\w.~+/=-]{8,})", re.IGNORECASE)

# What says by its shape what it is: keys in PEM, AWS key ids, JSON web tokens, GitHub, GitLab, Slack, Stripe, and the
# signature in an address of Azure.
_SHAPED = re.compile(
    r"(?P<head>)(?P<secret>-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk_live_|sk_test_)[\w-]{16,}"
    r"|(?<=[?&]sig=)[^&\s\"']+)"
)
_PATTERNS = (_SHAPED, _URL_PASSWORD, _NAMED_SECRET, _OPTION, _BEARER)


def redact(text: str, known_secrets: Iterable[str] = ()) -> str:
    """Return the text with secrets replaced by three asterisks.

    Masked are the values in `known_secrets`, also as Python, JSON and addresses write them, passwords in addresses,
    values whose name says that they are secret, and tokens that are known by their shape. Redact before anything else
    is done to a text: what is escaped, cut or put on one line may no longer be recognised.
    """
    return redaction(known_secrets)(text)


def redaction(known_secrets: Iterable[str] = ()) -> Callable[[str], str]:
    """Return a function that redacts as `redact` does, for many texts: what it needs is prepared once."""
    known = _known(frozenset(known_secrets))

    @functools.cache
    def redacted(text: str) -> str:
        if known is not None:
            text = known.sub(MASK, text)
        for pattern in _PATTERNS:
            text = pattern.sub(rf"\g<head>{MASK}", text)
        return text

    return redacted


def redacted_traceback(error: BaseException, known_secrets: Iterable[str] = ()) -> str:
    """Return the traceback of an error, and of what caused it, with secrets masked."""
    return redact("".join(traceback.format_exception(error)), known_secrets)


def resolved_secrets(first: int = 0) -> set[str]:
    """Return the secret values that dlt has resolved in this thread since its last trace ended.

    `first` is the index of the first of dlt's resolved values to look at, for those who know the ones before it. Of an
    address, only the password is secret, as it is written there and unquoted; of credentials in JSON, only what their
    names say; of any other secret in JSON, every text in it.
    """
    secrets: set[str] = set()
    for entry in get_resolved_traces().resolved_traces[first:]:
        if not is_secret_hint(entry.hint):
            continue
        value, hint = _parsed(entry.value), extract_inner_hint(entry.hint)
        if isinstance(entry.value, str) and not is_subclass(hint, ConnectionStringCredentials):
            secrets.add(entry.value)
        for name, text in _texts(value):
            if not is_credentials_inner_hint(hint) or re.search(_NAME, name, re.IGNORECASE):
                secrets.add(text)
            for pattern in (_URL_PASSWORD, _NAMED_SECRET):
                for found in pattern.finditer(text):
                    secret = found["secret"].strip("\"'")
                    secrets |= {secret, unquote(secret)}
    return secrets


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield all texts in a value that may be nested, each with the name it has there."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, each in cast("dict[Any, Any]", value).items():
            yield from _texts(each, str(key))
    elif isinstance(value, list | tuple):
        for each in cast("list[Any]", value):
            yield from _texts(each, name)


@functools.lru_cache(maxsize=16)
def _known(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """Return a pattern for all that these secrets can be written as; lines of a log come with the same ones."""
    forms = {form for secret in secrets if len(secret) >= SHORTEST_SECRET for form in _forms(secret)}
    return re.compile("|".join(map(_matching, sorted(forms, key=len, reverse=True)))) if forms else None


def _forms(secret: str) -> Iterator[str]:
    yield secret
    yield repr(secret)[1:-1]
    yield json.dumps(secret)[1:-1]
    yield quote(secret, safe="")
    yield quote_plus(secret)
    # Of an address that is a secret, a web hook for example, the errors of HTTP clients name host and path apart.
    path = urlsplit(secret).path if secret.startswith(("http://", "https://")) else ""
    if len(path) >= SHORTEST_SURE_SECRET:
        yield path


def _matching(secret: str) -> str:
    pattern = re.escape(secret)
    is_mixed = any(map(str.isdigit, secret)) and any(map(str.isalpha, secret))
    is_sure = len(secret) >= (SHORTEST_MIXED_SECRET if is_mixed else SHORTEST_SURE_SECRET)
    return pattern if is_sure else rf"(?<!\w){pattern}(?!\w)"
