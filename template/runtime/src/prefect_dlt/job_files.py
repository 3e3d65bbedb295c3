"""Read back what a dlt job file holds, as far as it tells whether its rows have been loaded."""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from dlt.common.storages import FileStorage, ParsedLoadJobFileName

_STRING = r"'(?:[^'\\]|''|\\.)*'"
_VALUE = re.compile(rf"(?:[^,'()]|{_STRING}|\((?:[^()']|{_STRING})*\))+")
_QUOTED = re.compile(r"[A-Za-z]*'(.*)'", re.DOTALL)
_NAME = re.compile(r'"((?:[^"]|"")*)"|`([^`]*)`|\[([^\]]*)\]|(\w+)')
_ESCAPED = re.compile(r"''|\\(.)", re.DOTALL)


class UnreadableFileError(Exception):
    """A job file is not of the form that is expected; never leaves this package."""


class JobFile:
    """One file of rows as dlt's normalize step writes them, packed or not.

    Args:
        path: Where it is; its name is that of the job.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.format = str(ParsedLoadJobFileName.parse(path.name).file_format)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns; none where the format is not known, or the file holds no rows and no header."""
        try:
            return tuple(_COLUMNS[self.format](self.path)) if self.format in _COLUMNS else ()
        except UnreadableFileError:
            return ()

    def values(self, column: str) -> Iterator[str]:
        """Yield a column's values, as text.

        Raises:
            UnreadableFileError: If a row has no such value, or cannot be read.
        """
        for value in _VALUES[self.format](self.path, column, self.columns):
            if value is None:
                raise UnreadableFileError(self.path.name)
            yield str(value)

    def first_value(self, column: str) -> str | None:
        """Return the first value of one of its columns, as text; None where it holds no rows, or cannot be read."""
        with contextlib.suppress(UnreadableFileError):
            return next(self.values(column), None)
        return None

    @property
    def row_count(self) -> int | None:
        """How many rows it holds; None where only reading all of them would tell."""
        return _parquet(self.path).metadata.num_rows if self.format == "parquet" else None

    def has_rows(self) -> bool:
        """Tell whether it holds any row."""
        if (count := self.row_count) is not None:
            return count > 0
        # The header of a file of INSERT statements has two lines, that of a CSV file one.
        header = {"insert_values": 2, "csv": 1}.get(self.format, 0)
        return sum(1 for _, line in zip(range(header + 1), _lines(self.path), strict=False) if line.strip()) > header


def _lines(path: Path) -> Iterator[str]:
    with FileStorage.open_zipsafe_ro(str(path), "r", encoding="utf-8") as file:
        yield from file


def _parquet(path: Path) -> Any:
    # A file in Parquet was written with pyarrow, which is an extra of dlt.
    parquet: Any = importlib.import_module("pyarrow.parquet")
    return parquet.ParquetFile(path)


def _parquet_columns(path: Path) -> list[str]:
    return _parquet(path).schema_arrow.names


def _parquet_values(path: Path, column: str, columns: tuple[str, ...]) -> Iterator[Any]:
    del columns
    for batch in _parquet(path).iter_batches(columns=[column]):
        yield from batch.column(0).to_pylist()


def _insert_columns(path: Path) -> list[str]:
    header = next(_lines(path), "")
    names = header[header.find("(") + 1 : header.rfind(")")]
    return ["".join(groups).replace('""', '"') for groups in _NAME.findall(names)]


def _insert_values(path: Path, column: str, columns: tuple[str, ...]) -> Iterator[str]:
    place = columns.index(column)
    lines = _lines(path)
    next(lines, None)
    for line in lines:
        row = line.strip()
        # dlt writes one row a line: "(1,E'a'),", at the end ");", or "SELECT 1,'a' UNION ALL".
        if row in ("", "VALUES", ";"):
            continue
        row = row.rstrip(";").removesuffix(" UNION ALL").rstrip(",")
        row = row[1:-1] if row.startswith("(") else row.removeprefix("SELECT ")
        values = _VALUE.findall(row)
        # A string that was escaped in another way than the pattern knows splits its row elsewhere.
        if len(values) != len(columns) or len(",".join(values)) != len(row):
            raise UnreadableFileError(path.name)
        yield _literal(values[place], path)


def _literal(value: str, path: Path) -> str:
    quoted = _QUOTED.fullmatch(value.strip())
    if quoted is None:
        raise UnreadableFileError(path.name)
    return _ESCAPED.sub(_unescaped, quoted.group(1))


def _unescaped(found: re.Match[str]) -> str:
    character = found.group(1) or "'"
    return {"n": "\n", "r": "\r"}.get(character, character)


def _jsonl_columns(path: Path) -> list[str]:
    return list(json.loads(next((line for line in _lines(path) if line.strip()), "{}")))


def _jsonl_values(path: Path, column: str, columns: tuple[str, ...]) -> Iterator[Any]:
    del columns
    return (json.loads(line).get(column) for line in _lines(path) if line.strip())


def _csv_columns(path: Path) -> list[str]:
    return next(csv.reader(_lines(path)), list[str]())


def _csv_values(path: Path, column: str, columns: tuple[str, ...]) -> Iterator[Any]:
    place = columns.index(column)
    rows = csv.reader(_lines(path))
    next(rows, None)
    return (row[place] if len(row) > place else None for row in rows)


_COLUMNS: Mapping[str, Callable[[Path], list[str]]] = {
    "csv": _csv_columns,
    "insert_values": _insert_columns,
    "jsonl": _jsonl_columns,
    "parquet": _parquet_columns,
}
_VALUES: Mapping[str, Callable[[Path, str, tuple[str, ...]], Iterator[Any]]] = {
    "csv": _csv_values,
    "insert_values": _insert_values,
    "jsonl": _jsonl_values,
    "parquet": _parquet_values,
}
