"""How much a pipeline does at a time and how large its files get, checked before anything uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from prefect_dlt.errors import ConfigurationError

MOST_WORKERS = 1_000
"""Threads or processes that one step of a pipeline may have; more than that is a slip."""

MOST_IN_A_FILE = 1_000_000_000_000
"""Rows, or bytes, that a file may be allowed; more than that is a slip."""

_ITEMS_AT_ONCE = 20
"""What dlt extracts at a time by default, however many workers there are."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What dlt is told of a pipeline's parallelism and of its files; what is None is left to dlt's configuration.

    Attributes:
        extract_workers: Threads that parallel resources and deferred functions are extracted in.
        normalize_workers: Processes that normalise; 1 for none but the pipeline's own.
        load_workers: Threads that load files; 1 for one file after the other.
        file_max_items: Rows after which a file is ended, of what is extracted and of what is normalised.
        file_max_bytes: Bytes after which a file is ended; the rows that are buffered together stay together.
        buffer_max_items: Rows that are held in memory before they are written, for each table.

    Raises:
        ConfigurationError: If a value is no whole number from 1 to `MOST_WORKERS`, or `MOST_IN_A_FILE`.
    """

    extract_workers: int | None = None
    normalize_workers: int | None = None
    load_workers: int | None = None
    file_max_items: int | None = None
    file_max_bytes: int | None = None
    buffer_max_items: int | None = None

    def __post_init__(self) -> None:
        for name in LIMITS:
            _check(name, getattr(self, name), MOST_WORKERS if name.endswith("_workers") else MOST_IN_A_FILE)

    def in_dlts_words(self) -> dict[tuple[str, str], int]:
        """Return the values that are set, by the section and the key that dlt's configuration has for them."""
        values = {
            ("extract", "workers"): self.extract_workers,
            # Of more workers than that, the others would have nothing to do.
            ("extract", "max_parallel_items"): _more_than(_ITEMS_AT_ONCE, self.extract_workers),
            ("normalize", "workers"): self.normalize_workers,
            ("load", "workers"): self.load_workers,
            ("data_writer", "file_max_items"): self.file_max_items,
            ("data_writer", "file_max_bytes"): self.file_max_bytes,
            ("data_writer", "buffer_max_items"): self.buffer_max_items,
        }
        return {place: value for place, value in values.items() if value is not None}


LIMITS = tuple(field.name for field in fields(Limits))
"""The limits by name, as they are given to tasks and flows."""


def limits_in(arguments: Mapping[str, Any]) -> Limits:
    """Return the limits that are among the arguments of a function.

    Raises:
        ConfigurationError: If one of them has a value that cannot work.
    """
    return Limits(**{name: arguments[name] for name in LIMITS})


def _check(name: str, value: Any, most: int) -> None:
    # True is an int as well, and says nothing of how many.
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most):
        raise ConfigurationError(name, value, f"give a whole number from 1 to {most:,}, or leave it out")


def _more_than(least: int, value: int | None) -> int | None:
    return value if value is not None and value > least else None
