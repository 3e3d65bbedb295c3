"""Finish a load that was cut in the middle exactly once: find what its interrupted jobs had committed already.

dlt notes a job as done after the destination has committed it. What is cut in between runs again, and doubles its rows
or, where row ids are unique, fails for good. So before a package is loaded again, each job that may have run is looked
up: either its rows are in the destination, and it is noted as done where dlt itself would have noted it; or what it
wrote is taken back, and dlt runs it again. `docs/reference/recovery.md` says what is done where, and why.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlt.common.destination.client import JobClientBase
from dlt.common.destination.exceptions import DestinationTerminalException
from dlt.common.destination.utils import resolve_merge_strategy
from dlt.common.schema.typing import TColumnProp
from dlt.common.schema.utils import (
    get_columns_names_with_prop,
    get_first_column_name_with_prop,
    get_nested_tables,
    get_root_table,
)
from dlt.common.storages import LoadStorage, ParsedLoadJobFileName
from dlt.common.storages.configuration import LoadStorageConfiguration
from dlt.destinations.job_client_impl import SqlJobClientBase, SqlJobClientWithStagingDataset
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.job_files import UnreadableFileError
from prefect_dlt.loaded_rows import LoadedRows, batches
from prefect_dlt.package_jobs import PackageJobs
from prefect_dlt.record import Recovered

logger = logging.getLogger("prefect_dlt")

ATOMIC = ("duckdb", "postgres")
"""Destinations in which a job is one transaction, so that the first rows of a file tell what became of all."""

OPEN_FORMATS = ("delta", "iceberg")
"""Table formats in which a file that is loaded again is appended again."""


def recover(pipeline: Pipeline) -> list[Recovered]:
    """Note jobs of pending packages as done whose rows have been loaded, and take back what others wrote.

    Args:
        pipeline: The pipeline; nobody else may be loading its packages.

    Returns:
        What was found, for each package in which anything was.

    Raises:
        PipelineStepFailed: If the destination could not be asked; as a failure of the load step.
    """
    storage = LoadStorage(False, [], LoadStorageConfiguration(str(Path(pipeline.working_dir) / "load")))
    packages = storage.list_normalized_packages() if storage.is_storage_ready() else ()
    found = [_recover_package(pipeline, storage, load_id) for load_id in packages]
    return [each for each in found if each]


def _recover_package(pipeline: Pipeline, storage: LoadStorage, load_id: str) -> Recovered:
    found = Recovered(load_id)
    try:
        jobs = PackageJobs(pipeline, storage, load_id)
        if jobs.move_if_completed():
            found.completed = True
        elif jobs.may_have_begun():
            _look_up(pipeline, jobs, found)
    except Exception as error:
        raise PipelineStepFailed(pipeline, "load", load_id, error) from error
    return found


def _look_up(pipeline: Pipeline, jobs: PackageJobs, found: Recovered) -> None:
    interrupted = jobs.interrupted()
    if not interrupted and not jobs.all_done():
        return
    # With the schema of the package, as dlt loads it; the pipeline's own may be further on.
    client = pipeline.destination.client(jobs.schema, pipeline.destination_client(jobs.schema.name).config)
    if not isinstance(client, SqlJobClientBase):
        found.unsure |= {job.table_name for job in interrupted if not _overwrites(client, job)}
        return
    by_table: dict[str, list[ParsedLoadJobFileName]] = defaultdict(list)
    for job in interrupted:
        by_table[job.table_name].append(job)
    with client:
        for name, of_table in by_table.items():
            _recover_table(client, jobs, found, name, of_table)
        if jobs.all_done():
            # dlt says so itself, once more, when it has found that nothing is left to load.
            load_id = jobs.schema.naming.normalize_identifier("load_id")
            LoadedRows(client, jobs.schema.loads_table_name).delete(load_id, jobs.load_id)


def _overwrites(client: JobClientBase, job: ParsedLoadJobFileName) -> bool:
    """Tell whether a job that runs again writes over what it wrote: a file of its own name."""
    table_format = client.prepare_load_table(job.table_name).get("table_format")
    return client.config.destination_type.endswith("filesystem") and table_format not in OPEN_FORMATS


def _recover_table(
    client: SqlJobClientBase,
    jobs: PackageJobs,
    found: Recovered,
    name: str,
    interrupted: Sequence[ParsedLoadJobFileName],
) -> None:
    table = _Table(client, jobs, found, name)
    try:
        for job in interrupted:
            if job.file_format == "sql":
                table.recover_follow_up(job)
        table.recover_rows([job for job in interrupted if jobs.loads_rows(job)])
    except DestinationTerminalException:
        # One that cannot delete, for example. To ask again would get the same answer, and block the package for good.
        logger.warning("Table %r of load %s cannot be looked at", name, jobs.load_id, exc_info=True)
        found.unsure.add(name)


class _Table:
    """A table that interrupted jobs of a package load."""

    def __init__(self, client: SqlJobClientBase, jobs: PackageJobs, found: Recovered, name: str) -> None:
        self._client = client
        self._jobs = jobs
        self._found = found
        self._name = name
        self._tables: Any = client.schema.tables
        root: Any = get_root_table(self._tables, name)
        self._root: Any = client.prepare_load_table(root["name"])
        self._strategy = resolve_merge_strategy(self._tables, root, client.capabilities)
        self._is_atomic = client.config.destination_type.rpartition(".")[2] in ATOMIC
        self._is_staged = isinstance(
            client, SqlJobClientWithStagingDataset
        ) and client.should_load_data_to_staging_dataset(name)
        self._rows = LoadedRows(client, name, staging=self._is_staged)
        # In such a table all rows are this package's: dlt has emptied it before.
        self._is_own = self._is_staged or client.should_truncate_table_before_load(name)
        self._id = self._row_id(name)
        self._load = client.schema.naming.normalize_identifier("_dlt_load_id")

    def _row_id(self, name: str) -> str | None:
        return get_first_column_name_with_prop(self._tables[name], "row_key")

    # -- jobs that load rows ------------------------------------------------------------------------------------------

    def recover_rows(self, interrupted: Sequence[ParsedLoadJobFileName]) -> None:
        """Note jobs as done whose rows are in the table, and take back what else they wrote."""
        if not interrupted or not self._rows.exists():
            return
        self._rows.settle()
        by_id = [job for job in interrupted if self._tells_rows(job)]
        if len(by_id) < len(interrupted):
            # Rows without ids cannot be told apart, and take all others of this load along.
            by_load = [job for job in interrupted if self._can_be_emptied(job)]
            if by_load:
                self._take_back(by_load)
            by_id = [job for job in by_id if job not in by_load]
            if len(by_id) + len(by_load) < len(interrupted):
                self._found.unsure.add(self._name)
        for job in by_id:
            self._look_up_rows(job)

    def _tells_rows(self, job: ParsedLoadJobFileName) -> bool:
        # In the other merges a row's id is made of what it says, and two rows of a package may have the same.
        has_unique_ids = self._strategy in (None, "delete-insert")
        return has_unique_ids and self._id is not None and self._id in self._jobs.file(job).columns

    def _can_be_emptied(self, job: ParsedLoadJobFileName) -> bool:
        return self._is_own or self._has_load_id(job)

    def _has_load_id(self, job: ParsedLoadJobFileName) -> bool:
        file = self._jobs.file(job)
        if file.format == "model":
            return self._load in file.path.read_text(encoding="utf-8")
        # Arrow data that is read from what dlt loaded elsewhere brings the ids of those loads along.
        return file.first_value(self._load) in (None, self._jobs.load_id) if self._load in file.columns else False

    def _look_up_rows(self, job: ParsedLoadJobFileName) -> None:
        """Note a job as done when its rows are there; when only some are, delete those."""
        file, key = self._jobs.file(job), str(self._id)
        # An id that the data brought along may be in the table since an earlier load.
        also = (self._load, self._jobs.load_id) if self._has_load_id(job) else None
        asked = there = 0
        try:
            for batch in batches(file.values(key)):
                ids = sorted(set(batch))
                asked += len(ids)
                there += len(self._rows.found(key, ids, also))
                if there and self._may_be_others(key, ids, also):
                    self._found.unsure.add(self._name)
                    return
                if self._is_atomic and there in (0, asked):
                    break
            if asked and there == asked:
                self._note_loaded([job])
            elif there:
                self._rows.delete_ids(key, file.values(key), also)
                self._put_back([job])
        except UnreadableFileError:
            self._found.unsure.add(self._name)

    def _may_be_others(self, key: str, ids: Sequence[str], also: tuple[str, str] | None) -> bool:
        # The ids of nested rows follow from those that the data has brought along for their roots.
        return not (also or self._is_own) and self._rows.are_of_others(key, ids, self._load, self._jobs.load_id)

    def _take_back(self, interrupted: Sequence[ParsedLoadJobFileName]) -> None:
        """Delete what this load wrote into the table, and have all of it loaded again, unless counts tell better.

        All jobs count as interrupted before the first row goes, so that whoever is cut here begins here again.
        """
        completed = [job for job in self._jobs.completed(self._name) if self._can_be_emptied(job)]
        of_load = () if self._is_own else (self._load, self._jobs.load_id)
        there = self._rows.count(*of_load)
        before, more = self._row_count(completed), self._row_count(interrupted)
        if self._is_atomic and before is not None and more is not None:
            if there == before:
                return
            if there == before + more:
                self._note_loaded(interrupted)
                return
        self._put_back([*completed, *interrupted])
        if self._is_own:
            self._rows.delete_all()
        else:
            self._rows.delete(*of_load)

    def _row_count(self, jobs: Sequence[ParsedLoadJobFileName]) -> int | None:
        counts = [self._jobs.file(job).row_count for job in jobs]
        return None if None in counts else sum(filter(None, counts))

    def _note_loaded(self, jobs: Sequence[ParsedLoadJobFileName]) -> None:
        for job in jobs:
            self._jobs.note_loaded(job)
            self._found.loaded.append(job.file_name())

    def _put_back(self, jobs: Sequence[ParsedLoadJobFileName]) -> None:
        self._jobs.put_back(jobs)
        self._found.taken_back += [job.file_name() for job in jobs]

    # -- jobs that follow them ----------------------------------------------------------------------------------------

    def recover_follow_up(self, job: ParsedLoadJobFileName) -> None:
        """Undo or recognise what must not be done twice; all other follow-ups end the same however often they run."""
        chain = [str(table.get("name")) for table in get_nested_tables(self._tables, self._root["name"])]
        if self._root["write_disposition"] == "replace":
            # Where a table can be cloned, that is done in place of a swap.
            swaps = self._root["x-replace-strategy"] == "staging-optimized"
            if swaps and not self._client.capabilities.supports_clone_table and self._has_swapped(chain):
                self._note_loaded([job])
        elif self._strategy == "delete-insert":
            props: Sequence[TColumnProp] = ("primary_key", "merge_key")
            has_keys = any(get_columns_names_with_prop(self._root, prop) for prop in props)
            if not has_keys or self._root.get("x-merge-destination-scope"):
                self._take_merge_back(chain, job)

    def _has_swapped(self, chain: Sequence[str]) -> bool:
        """Tell whether loaded tables were put in place: empty ones are then staged, where rows had been."""
        staged = [rows for name in chain if (rows := LoadedRows(self._client, name, staging=True)).exists()]
        for rows in staged:
            rows.settle()
        wrote = any(self._jobs.file(job).has_rows() for job in self._jobs.completed(*chain))
        return wrote and not any(rows.count() for rows in staged)

    def _take_merge_back(self, chain: Sequence[str], job: ParsedLoadJobFileName) -> None:
        """Delete what a merge has put into its tables that would not delete it by a key itself."""
        deleted = 0
        for name in chain:
            rows, staged = LoadedRows(self._client, name), LoadedRows(self._client, name, staging=True)
            if not rows.exists() or not staged.exists():
                continue
            rows.settle()
            key, load = self._row_id(name), self._load if self._load in self._tables[name]["columns"] else None
            if staged.count_without([column for column in (key, load) if column]):
                # Neither an id nor the load is in these rows; they cannot be told from others.
                self._found.unsure.add(name)
                continue
            if key and not load and rows.are_of_others(key, staged, self._load, self._jobs.load_id):
                # Ids that the data brought along once more: rows of earlier loads would go as well.
                self._found.unsure.add(name)
                continue
            before = rows.count()
            if key:
                rows.delete_those_of(staged, key, without=load)
            if load:
                rows.delete(load, self._jobs.load_id)
            deleted += before - rows.count()
        if deleted:
            self._put_back([job])
