"""What the flow run of a component tells about itself, as JSON, to the flow that waits for it and to later ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, cast

from prefect_dlt.record import TableRow
from prefect_dlt.results import ComponentResult


@dataclass(frozen=True)
class Begun:
    """A load package that a flow run has begun to load.

    Attributes:
        load_id: Its load id.
        tables: The tables that rows are added to, and not replaced or merged by a key: each with those nested in it,
            as chains from the root down, such as ("orders", "orders__items").
    """

    load_id: str
    tables: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Told:
    """What is known of the flow run of a component, beside its state.

    Attributes:
        home: The working directory, as told from all others.
        beats: How often it has said that it is alive.
        begun: The load packages it has begun to load.
        taken_back: Load ids of those whose rows another flow run takes back, to load them anew.
        is_settled: Whether that is done.
        result: What became of the component; None before the end.
    """

    home: str = ""
    beats: int = 0
    begun: tuple[Begun, ...] = ()
    taken_back: tuple[str, ...] = ()
    is_settled: bool = False
    result: ComponentResult | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON; without dlt's info about the load, which only Python can write down."""
        told: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        told["begun"] = [[each.load_id, each.tables] for each in self.begun]
        if self.result is not None:
            names = [each.name for each in fields(self.result) if each.name != "load_info"]
            told["result"] = {name: getattr(self.result, name) for name in names}
        return cast("dict[str, Any]", json.loads(json.dumps(told, default=_as_json)))

    @classmethod
    def of(cls, data: Any) -> Told:
        """Return what JSON tells; what is not told there, or by another version of this package, is left out."""
        if isinstance(data, str):
            data = json.loads(data)
        if not isinstance(data, Mapping):
            return cls()
        given = cast("Mapping[str, Any]", data)
        known: dict[str, Any] = {each.name: given[each.name] for each in fields(cls) if each.name in given}
        known["begun"] = tuple(
            Begun(load_id, tuple(tuple(chain) for chain in tables)) for load_id, tables in known.get("begun", ())
        )
        known["taken_back"] = tuple(known.get("taken_back", ()))
        known["result"] = _result(known.get("result"))
        return cls(**known)


def _as_json(value: Any) -> Any:
    if isinstance(value, TableRow):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _result(told: Any) -> ComponentResult | None:
    if told is None:
        return None
    known: dict[str, Any] = {each.name: told[each.name] for each in fields(ComponentResult) if each.name in told}
    for name, value in known.items():
        if name == "tables":
            columns = {each.name for each in fields(TableRow)}
            known[name] = tuple(TableRow(**{key: row[key] for key in columns if key in row}) for row in value)
        elif isinstance(value, list):
            known[name] = tuple(cast("Sequence[Any]", value))
        elif name in _TIMES and value is not None:
            known[name] = datetime.fromisoformat(value)
    return ComponentResult(**known)


_TIMES = frozenset(each.name for each in fields(ComponentResult) if "datetime" in str(each.type))


def chains_added_to(tables: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """Return the tables of a schema that rows are only added to, each as the chain that it is nested in.

    A table that is replaced, or merged by a key, holds each row once however often it is loaded.
    """
    return tuple(sorted(filter(None, (_chain(tables, name) for name in tables if not name.startswith("_dlt")))))


def _chain(tables: Mapping[str, Mapping[str, Any]], name: str) -> tuple[str, ...]:
    chain = [name]
    while (parent := tables[chain[0]].get("parent")) in tables:
        chain.insert(0, str(parent))
    root = tables[chain[0]]
    disposition = root.get("write_disposition") or "append"
    columns: Iterable[Mapping[str, Any]] = root.get("columns", {}).values()
    has_keys = any(column.get("primary_key") or column.get("merge_key") for column in columns)
    is_added_to = disposition == "append" or (disposition == "merge" and not has_keys)
    return tuple(chain) if is_added_to else ()


def is_stale(pending_load_ids: Iterable[str], home: str, told: Sequence[Told], completed: Sequence[bool]) -> bool:
    """Tell whether what is pending in a working directory was loaded anew elsewhere since, or is about to be.

    Args:
        pending_load_ids: What waits there.
        home: The working directory, as told from all others.
        told: What earlier flow runs of the component have told, the latest first.
        completed: Which of them have completed.
    """
    if set(pending_load_ids) & {load_id for each in told for load_id in each.taken_back}:
        return True
    for each, is_completed in zip(told, completed, strict=True):
        if each.home == home:
            return False
        if each.home and is_completed:
            return True
    return False
