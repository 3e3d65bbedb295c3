"""Keys of artifacts: the same for the same pipeline in every run, and never the same for two."""

from __future__ import annotations

import hashlib
import re

LONGEST_KEY = 59
"""Characters of an artifact's key."""

LONGEST_NAME = 30
"""Characters of an artifact's own name that are kept whole when its pipeline's is cut."""

_PLAIN = re.compile(r"[a-z0-9]([a-z0-9_]*[a-z0-9])?")


def artifact_key(*names: str) -> str:
    """Join names into a key that Prefect accepts: lower-case letters, digits and dashes, below 60 characters.

    Underscores become dashes. A name that holds anything but small letters, digits and underscores, a dash for example,
    gets a digest of the original besides, so that no two names share a key. So do names that are too long: they are
    cut, all but the last one, which tells the artifacts of a pipeline apart and stands behind the digest.
    """
    key = _dashed("_".join(names))
    if _PLAIN.fullmatch("_".join(names)) and len(key) <= LONGEST_KEY:
        return key
    *first, last = names
    if first and len(key) > LONGEST_KEY - 9 and len(last) <= LONGEST_NAME and _PLAIN.fullmatch(last):
        return _cut("_".join(first), _digest(*first), _dashed(last))
    return _cut("_".join(names), _digest(*names))


def _dashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "-", name.lower())


def _digest(*names: str) -> str:
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:8]


def _cut(name: str, *endings: str) -> str:
    """Return a key of a name, as far as there is room for it, and of endings."""
    ending = "-".join(endings)
    return f"{_dashed(name)[: LONGEST_KEY - 1 - len(ending)].strip('-')}-{ending}".strip("-")
