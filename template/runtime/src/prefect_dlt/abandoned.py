"""What a flow run that ended elsewhere, on another machine for example, has left of a load package in the destination.

dlt keeps a package in the working directory until all of it is loaded. Where that directory is out of reach, nobody can
finish the package: state and schemas are restored from the destination, as they were before it, and its rows are
extracted anew. Those that it had already added to a table would then be there twice, so they are taken back before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from dlt.common.schema.typing import C_DLT_LOAD_ID
from dlt.common.utils import digest128
from dlt.destinations.exceptions import DatabaseTerminalException
from dlt.destinations.job_client_impl import SqlJobClientBase
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.loaded_rows import LoadedRows
from prefect_dlt.told import Begun, chains_added_to


def home_of(pipeline: Pipeline) -> str:
    """Return what tells the working directory of a pipeline, which keeps what is pending, from all others.

    That is written down beside it, where it stays when the directory is removed. The names of machine and directory
    would not do: containers have others each time, and may all have the same volume.
    """
    folder = Path(os.path.realpath(pipeline.working_dir))
    path = folder.with_name(f".{folder.name}.home")
    if not path.exists():
        _write_down(path, str(uuid4()))
    return path.read_text(encoding="utf-8")


def _write_down(path: Path, text: str) -> None:
    """Write a file that nobody sees unfinished, unless somebody else has written it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{text}")
    unfinished.write_text(text, encoding="utf-8")
    try:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(unfinished)
    except OSError:
        # Some file systems have no links; the last one to write it is then right.
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def place_of(pipeline: Pipeline) -> str:
    """Return where a pipeline loads to: destination, dataset, and a digest of the address, which is nobody's business.

    Flow runs of one pipeline that load to different places, for development and in production, leave nothing to one
    another.
    """
    config: Any = pipeline.destination_client().config
    address: str | None = None
    # Of some destinations dlt cannot tell it.
    with contextlib.suppress(Exception):
        address = config.data_location()
    return f"{config.destination_name}:{pipeline.dataset_name or ''}:{digest128(str(address))}"


def waiting_load_ids(pipeline: Pipeline) -> list[str]:
    """Return the load packages that wait in the working directory."""
    return [*pipeline.list_extracted_load_packages(), *pipeline.list_normalized_load_packages()]


def begun(pipeline: Pipeline) -> list[Begun]:
    """Return the load packages that a load step is about to load."""
    found: list[Begun] = []
    for load_id in pipeline.list_normalized_load_packages():
        package = pipeline.get_load_package_info(load_id)
        found.append(Begun(load_id, chains_added_to(package.schema.tables)))
    return found


def take_back(pipeline: Pipeline, packages: Sequence[Begun]) -> list[str]:
    """Delete what load packages have added to tables, but for those that were loaded completely.

    Args:
        pipeline: A pipeline into the dataset; nobody else may be loading these packages.
        packages: The packages.

    Returns:
        What was deleted, a line for each table; and which tables do not tell the rows of a load.
    """
    if not packages:
        return []
    client = pipeline.destination_client()
    if not isinstance(client, SqlJobClientBase):
        load_ids = ", ".join(each.load_id for each in packages)
        return [f"{type(client).__name__} cannot delete what load {load_ids} may have left in its tables"]
    with client:
        return [line for package in packages for line in _take_back(client, package)]


def _take_back(client: SqlJobClientBase, package: Begun) -> list[str]:
    sql = cast("Any", client.sql_client)  # pyright: ignore[reportUnknownMemberType]
    naming = client.schema.naming
    loads = LoadedRows(client, client.schema.loads_table_name)
    if not loads.exists() or loads.count(naming.normalize_identifier("load_id"), package.load_id):
        return []
    key, parent_key, load = map(naming.normalize_identifier, ("_dlt_id", "_dlt_parent_id", C_DLT_LOAD_ID))
    lines: list[str] = []
    # From the outermost table inwards: a row that is nested in none that is there belonged to one that is gone now, or
    # was loaded before them.
    for chain in sorted(package.tables, key=len):
        rows = LoadedRows(client, chain[-1])
        if not rows.exists():
            continue
        rows.settle()
        names = [sql.make_qualified_table_name(name) for name in chain]
        condition, values = f"{sql.escape_column_name(load)} = %s", [package.load_id]
        if len(names) > 1:
            parent = f"{names[-2]}.{sql.escape_column_name(key)} = {names[-1]}.{sql.escape_column_name(parent_key)}"
            condition, values = f"NOT EXISTS (SELECT 1 FROM {names[-2]} WHERE {parent})", []  # noqa: S608 - escaped
        try:
            before = rows.count()
            sql.execute_sql(f"DELETE FROM {names[-1]} WHERE {condition}", *values)  # noqa: S608 - escaped names
            if deleted := before - rows.count():
                lines.append(f"Took back {deleted:,} rows of load {package.load_id} from table {chain[-1]!r}")
        except DatabaseTerminalException:
            # Arrow data has no such column by default.
            lines.append(f"Table {chain[-1]!r} does not tell which of its rows are of load {package.load_id}")
    return lines
