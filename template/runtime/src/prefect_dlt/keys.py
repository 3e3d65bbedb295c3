"""Keys of artifacts: the same for the same pipeline in every run, and never the same for two."""

from __future__ import annotations

import hashlib
import re

LONGEST_KEY = 59
"""Characters of an artifact's key."""


def artifact_key(*names: str) -> str:
    """Join names into a key that Prefect accepts: lower-case letters, digits and dashes, below 60 characters.

    Underscores become dashes. A name that holds anything but small letters, digits and underscores, a dash for example,
    gets a digest of the original besides, so that no two names share a key; so does one that is too long.
    """
    joined = "_".join(names)
    key = re.sub(r"[^a-z0-9]", "-", joined.lower())
    if re.fullmatch(r"[a-z0-9][a-z0-9_]*[a-z0-9]", joined) and len(key) <= LONGEST_KEY:
        return key
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:8]
    return f"{key[: LONGEST_KEY - 9].strip('-')}-{digest}".strip("-")
