"""Compare what was normalised with what the destination holds, after a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from dlt.common.configuration import configspec
from dlt.common.configuration.resolve import inject_section, resolve_configuration
from dlt.common.configuration.specs import BaseConfiguration
from dlt.common.configuration.specs.config_section_context import ConfigSectionContext
from dlt.common.destination.client import WithStagingDataset
from dlt.common.destination.exceptions import DestinationUndefinedEntity
from dlt.common.destination.utils import resolve_merge_strategy
from dlt.common.pipeline import NormalizeInfo
from dlt.common.schema import Schema
from dlt.common.schema.typing import C_DLT_LOAD_ID, C_DLT_LOADS_TABLE_LOAD_ID, TSchemaTables
from dlt.common.schema.utils import get_nested_tables, get_root_table, has_table_seen_data
from dlt.common.storages.load_package import LoadPackageInfo
from dlt.destinations.exceptions import DatabaseTerminalException
from dlt.destinations.job_client_impl import SqlJobClientBase
from dlt.destinations.sql_client import SqlClientBase
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.count_queries import CountQueries, NotCountableError, Query
from prefect_dlt.job_files import JobFile
from prefect_dlt.known_secrets import known_secrets
from prefect_dlt.reasons import reason_line
from prefect_dlt.redact import redaction
from prefect_dlt.row_counts import FOLLOW_UPS, metered_rows, normalized_rows
from prefect_dlt.verification import EARLIER_PACKAGE, Expected, Held, NotVerified, Verification, written_again

NO_SQL = "the destination {} cannot be asked with SQL"
NOT_ASKED = "the destination could not be asked ({})"
NOT_READ = "its load package could not be read ({})"
NOT_STAGED = "it was not merged through a staging dataset"
EMPTIED = "the staging dataset is emptied after the load (load.truncate_staging_dataset)"
NO_STAGING = "its table in the staging dataset is gone"
AMBIGUOUS = "{:,} of its keys came both marked as deleted and not, and which row is the last one is not known"
BROUGHT_LOAD_ID = "its rows brought other load ids along (normalize.parquet_normalizer.add_dlt_load_id replaces them)"
BROUGHT_ROW_ID = "rows of {} brought row ids along that earlier loads have as well"
NULL_KEYS = "{:,} of its rows have no key"

ALL_TABLES = "all tables"
"""What stands for the tables of a package that could not even be read."""


class Verifier:
    """Verifies what a pipeline loads from now on.

    Args:
        pipeline: The pipeline.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._known = set(pipeline.list_completed_load_packages())

    def verify(self, infos: Iterable[object] = ()) -> Verification:
        """Compare what was loaded since the last call, or since this object was made, with what was normalised.

        What cannot be verified, for whatever reason, is told as such; no error comes from here.

        Args:
            infos: What dlt tells of steps in this process. That of normalize stands in for job files that are gone.
        """
        found = Verification()
        packages = list[tuple[LoadPackageInfo, Expected, SqlJobClientBase | None]]()
        normalized = [info for info in infos if isinstance(info, NormalizeInfo)]
        for load_id in sorted(set(self._pipeline.list_completed_load_packages()) - self._known):
            self._known.add(load_id)
            try:
                package = self._pipeline.get_load_package_info(load_id)
                if package.state == "loaded":
                    client = self._client(package.schema)
                    packages.append((package, self._expected(package, client, normalized), client))
            except Exception as error:  # noqa: BLE001 - a run that has loaded does not fail because it cannot be verified
                found += _unasked(load_id, [ALL_TABLES], NOT_READ.format(_safe(error)))
        again = written_again([expected for _, expected, _ in packages])
        for package, expected, client in packages:
            changed = {table for load_id, table in again if load_id == package.load_id}
            found += self._verify(package, expected, client, changed)
        return found

    def _expected(
        self, package: LoadPackageInfo, client: SqlJobClientBase | None, infos: Iterable[NormalizeInfo]
    ) -> Expected:
        escape = client.capabilities.escape_literal if client is not None else None
        state = cast("dict[str, Any]", self._pipeline.get_load_package_state(package.load_id))
        rows = normalized_rows(
            package,
            state.get("load_metrics", ()),
            metered_rows(infos, package.load_id),
            breaks_are_escaped=escape is not None and "\n" not in str(escape("\n")),
        )
        tables = package.schema.tables
        dispositions = dict[str, tuple[str, str]]()
        for table in list(rows):
            root = get_root_table(tables, table)
            name, disposition = str(root.get("name")), str(root.get("write_disposition") or "append")
            dispositions[table] = name, disposition
            # What a replaced table has nested in it is emptied, whether there is something new for it or not.
            for nested in get_nested_tables(tables, name) if disposition == "replace" else ():
                if has_table_seen_data(nested):
                    rows.setdefault(str(nested.get("name")), 0)
                    dispositions[str(nested.get("name"))] = name, disposition
        emptied = frozenset([*(package.dropped_tables or ()), *(package.truncated_tables or ())])
        return Expected(package.load_id, rows, dispositions, emptied)

    def _verify(
        self, package: LoadPackageInfo, expected: Expected, client: SqlJobClientBase | None, again: set[str]
    ) -> Verification:
        if client is None:
            name = self._pipeline.destination.destination_name if self._pipeline.destination else "none"
            return _unasked(package.load_id, expected.rows, NO_SQL.format(name), is_trouble=False)
        asked = Verification()
        try:
            package_questions = _Questions(package, client, is_emptied=self._is_staging_emptied())
            with cast("SqlClientBase[Any]", client.sql_client):  # pyright: ignore[reportUnknownMemberType]
                for answer in package_questions.answers(expected, again):
                    asked += answer
        except Exception as error:  # noqa: BLE001 - a run that has loaded does not fail because it cannot be verified
            known = {each.table for each in (*asked.held, *asked.not_verified)}
            rest = [table for table in expected.rows if table not in known]
            asked += _unasked(package.load_id, rest, NOT_ASKED.format(_safe(error)))
        return asked

    def _client(self, schema: Schema) -> SqlJobClientBase | None:
        client = self._pipeline.destination_client(schema.name)
        if not isinstance(client, SqlJobClientBase):
            return None
        # As it was when the package was normalised: a later one may have changed a write disposition.
        client.schema = schema
        return client

    def _is_staging_emptied(self) -> bool:
        sections = ConfigSectionContext(pipeline_name=self._pipeline.pipeline_name, sections=("load",))
        with inject_section(sections):
            return resolve_configuration(_LoadConfiguration(), sections=("load",)).truncate_staging_dataset


@configspec
class _LoadConfiguration(BaseConfiguration):
    """What of dlt's own configuration of the load step matters here."""

    truncate_staging_dataset: bool = False


class _Questions:
    """Asks about one load package, on a connection that is open."""

    def __init__(self, package: LoadPackageInfo, client: SqlJobClientBase, *, is_emptied: bool) -> None:
        self._package = package
        self._load_id = package.load_id
        self._schema = package.schema
        self._client = client
        self._sql = cast("SqlClientBase[Any]", client.sql_client)  # pyright: ignore[reportUnknownMemberType]
        self._is_emptied = is_emptied
        naming = package.schema.naming
        self._tables = cast("TSchemaTables", {name: client.prepare_load_table(name) for name in package.schema.tables})
        self._load_id_column = naming.normalize_identifier(C_DLT_LOAD_ID)
        self._queries = CountQueries(self._tables, self._sql, package.load_id, self._load_id_column)

    def answers(self, expected: Expected, again: set[str]) -> Iterator[Verification]:
        """Yield what is found, table by table.

        Args:
            expected: What the package should have left.
            again: Tables that a later package may have changed.
        """
        yield self._of(self._schema.loads_table_name, self._ask_about_the_load)
        for table, rows in sorted(expected.rows.items()):
            if table in again:
                yield self._not_verified(table, EARLIER_PACKAGE)
            elif isinstance(rows, str):
                yield self._not_verified(table, rows)
            else:
                root, disposition = expected.dispositions[table]
                yield self._of(table, self._question(table, rows, root, disposition))

    def _of(self, table: str, ask: Callable[[], Verification]) -> Verification:
        try:
            return ask()
        except NotCountableError as reason:
            return self._not_verified(table, str(reason))
        except DatabaseTerminalException as error:
            # The question was not understood; the next one may be.
            return _unasked(self._load_id, [table], NOT_ASKED.format(_safe(error)))

    def _question(self, table: str, rows: int, root: str, disposition: str) -> Callable[[], Verification]:
        if disposition == "replace":
            return lambda: self._held(table, "rows in all", rows, self._queries.whole(table))
        prepared = self._tables[root]
        strategy = resolve_merge_strategy({root: prepared}, prepared, self._client.capabilities)
        # Where the destination knows no merge, dlt appends.
        if disposition != "merge" or strategy is None or self._appends(root, strategy):
            return lambda: self._appended(table, rows)
        return lambda: self._merged(table, rows, strategy)

    def _appends(self, root: str, strategy: str) -> bool:
        return strategy == "delete-insert" and self._queries.is_append(root)

    def _appended(self, table: str, rows: int) -> Verification:
        held = self._held(table, "rows of the load", rows, self._queries.of_load(table))
        # Only then, for it takes longer: ids that the data has brought along tell nothing of this load.
        if held.differences:
            root = str(get_root_table(self._tables, table).get("name"))
            if any(self._brings_load_id(job) for job in self._jobs_of(root)):
                return self._not_verified(table, BROUGHT_LOAD_ID)
            if root != table and self._number(self._queries.known_before(root)):
                return self._not_verified(table, BROUGHT_ROW_ID.format(root))
        return held

    def _jobs_of(self, table: str) -> Iterator[JobFile]:
        for job in (job for of_state in self._package.jobs.values() for job in of_state):
            if job.job_file_info.table_name == table and job.job_file_info.file_format not in FOLLOW_UPS:
                yield JobFile(Path(job.file_path))

    def _brings_load_id(self, file: JobFile) -> bool:
        column = self._load_id_column
        return column in file.columns and file.first_value(column) not in (None, self._load_id)

    def _ask_about_the_load(self) -> Verification:
        table = self._schema.loads_table_name
        name = self._schema.naming.normalize_identifier
        query = self._queries.completed(table, name(C_DLT_LOADS_TABLE_LOAD_ID), name("status"))
        return self._held(table, "entries of the load", 1, query)

    def _merged(self, table: str, rows: int, strategy: str) -> Verification:
        client = self._client
        if not isinstance(client, WithStagingDataset) or not client.should_load_data_to_staging_dataset(table):
            return self._not_verified(table, NOT_STAGED)
        if self._is_emptied:
            return self._not_verified(table, EMPTIED)
        ask = self._queries.merged(table, strategy)
        try:
            staged = self._number(ask.staged)
        except DestinationUndefinedEntity:
            return self._not_verified(table, NO_STAGING)
        found = Verification()
        if staged < rows or (staged > rows and not ask.is_deduplicated):
            found += Verification((Held(self._load_id, table, "staged rows", rows, staged),))
        keys = self._number(ask.expected)
        found += self._held(table, ask.what, keys, ask.found)
        if ask.deleted is not None and (left := self._number_held(ask.deleted)):
            found += Verification((Held(self._load_id, table, "keys that were marked as deleted", 0, left),))
        if ask.doubled is not None and staged == keys and (twice := self._number_held(ask.doubled)):
            found += Verification((Held(self._load_id, table, "keys in several rows", 0, twice),))
        for query, reason in ((ask.ambiguous, AMBIGUOUS), (ask.without_key, NULL_KEYS)):
            if query is not None and (count := self._number(query)):
                found += self._not_verified(table, reason.format(count))
        return found

    def _held(self, table: str, what: str, expected: int, query: Query) -> Verification:
        return Verification((Held(self._load_id, table, what, expected, self._number_held(query)),))

    def _not_verified(self, table: str, reason: str) -> Verification:
        return Verification(not_verified=(NotVerified(self._load_id, table, reason),))

    def _number_held(self, query: Query) -> int:
        # A table that is not there holds nothing.
        with suppress(DestinationUndefinedEntity):
            return self._number(query)
        return 0

    def _number(self, query: Query) -> int:
        rows = self._sql.execute_sql(query.sql, *query.parameters)
        return int(rows[0][0]) if rows else 0


def _unasked(load_id: str, tables: Iterable[str], reason: str, *, is_trouble: bool = True) -> Verification:
    return Verification(not_verified=tuple(NotVerified(load_id, table, reason, is_trouble) for table in tables))


def _safe(error: Exception) -> str:
    return reason_line(error, redaction(known_secrets()))
