"""How a source is taken apart: which resources stay together, and what their pipelines are called."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dlt.extract import DltSource

from prefect_dlt.errors import ConfigurationError, NotASourceError, UnknownResourcesError

Decompose = Literal["none", "sequential", "parallel"]

LONGEST_NAME = 64
"""Characters of a derived pipeline name, so that the identifiers made of it fit everywhere."""


@dataclass(frozen=True)
class Component:
    """Resources of a source that are loaded together.

    Attributes:
        name: The resource that the others hang on; the only one, mostly.
        resources: All of them, in alphabetical order.
    """

    name: str
    resources: tuple[str, ...]


def decompose_mode(decompose: bool | str) -> Decompose:
    """Return the mode: True is "parallel", False is "none".

    Raises:
        ConfigurationError: If it is none of the modes.
    """
    if isinstance(decompose, bool):
        return "parallel" if decompose else "none"
    if decompose not in get_args(Decompose):
        modes = ", ".join(map(repr, get_args(Decompose)))
        raise ConfigurationError("decompose", decompose, f"give True, False or one of {modes}")
    return decompose  # type: ignore[return-value]


def select(source: Any, resources: list[str] | tuple[str, ...] | None) -> Any:
    """Return the source with only these resources selected; all that it selects itself for None.

    Raises:
        NotASourceError: If resources are named and `source` is no dlt source.
        UnknownResourcesError: If the source does not have one of them.
    """
    if resources is None:
        return source
    if not isinstance(source, DltSource):
        raise NotASourceError(type(source).__name__)
    known = tuple(source.resources)
    if unknown := tuple(name for name in resources if name not in known):
        raise UnknownResourcesError(source.name, unknown, known)
    if not resources:
        expected = f"name at least one of {', '.join(known)}, or leave it out"
        raise ConfigurationError("resources", list(resources), expected)
    return source.with_resources(*resources)


def components(source: Any) -> list[Component]:
    """Return the parts of a source that share nothing: dlt's strongly connected components, by name.

    A transformer stays with the resource that feeds it, so that nothing is extracted twice.

    Raises:
        NotASourceError: If `source` is no dlt source.
    """
    if not isinstance(source, DltSource):
        raise NotASourceError(type(source).__name__)
    parts: list[Component] = []
    for part in source.decompose("scc"):
        names = tuple(sorted(part.resources.selected))
        roots = [name for name in names if not part.resources[name].is_transformer]
        parts.append(Component(name=min(roots or names), resources=names))
    return sorted(parts, key=lambda part: part.name)


def derived_name(pipeline_name: str, component: str) -> str:
    """Return the name of the pipeline of a component.

    The same names always give the same result, whatever else the source has. Letters, digits and underscores stay as
    they are; a name that holds anything else, or is too long, is cut and gets a digest of the original.
    """
    name = f"{pipeline_name}__{component}"
    clean = re.sub(r"\W", "_", name, flags=re.ASCII)
    if clean == name and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{clean[: LONGEST_NAME - 9]}_{digest}"
