"""The jobs of a load package that is being loaded, as dlt keeps them: files in folders, and notes about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dlt.common.storages import LoadStorage, ParsedLoadJobFileName
from dlt.common.storages.load_package import TPackageJobState
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.job_files import JobFile


class PackageJobs:
    """The jobs of one package that was normalised, and is not completely loaded.

    dlt notes a job that has ended in the destination, by `save_pending_transition`; only then, and after it has made
    what follows the job, it moves the job's file on. A job that was started and has no such note is started again.

    Args:
        pipeline: The pipeline.
        storage: Where it keeps its packages.
        load_id: The package.
    """

    def __init__(self, pipeline: Pipeline, storage: LoadStorage, load_id: str) -> None:
        # dlt types it as if there were always one.
        self._staging: Any = pipeline.staging
        self._storage = storage
        self._packages = storage.normalized_packages
        self.load_id = load_id
        self.schema = self._packages.load_schema(load_id)

    def move_if_completed(self) -> bool:
        """Move the package to those that are loaded if that is all that was left to do.

        dlt refuses to complete a package a second time.
        """
        if not self._packages.is_package_completed(self.load_id):
            return False
        loaded = self._storage.get_loaded_package_path(self.load_id)
        self._storage.storage.rename_tree(self._storage.get_normalized_package_path(self.load_id), loaded)
        return True

    def may_have_begun(self) -> bool:
        """Tell whether any job may have run: none does before the destination has the package's tables."""
        if self._packages.has_abort_flag(self.load_id):
            # It is dlt's to end, and loads no more.
            return False
        return self._packages.get_schema_update_file(self.load_id) is None

    def all_done(self) -> bool:
        """Tell whether no job is left to run."""
        return not self._packages.list_new_jobs(self.load_id) and not self._packages.list_started_jobs(self.load_id)

    def interrupted(self) -> list[ParsedLoadJobFileName]:
        """Return the jobs that may have written: started without an end, ended as failed, or put back after that."""
        paths = [path for path, _ in self._packages.list_retried_new_jobs(self.load_id)]
        paths += [path for path in self._started() if self._note(path) == "failed"]
        return [ParsedLoadJobFileName.parse(path) for path in paths]

    def completed(self, *table_names: str) -> list[ParsedLoadJobFileName]:
        """Return the jobs that have loaded rows into these tables: completed, or noted as done and not yet moved."""
        jobs = self._packages.get_load_package_jobs(self.load_id)["completed_jobs"]
        jobs += [ParsedLoadJobFileName.parse(path) for path in self._started() if self._note(path) == "completed"]
        return [job for job in jobs if job.table_name in table_names and self.loads_rows(job)]

    def loads_rows(self, job: ParsedLoadJobFileName) -> bool:
        """Tell whether a job loads rows into a table, and is no follow-up and not on its way to a staging area."""
        if job.file_format == "sql":
            return False
        if self._staging is None or job.file_format in ("reference", "model"):
            return True
        return job.file_format not in (self._staging.capabilities().supported_loader_file_formats or ())

    def note_loaded(self, job: ParsedLoadJobFileName) -> None:
        """Note a job as done, as dlt does, which then completes it and makes what follows it."""
        if self._path(job, "new_jobs").exists():
            self._packages.start_job(self.load_id, job.file_name())
        self._packages.save_pending_transition(self.load_id, job.file_name(), "completed")

    def put_back(self, jobs: Iterable[ParsedLoadJobFileName]) -> None:
        """Have jobs run again whose rows are taken back.

        They count as tried once more: under their old name, BigQuery would take the second time for the first one. It
        also tells whoever comes next, when this is cut as well, that they may have written.
        """
        for job in jobs:
            # A note of its first time may be left of a completed one too, and be believed if the second one is cut.
            self._packages.clear_pending_transition(self.load_id, job.file_name())
            if (path := self._path(job, "completed_jobs")).exists():
                path.rename(self._path(job.with_retry(), "new_jobs"))
            elif self._path(job, "started_jobs").exists():
                self._packages.retry_job(self.load_id, job.file_name(), "The load was cut in the middle", "transient")

    def file(self, job: ParsedLoadJobFileName) -> JobFile:
        """Return the file with the rows of a job."""
        if job.file_format == "reference":
            # Its rows went to the staging area first, by a job with the same id.
            everything = self._packages.list_all_jobs_with_states(self.load_id)
            for folder, other in everything:
                if other.file_id == job.file_id and other != job:
                    return JobFile(self._path(other, folder))
        folders: Sequence[TPackageJobState] = ("started_jobs", "new_jobs", "completed_jobs")
        return JobFile(next(path for folder in folders if (path := self._path(job, folder)).exists()))

    def _started(self) -> Sequence[str]:
        return self._packages.list_started_jobs(self.load_id)

    def _note(self, path: str) -> str | None:
        note = self._packages.load_pending_transition(self.load_id, Path(path).name)
        return note[0] if note else None

    def _path(self, job: ParsedLoadJobFileName, folder: TPackageJobState) -> Path:
        path = self._packages.get_job_file_path(self.load_id, folder, job.file_name())
        return Path(self._packages.storage.make_full_path(path))
