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
)
from dlt.common.typing import is_subclass

from prefect_dlt.markdown import LONGEST_BLOCK, left_out

MASK = "***"

SHORTEST_SECRET = 4
"""Characters of a value that is masked where it stands as a word of its own; a shorter one would hit ordinary words."""

SHORTEST_SURE_SECRET = 12
"""Characters of a value that is masked even inside another word: no "postgres" in "postgresql", but any long token."""

SHORTEST_MIXED_SECRET = 8
"""The same for a value of both letters and digits, which is no ordinary word."""

LONGEST_SIDE = LONGEST_BLOCK
"""Characters of a long text that are left at each end: twice of what a report shows there."""

MARGIN = 8_192
"""Characters beyond each cut that are looked at and left out: what a cut tears apart is found by no pattern. A longer
secret that is known widens it."""

# Text comes from anywhere and may be long, so each pattern is linear: it starts only at the beginning of a word, and
# what it repeats cannot be read in two ways.

# The password of an address: up to the last @ before a slash, and further to an @ behind one where nothing that ends an
# address stands between; or, when there is none, up to the next @ within reach. Digits before a slash are a port, not a
# password.
_USER = r"(?P<head>://[^\s:/?#]*:)(?!\d{1,5}(?:[/?#\"'<>\s]|$))"
_WITH_SLASH = r"(?:@(?:[^\s?#:\"'<>,;&]|:(?!//))*)?"
_URL_PASSWORD = re.compile(rf"{_USER}(?P<secret>[^\s/?#]*{_WITH_SLASH}(?=@)|[^\s@]{{1,200}}(?=@))")
_URL_PASSWORD_AT_LEAST = re.compile(rf"{_USER}(?P<secret>[^\s/?#]*(?=@))")

_WORD = r"(?:pass(?:word|phrase|code|wd)|pwd|secrets?|token)"
_KIND = r"(?:api|access|account|private|secret|signing)"
_NAME = (
    rf"(?:{_WORD}|credentials?|{_KIND}[_-]?key"
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

# "The password is hunter2": quoted, or of both letters and digits, unlike "is required".
_SAID = re.compile(
    rf"(?P<head>(?<![\w-])(?:{_WORD}|{_KIND}[ _-]?key)[ \t]+(?:is|was)[ \t]*:?[ \t]+)"
    r"(?P<secret>(?:\"[^\"\n]{1,200}\"|'[^'\n]{1,200}')|(?=\S{0,200}\d)(?=\S{0,200}[A-Za-z])[^\s,;]{4,})",
    re.IGNORECASE,
)
# Headers with cookies, and cookies as the clients of HTTP write them.
_COOKIE = re.compile(
    r"(?P<head>(?<![\w-])(?:set-)?cookies?(?:\\*[\"'])?[ \t]*[:=][ \t]*(?:\\*[\"'])?)"
    r"(?P<secret>(?=[^\s=;,\"']{1,100}=)[^\r\n\"']+)"
    r"|(?P<head_of_one><Cookie [^\s=]{1,100}=)(?P<one>[^\s>]+)",
    re.IGNORECASE,
)

# What says by its shape what it is: keys in PEM, AWS key ids, JSON web tokens, GitHub, GitLab, Slack, Stripe, OpenAI,
# Anthropic, Google, Databricks, npm, Hugging Face, Grafana, PyPI, web hooks of Slack and Discord, and the signature in
# an address of Azure.
_SHAPED = re.compile(
    r"(?P<head>)(?P<secret>-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|xapp-|sk_live_|sk_test_|rk_live_)[\w-]{16,}"
    r"|(?<![\w-])sk-(?:proj|ant|svcacct|admin|or)-[\w-]{16,}|(?<![\w-])sk-(?=[\w-]*\d)[\w-]{20,}"
    r"|\bAIza[\w-]{30,}"
    r"|\bdapi[0-9a-f]{32}(?:-\d)?\b"
    r"|\b(?:npm_|hf_)[A-Za-z0-9]{30,}"
    r"|\bglsa_\w{20,}"
    r"|(?<![\w-])pypi-(?:AgE[\w-]{8,}|[\w-]{40,})"
    r"|(?<=/services/)T\w{2,}/B\w{2,}/\w{4,}"
    r"|(?<=/api/webhooks/)\d+/[\w-]{8,}"
    r"|(?<=[?&]sig=)[^&\s\"']+)"
)
# In this order, each where one of these is in the text in lower case: to look for them takes a fraction of the time,
# and most lines of a log have none.
_PATTERNS = (
    (
        _SHAPED,
        (
            *("-----begin", "akia", "asia", "eyj", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-"),
            *("xox", "xapp-", "sk_", "rk_", "sk-", "aiza", "dapi", "npm_", "hf_", "glsa_", "pypi-", "/services/"),
            *("/webhooks/", "sig="),
        ),
    ),
    (_COOKIE, ("cookie",)),
    (_URL_PASSWORD, ("://",)),
    (_NAMED_SECRET, ("=", ":")),
    (_SAID, (" is", " was", "\tis", "\twas")),
    (_OPTION, ("--",)),
    (_BEARER, ("bearer",)),
)

# In a document of configuration: what looks like a token, and names of what may look like one and is none.
_TOKEN = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w+=-]{16,}")
_ORDINARY_NAME = re.compile(
    r"(?:host|server|account|database|schema|warehouse|role|user|name|email|region|project|bucket|url|path|type|_id)(?:_?name)?$",
    re.IGNORECASE,
)


def redact(text: str, known_secrets: Iterable[str] = ()) -> str:
    """Return the text with secrets replaced by three asterisks.

    Masked are the values in `known_secrets`, also as Python, JSON and addresses write them, passwords in addresses,
    values whose name says that they are secret, and tokens that are known by their shape. Redact before anything else
    is done to a text: what is escaped, cut or put on one line may no longer be recognised.

    Of a text longer than twice `LONGEST_SIDE`, the beginning and the end are returned, each at most that long, with a
    line that says how much was left out: a message of many megabytes would hold up the run.
    """
    return redaction(known_secrets)(text)


def redaction(known_secrets: Iterable[str] = ()) -> Callable[[str], str]:
    """Return a function that redacts as `redact` does, for many texts: what it needs is prepared once."""
    forms = _forms_of(frozenset(known_secrets))

    @functools.cache
    def redacted(text: str) -> str:
        if len(text) <= 2 * LONGEST_SIDE:
            return _masked(text, forms)
        return _ends(text, forms)

    return redacted


def _masked(text: str, forms: tuple[str, ...]) -> str:
    # Few of the secrets are in a text, if any, and to look for one by itself is many times faster than for all at once.
    if present := tuple(form for form in forms if form in text):
        text = _known(present).sub(MASK, text)
    lower = text.lower()
    for pattern, needed in _PATTERNS:
        if any(each in lower for each in needed):
            text = pattern.sub(_with_mask, text)
    return text


def _with_mask(found: re.Match[str]) -> str:
    return f"{found['head'] if found['head'] is not None else found['head_of_one']}{MASK}"


def _ends(text: str, forms: tuple[str, ...]) -> str:
    """Return beginning and end of a long text, masked, with nothing of a secret that the cuts go through."""
    margin = max(MARGIN, len(forms[0]) if forms else 0)
    window = LONGEST_SIDE + margin
    # What a cut tears apart is as it was, within the margin; all else has been masked by the time that goes.
    head = _masked(text[:window], forms)[:-margin]
    tail = _masked(text[-window:], forms)[margin:]
    # At the end of the head a torn value still has its name. The tail begins in the middle of something that may be
    # longer than the margin, such as a token on a line of its own.
    if (torn := re.search(r"\s\S{0,100}\Z", head)) is not None:
        head = head[: torn.start()]
    torn = re.search(r"\s", tail)
    tail = tail[torn.end() :] if torn else ""
    return f"{head}\n{left_out(len(text) - len(head) - len(tail))}\n{tail}"


def redacted_traceback(error: BaseException, known_secrets: Iterable[str] = ()) -> str:
    """Return the traceback of an error, and of what caused it, with secrets masked."""
    return redact("".join(traceback.format_exception(error)), known_secrets)


def secrets_in(value: Any, hint: Any) -> set[str]:
    """Return the secret values in a value that dlt takes for a secret.

    Of an address, only the password is secret, as it is written there and unquoted; of credentials in JSON, only what
    their names say; of any other secret in JSON, every text in it.

    Args:
        value: The value, as it is configured or given in code.
        hint: dlt's type hint for it.
    """
    secrets: set[str] = set()
    inner = extract_inner_hint(hint)
    if isinstance(value, str) and not is_subclass(inner, ConnectionStringCredentials):
        secrets.add(value)
    # An engine of SQLAlchemy's may be given in place of credentials.
    address: Any = getattr(value, "url", None)
    if isinstance(password := getattr(address, "password", None), str):
        secrets.add(password)
    for name, text in _texts(_parsed(value)):
        if not is_credentials_inner_hint(inner) or _is_named_secret(name):
            secrets.add(text)
        secrets.update(_given_away(text))
    return secrets


def secrets_in_document(document: Any) -> set[str]:
    """Return the secret values in a document of configuration that may hold secrets, `secrets.toml` for example.

    It holds hosts, users and names as well. Secret is what its name says to be, the password of an address, and what
    looks like a token: long, of both letters and digits, and in one piece. dlt says the rest when it is used.
    """
    secrets: set[str] = set()
    for name, text in _texts(document):
        inside = set(_given_away(text))
        # Credentials may be the name of a file, or an address of which only the password is secret.
        is_named = _is_named_secret(name) and not inside and not name.lower().endswith("credentials")
        if is_named or (_TOKEN.fullmatch(text) and not _ORDINARY_NAME.search(name)):
            secrets.add(text)
        secrets |= inside
    return secrets


def _is_named_secret(name: str) -> bool:
    return re.search(_NAME, name, re.IGNORECASE) is not None


def _given_away(text: str) -> Iterator[str]:
    """Yield the passwords of addresses in a text, and values that their names give away, as written and unquoted."""
    for pattern in (_URL_PASSWORD, _URL_PASSWORD_AT_LEAST, _NAMED_SECRET):
        for found in pattern.finditer(text):
            secret = found["secret"].strip("\"'")
            yield from (secret, unquote(secret))


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
def _forms_of(secrets: frozenset[str]) -> tuple[str, ...]:
    """Return all that these secrets can be written as, longest first; lines of a log come with the same ones."""
    forms = {form for secret in secrets if len(secret) >= SHORTEST_SECRET for form in _forms(secret)}
    return tuple(sorted(forms, key=len, reverse=True))


@functools.lru_cache(maxsize=64)
def _known(forms: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(_matching, forms)))


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
