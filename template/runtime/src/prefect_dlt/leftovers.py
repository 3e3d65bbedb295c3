"""Put a working directory in order that a process left while extract or normalize moved a package.

dlt moves a package from one step to the next in several file operations. Whoever is killed between two of them leaves
a package in two places, a state that was packaged and not saved, or a package that has been deleted in part; dlt then
fails for good, extracts rows again that it has, or loses a package. Loading is looked after by `recovery`.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from dlt.common.schema import Schema
from dlt.common.storages import FileStorage, LoadStorage, NormalizeStorage, PackageStorage
from dlt.common.storages.configuration import LoadStorageConfiguration, NormalizeStorageConfiguration
from dlt.common.versioned_state import decompress_state, json_decode_state
from dlt.pipeline.pipeline import Pipeline
from dlt.pipeline.state_sync import mark_state_extracted, migrate_state_to_current

_UNWRITTEN = re.compile(r"[0-9a-f]{16}")


def mend_folders(pipeline: Pipeline) -> None:
    """Make the folders that dlt had not made yet when it was killed, and remove a schema that it had not written yet.

    Without these folders nobody can tell what is pending, and with that schema dlt fails at each further run. To be
    called before anything is asked of the pipeline.

    Args:
        pipeline: The pipeline; nobody else may be working in its directory.
    """
    folder = Path(pipeline.working_dir)
    # They are made one after the other, and dlt takes the first one for all.
    for step, stages in (("normalize", ("extracted",)), ("load", ("new", "normalized", "loaded"))):
        if (folder / step).is_dir():
            for stage in stages:
                (folder / step / stage).mkdir(exist_ok=True)
    # dlt writes a file under a random name and moves it into place; it takes each file in this folder for a schema.
    unwritten = [path for path in (folder / "schemas").glob("*") if _UNWRITTEN.fullmatch(path.name)]
    for path in unwritten:
        path.unlink()
    if unwritten:
        # The pipeline has put their names into its state when it was made; without them it is saved again.
        with pipeline.managed_state():
            pass


def tidy_up(pipeline: Pipeline) -> None:
    """Finish what an extract or normalize that was killed had begun to move or to delete, and save what it had not.

    Args:
        pipeline: The pipeline; nobody else may be working in its directory.
    """
    folder = Path(pipeline.working_dir)
    extracted = NormalizeStorage(False, NormalizeStorageConfiguration(str(folder / "normalize"))).extracted_packages
    load = LoadStorage(False, [], LoadStorageConfiguration(str(folder / "load")))
    if not Path(extracted.storage.storage_path).is_dir():
        return
    for load_id in extracted.list_packages():
        if _is_moved_on(load, load_id) or _is_deleted_in_part(extracted, load_id):
            extracted.delete_package(load_id)
    _finish_commit(pipeline, extracted)
    pending = [(extracted, load_id) for load_id in extracted.list_packages()]
    if load.is_storage_ready():
        pending += [(load.normalized_packages, load_id) for load_id in load.list_normalized_packages()]
    pending.sort(key=lambda each: each[1])
    schemas = [packages.load_schema(load_id) for packages, load_id in pending]
    for schema in schemas:
        _save_schema(pipeline, schema)
    for packages, load_id in pending:
        if doc := packages.get_load_package_state(load_id).get("pipeline_state"):
            _save_state(pipeline, doc)
    if schemas and not pipeline.default_schema_name:
        # Without one, normalize and load do nothing at all.
        pipeline.default_schema_name = schemas[0].name
        with pipeline.managed_state():
            pass


def _is_moved_on(load: LoadStorage, load_id: str) -> bool:
    """Tell whether a package has been normalised: it is moved on in one go, and deleted where it was after that."""
    if not load.is_storage_ready():
        return False
    return load_id in load.list_normalized_packages() or load_id in load.list_loaded_packages()


def _is_deleted_in_part(extracted: PackageStorage, load_id: str) -> bool:
    """Tell whether a package was about to be deleted: it is put in place in one go, with all that it needs."""
    folder = Path(extracted.storage.make_full_path(extracted.get_package_path(load_id)))
    return not (folder / PackageStorage.SCHEMA_FILE_NAME).exists() or not (folder / "new_jobs").exists()


def _finish_commit(pipeline: Pipeline, extracted: PackageStorage) -> None:
    """Commit the packages of an extract that was killed after it had committed the first of several.

    A source of several schemas makes several packages. With the first one the new state is loaded, so that nobody would
    extract the others again. Packages of one extract have begun from the same state, and what is saved is still that.
    """
    began = {_began_with(extracted, load_id): load_id for load_id in reversed(extracted.list_packages())}
    saved = pipeline.state.get("_version_hash")
    if saved not in began or saved is None:
        return
    root = Path(extracted.storage.storage_path).parent
    for folder in (path for path in root.iterdir() if path.is_dir() and path.name != NormalizeStorage.EXTRACTED_FOLDER):
        packages = PackageStorage(FileStorage(str(folder)), "new")
        load_ids = packages.list_packages()
        # An extract that never ended has a package without what it began with, or is older than what was committed.
        if load_ids and all(load_id > began[saved] and _began_with(packages, load_id) == saved for load_id in load_ids):
            for load_id in load_ids:
                (folder / load_id).rename(Path(extracted.storage.storage_path) / load_id)


def _began_with(packages: PackageStorage, load_id: str) -> str | None:
    """Return the hash of the state that was saved when a package was extracted."""
    with contextlib.suppress(FileNotFoundError):
        blob, _ = packages.load_pipeline_state(load_id)
        return json_decode_state(blob).get("_version_hash") if blob else None
    return None


def _save_schema(pipeline: Pipeline, schema: Schema) -> None:
    """Save a package's schema where the pipeline has none or an earlier one, which normalize would prefer."""
    name = schema.name
    if name not in pipeline.schemas or (pipeline.schemas[name].stored_version or 0) < (schema.stored_version or 0):
        pipeline.schemas.save_schema(schema)


def _save_state(pipeline: Pipeline, doc: Any) -> None:
    """Save the state that a package carries where the pipeline has another, unless that is newer.

    With an earlier one its rows would be extracted again. Of two of one age dlt, too, takes the one that is loaded.
    """
    saved = pipeline.state
    if doc["version"] < saved.get("_state_version", 0) or doc["version_hash"] == saved.get("_version_hash"):
        return
    state: Any = migrate_state_to_current(pipeline.pipeline_name, decompress_state(doc["state"]))
    pipeline.default_schema_name = pipeline.default_schema_name or state["default_schema_name"]
    with pipeline.managed_state() as changed:
        changed.update({key: value for key, value in state.items() if key != "_local"})  # pyright: ignore[reportCallIssue, reportArgumentType]
        mark_state_extracted(changed, state["_version_hash"])
