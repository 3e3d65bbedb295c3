"""How a source is taken apart: which resources stay together, and what their pipelines are called."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dlt.common.utils import graph_edges_to_nodes, graph_find_scc_nodes
from dlt.extract import DltSource

from prefect_dlt.errors import ConfigurationError, NotASourceError, UnknownResourcesError

Mode = Literal["none", "sequential", "parallel"]
Decompose = Literal["none", "sequential", "parallel", "auto"]

LONGEST_NAME = 64
"""Characters of a derived pipeline name, so that the identifiers made of it fit everywhere."""

LONGEST_STAGING_NAME = 24
"""Characters that the name of a component adds to that of a staging dataset; dlt shortens the whole where it must."""

_DIGITS = 8
_PLAIN_PIPELINE = re.compile(r"[a-zA-Z0-9_]+")
# No two underscores in a row, so that the last two in a derived name are where it parts; and no digest.
_PLAIN_COMPONENT = re.compile(rf"(?![0-9a-f]{{{_DIGITS}}}$)[a-z0-9]+(?:_[a-z0-9]+)*_?")

# A destination's naming convention leaves such names as they are; and no digest at the beginning.
_PLAIN_STAGING = re.compile(rf"(?![0-9a-f]{{{_DIGITS}}}(?:_|$))[a-z0-9]+(?:_[a-z0-9]+)*")


@dataclass(frozen=True)
class Component:
    """Resources of a source that are loaded together.

    Attributes:
        name: The resource that the others hang on, whether it is loaded itself or not; the only one, mostly.
        resources: All that are loaded, in alphabetical order.
    """

    name: str
    resources: tuple[str, ...]


def decompose_mode(decompose: bool | str) -> Decompose:
    """Return the mode, or "auto": True is "parallel", False is "none".

    Raises:
        ConfigurationError: If it is none of the modes.
    """
    if isinstance(decompose, bool):
        return "parallel" if decompose else "none"
    if decompose not in get_args(Decompose):
        modes = ", ".join(map(repr, get_args(Decompose)))
        raise ConfigurationError("decompose", decompose, f"give True, False or one of {modes}")
    return decompose  # type: ignore[return-value]


def select(source: Any, resources: Sequence[str] | None, members: Collection[str] = ()) -> Any:
    """Return the source with only these resources selected; all that it selects itself for None.

    Args:
        source: The source.
        resources: Names of resources.
        members: All that the source is to have in the end, where these are known; it may have more by itself.

    Raises:
        NotASourceError: If resources are named and `source` is no dlt source.
        UnknownResourcesError: If the source does not have one of them.
        ConfigurationError: If none is named, or the names are no list.
    """
    if resources is None:
        return source
    if not isinstance(source, DltSource):
        raise NotASourceError(type(source).__name__)
    if isinstance(resources, str):
        raise ConfigurationError("resources", resources, "give a list of names")
    known = tuple(source.resources)
    if unknown := tuple(name for name in resources if name not in known):
        raise UnknownResourcesError(source.name, unknown, known)
    if not resources:
        expected = f"name at least one of {', '.join(known)}, or leave it out"
        raise ConfigurationError("resources", list(resources), expected)
    if not members:
        return source.with_resources(*resources)
    # As that does, which copies all resources, for each part those of all others too: 50 ms each of 1,000 parts.
    kept = [resource for name, resource in source.resources.items() if name in members or name in resources]
    part = DltSource(source.schema.clone(), source.section, kept)
    part.resources.select(*resources)
    return part


def components(source: Any) -> list[Component]:
    """Return the parts of a source that share nothing: dlt's strongly connected components, by name.

    A transformer stays with the resource that feeds it, so that nothing is extracted twice.

    Raises:
        NotASourceError: If `source` is no dlt source.
    """
    if not isinstance(source, DltSource):
        raise NotASourceError(type(source).__name__)
    # As source.decompose("scc") does, which copies the whole source for each part: 18 s for 1,000 resources.
    edges = source.resources.selected_dag
    selected = set(source.resources.selected)
    fed = {child for parent, child in edges if parent != child}
    roots = {parent for parent, _ in edges if parent not in fed}
    # The root gives the name: which of its transformers are selected may differ from run to run, and the pipeline that
    # remembers their state must not.
    parts = [
        Component(name=min(nodes & roots), resources=tuple(sorted(nodes & selected)))
        for nodes in graph_find_scc_nodes(graph_edges_to_nodes(edges, directed=False))
    ]
    return sorted(parts, key=lambda part: part.name)


def all_components(source: Any) -> list[Component]:
    """Return the parts of a source with all of its resources, those that it does not select as well.

    Raises:
        NotASourceError: If `source` is no dlt source.
    """
    return components(source.with_resources(*source.resources) if isinstance(source, DltSource) else source)


def derived_name(pipeline_name: str, component: str) -> str:
    """Return the name of the pipeline of a component.

    The same names always give the same result, whatever else the source has, and no two give the same one, not even on
    a file system that ignores case. Plain names stay as they are; any other, or one that is too long, is cut and gets a
    digest of the original.
    """
    name = f"{pipeline_name}__{component}"
    if _PLAIN_PIPELINE.fullmatch(pipeline_name) and _PLAIN_COMPONENT.fullmatch(component) and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(f"{pipeline_name}\0{component}".encode()).hexdigest()[:_DIGITS]
    return f"{re.sub(r'[^a-zA-Z0-9_]', '_', name)[: LONGEST_NAME - _DIGITS - 2]}__{digest}"


def staging_name(component: str) -> str:
    """Return what the staging area of a component is called beside those of the others; no two are called the same."""
    if _PLAIN_STAGING.fullmatch(component) and len(component) <= LONGEST_STAGING_NAME:
        return component
    digest = hashlib.sha256(component.encode()).hexdigest()[:_DIGITS]
    # At its beginning, where no destination cuts it off.
    return f"{digest}_{re.sub(r'[^a-z0-9_]', '_', component.lower())[: LONGEST_STAGING_NAME - _DIGITS - 1]}".rstrip("_")
