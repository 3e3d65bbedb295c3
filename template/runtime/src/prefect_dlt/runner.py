"""Run a pipeline so that a retry redoes only the steps that failed, and nothing that was extracted is lost."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from dlt.common.pipeline import LoadInfo
from dlt.extract import DltResource, DltSource
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.pipeline.pipeline import Pipeline
from tenacity import RetryCallState, Retrying, retry_if_exception
from tenacity.nap import sleep as default_sleep

from prefect_dlt.callbacks import CallbackCollector
from prefect_dlt.clean import drop, put_traces_back, try_to_restore
from prefect_dlt.configuration import RunnerSettings, Verify, runner_settings
from prefect_dlt.discard import Discarded, finish_discard, put_aside
from prefect_dlt.errors import ConfigurationError, FailedJobsError, PendingDataError, PrefectDltError, VerificationError
from prefect_dlt.garbage import seldom_collected
from prefect_dlt.hints import command
from prefect_dlt.known_secrets import forgotten_afterwards, known_secrets, learn_secrets
from prefect_dlt.leftovers import mend_folders, tidy_up
from prefect_dlt.lock import one_run_at_a_time
from prefect_dlt.markdown import printable, shortened
from prefect_dlt.options import DESTINATION_OPTIONS, tell_place, with_destinations_built
from prefect_dlt.pending import pending_lines, pending_packages, resumes_with
from prefect_dlt.portable import make_portable, portable
from prefect_dlt.reasons import LONGEST_LINE, reason_line, without_tracebacks
from prefect_dlt.record import RunRecord
from prefect_dlt.recovery import recover
from prefect_dlt.redact import redact, redaction
from prefect_dlt.retry import (
    chain,
    is_exhausted,
    is_stop_request,
    most_attempts,
    policy_text,
    why_not_retried,
    worth_retrying,
)
from prefect_dlt.stop import guarded, is_asked_to_stop, pause, stop_request
from prefect_dlt.trace_files import moved_through
from prefect_dlt.trace_tables import Phase
from prefect_dlt.traces import Traces
from prefect_dlt.verification import Verification
from prefect_dlt.verify import Verifier

logger = logging.getLogger("prefect_dlt")


def runner(
    pipeline: Pipeline,
    *,
    retry_policy: Retrying | str | None = None,
    retry_pipeline_steps: Sequence[str] | None = None,
    store_trace_info: bool | Pipeline | None = None,
    run_from_clean_folder: bool | None = None,
    discard_pending: bool | None = None,
    verify: bool | Verify | None = None,
    lock_timeout: float | None = None,
) -> PipelineRunner:
    """Return a runner for a pipeline; its `run` takes what `pipeline.run` takes.

    An argument that is left out is taken from dlt's configuration: from `[<pipeline>.runner]`, else from `[runner]`.

    Args:
        pipeline: The pipeline to run.
        retry_policy: How often and with which pauses a failed attempt is made again: any tenacity policy, or the name
            of a ready-made one, whose numbers are configured; one attempt by default. What is worth retrying is decided
            by `prefect_dlt.retry.worth_retrying` besides.
        retry_pipeline_steps: Steps that may be made again, of "extract", "normalize" and "load"; "load" by default.
        store_trace_info: Whether to store a trace after every attempt, in table `<pipeline>_trace` by a pipeline of
            its own, `_trace_<pipeline>`; or a pipeline, to store it in that one's destination and dataset.
        run_from_clean_folder: Whether to drop the working directory and restore state and schemas from the destination
            before the run.
        discard_pending: Whether to move aside what an earlier run left, rather than to load it first.
        verify: Whether to compare what was normalised with what the destination holds: True or "raise" for an error
            when they differ, "warn" for a warning.
        lock_timeout: Longest wait for another run of this pipeline on this machine to end, in seconds; 0 by default.

    Raises:
        ConfigurationError: If an argument, or what is configured, has a value that cannot work.
    """
    if not isinstance(pipeline, Pipeline):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError("pipeline", pipeline, "give what dlt.pipeline() returns")
    settings = runner_settings(
        pipeline.pipeline_name,
        retry_policy=retry_policy,
        retry_pipeline_steps=retry_pipeline_steps,
        store_trace_info=store_trace_info,
        run_from_clean_folder=run_from_clean_folder,
        discard_pending=discard_pending,
        verify=verify,
        lock_timeout=lock_timeout,
    )
    return PipelineRunner(pipeline, settings)


class PipelineRunner:
    """Runs one pipeline; made by `runner`.

    Attributes:
        pipeline: The pipeline.
        settings: How it is run.
        record: What the latest run did; None before the first.
    """

    def __init__(self, pipeline: Pipeline, settings: RunnerSettings) -> None:
        learn_secrets(pipeline)
        self.pipeline = pipeline
        self.settings = settings
        self.record: RunRecord | None = None
        self._policy = settings.policy
        self._traces = Traces(pipeline, settings.store_trace_info)

    def run(self, data: Any = None, **run_options: Any) -> LoadInfo | None:
        """Load what an earlier run left behind, then run the pipeline with the data.

        Args:
            data: What `pipeline.run` takes, a dlt source for example; or a callable that returns it, called for each
                attempt, so that even what was read already when the source was built can be read anew; None loads only
                what is pending.
            **run_options: What else `pipeline.run` takes.

        Returns:
            What `pipeline.run` returns: the `LoadInfo`, or None when there was nothing to load.

        Raises:
            PipelineLockedError: If another run of the pipeline is under way on this machine, and does not end in time.
            PendingDataError: If a clean folder is asked for while data waits in it, without `discard_pending`.
            UnknownStateError: If what is to be put aside does not say what the state was before it.
            FailedJobsError: If a load ended without some of its files.
            VerificationError: If the destination does not hold what was loaded, and `verify` makes that an error.
        """
        # A resource can be called as well, to bind its arguments, but it is data as it stands; and so is a source.
        builds = callable(data) and not isinstance(data, DltSource | DltResource)
        build = cast("Callable[[], Any]", data) if builds else lambda: data
        run_options = with_destinations_built(run_options)
        self.record = RunRecord.of(self.pipeline, self._settings_told())
        learn_secrets(self.pipeline)
        collector = self.pipeline.collector
        reports = isinstance(collector, CallbackCollector)
        with (
            guarded(self.pipeline.working_dir),
            seldom_collected(),
            forgotten_afterwards(),
            collector.whole_run(self.pipeline, self.record) if reports else self.record.until_finished(),
        ):
            with self._alone(self.record):
                info = self._run(build, run_options)
            if not self.record.steps():
                self.record.untraced = info
            return portable(info)

    def finalize(self) -> LoadInfo | None:
        """Load only what an earlier run left behind; None when there was nothing."""
        return self.run(None)

    @contextmanager
    def _alone(self, record: RunRecord) -> Generator[None]:
        """Keep other runs of the pipeline out of its working directory, or wait until one has ended."""

        def say(line: str) -> None:
            self._say(logging.INFO, line)

        run, timeout = record.environment.get("Flow run", ""), self.settings.lock_timeout
        with one_run_at_a_time(self.pipeline.working_dir, timeout=timeout, run=run, say=say) as waited:
            record.waited = waited
            yield

    def _run(self, build: Callable[[], Any], run_options: dict[str, Any]) -> LoadInfo | None:
        mend_folders(self.pipeline)
        put_traces_back(self.pipeline)
        self._tell_discarded(finish_discard(self.pipeline))
        if self.settings.run_from_clean_folder:
            self._clean()
        elif self.settings.discard_pending:
            self._tell_discarded([put_aside(self.pipeline)])
        verifier = Verifier(self.pipeline) if self.settings.verify else None
        left: LoadInfo | None = None
        if self.pipeline.has_pending_data:
            self._say(logging.INFO, f"Pipeline {self.pipeline.pipeline_name!r} loads first what an earlier run left")
            left = self._attempt(lambda: self._load_pending(run_options), "pending")
            # Before the new data, which may replace or merge what this was.
            self._verify(verifier, of=", what an earlier run left")
        attempts = 0

        def load() -> LoadInfo | None:
            nonlocal attempts
            attempts += 1
            # What an earlier attempt has extracted is not extracted again. The first attempt leaves nothing pending
            # unless extract succeeded, and before it everything pending has been loaded.
            if attempts > 1 and self.pipeline.has_pending_data:
                return self._load_pending()
            data = build()
            learn_secrets(self.pipeline, data)
            if data is None:
                return left
            try:
                return self.pipeline.run(data, **run_options)
            except PipelineStepFailed as error:
                # dlt tries a job again by itself, one whose commit was not heard of as well.
                if error.step == "load" and self._was_loaded_all_the_same(error):
                    return self._load_pending()
                raise

        info = self._attempt(load, "run")
        self._verify(verifier)
        self._check([left, info] if info is not left else [info])
        return info

    def _check(self, loads: Sequence[LoadInfo | None]) -> None:
        """Raise an error when what was loaded is not all there; no retry would change that."""
        try:
            if failed := tuple(job for info in loads if info for job in _failed_jobs(info)):
                raise FailedJobsError(self.pipeline.pipeline_name, failed)
            verification = self.record.verification if self.record else None
            if (error := self._difference(verification)) is not None and self.settings.verify == "raise":
                raise error
        except PrefectDltError as error:
            self._note_failure(error, 0, "No further attempt: all that could be loaded is loaded.", last_of="run")
            raise

    def _verify(self, verifier: Verifier | None, of: str = "") -> None:
        """Compare what was loaded since the last call with what the destination holds, and tell the result."""
        if verifier is None or self.record is None:
            return
        found = verifier.verify([step.step_info for step in self.record.steps("normalize")])
        self.record.verification = (self.record.verification or Verification()) + found
        if not found.load_ids:
            return
        error = self._difference(found)
        level = logging.WARNING if error is not None or found.is_trouble else logging.INFO
        self._say(level, f"Pipeline {self.pipeline.pipeline_name!r}{of}: {redact(found.line(), known_secrets())}")
        if error is not None and self.settings.verify == "warn":
            self._say(logging.WARNING, str(error))

    def _difference(self, verification: Verification | None) -> VerificationError | None:
        """Return the error about what the destination does not hold; None where it holds all that was looked for."""
        differences = verification.differences if verification else ()
        told = tuple((each.load_id, each.table, each.what, each.expected, each.found) for each in differences)
        return VerificationError(self.pipeline.pipeline_name, told) if told else None

    def _load_pending(self, run_options: Mapping[str, Any] | None = None) -> LoadInfo | None:
        # Not run(): on a dataset that does not exist yet it wipes the working directory, pending packages included,
        # and it returns without loading the data that it was given.
        self.pipeline.activate()
        # One that has no destination of its own, or no credentials for it, is told those of the run.
        is_told = run_options and (run_options.get("destination") is None or self.pipeline.destination is None)  # pyright: ignore[reportUnnecessaryComparison]
        if run_options and is_told:
            # Not the dataset: what is pending was made for the one that the pipeline knows.
            tell_place(self.pipeline, {name: run_options.get(name) for name in DESTINATION_OPTIONS})
        tidy_up(self.pipeline)
        if self.pipeline.list_extracted_load_packages():
            self.pipeline.normalize()
        self._recover()
        while True:
            try:
                return self.pipeline.load()
            except PipelineStepFailed as error:  # noqa: PERF203 - it goes round only to load again
                if not self._was_loaded_all_the_same(error):
                    raise

    def _was_loaded_all_the_same(self, error: PipelineStepFailed) -> bool:
        """Tell whether a load failed on rows that were there already, committed when nobody was told any more."""
        if any(map(is_stop_request, chain(error, explicit=True))):
            return False
        with contextlib.suppress(PipelineStepFailed):
            return self._recover() > 0
        return False

    def _recover(self) -> int:
        """Find what a load that was cut had committed; return how many jobs are noted as done for it."""
        found = recover(self.pipeline)
        for each in found:
            self._say(logging.WARNING if each.unsure else logging.INFO, each.text)
        if self.record is not None:
            self.record.recovered += found
        return sum(len(each.loaded) for each in found)

    def _attempt(self, act: Callable[[], LoadInfo | None], phase: Phase) -> LoadInfo | None:
        first_error: BaseException | None = None

        def once() -> LoadInfo | None:
            nonlocal first_error
            try:
                with self._traces.attempt(self.record, phase):
                    return act()
            except BaseException as error:
                first_error = first_error or error
                raise

        policy = self._policy.copy(
            retry=self._policy.retry & retry_if_exception(worth_retrying(self.settings.retry_pipeline_steps)),
            before_sleep=self._before_sleep,
            # Whoever has given another knows why.
            sleep=pause if self._policy.sleep is default_sleep else self._policy.sleep,
            reraise=True,
        )
        failed_before = self.record.attempts_failed if self.record else 0
        try:
            return policy(once)
        except BaseException as error:
            make_portable(error)
            self._note_failure(error, failed_before, self._why_it_ends(error), phase)
            if not isinstance(error, Exception):
                raise
            # dlt wraps Ctrl-C and signals in an ordinary error, which callers would take for a failure like any other.
            if (stop := next(filter(is_stop_request, chain(error, explicit=True)), None)) is not None:
                raise stop from None
            # What was broken off for it, in a process that was ended for example, is no failure.
            if is_asked_to_stop():
                raise stop_request() from error
            # A generator cannot be read twice: the error of the second attempt would hide the one that matters.
            if first_error is not None and first_error is not error and is_exhausted(error):
                raise first_error from first_error.__cause__
            raise

    def _before_sleep(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is None:
            return
        pause = state.next_action.sleep if state.next_action else 0.0
        self._say(
            logging.WARNING,
            f"Attempt {state.attempt_number} of pipeline {self.pipeline.pipeline_name!r} failed, and the next one "
            f"starts in {pause:.1f} s: {reason_line(error, redaction(known_secrets()))}",
        )
        failed_before = self.record.attempts_failed - state.attempt_number + 1 if self.record else 0
        self._note_failure(
            error,
            failed_before,
            f"The next attempt starts in {pause:.1f} s, and begins with {resumes_with(self.pipeline)}.",
        )
        collector = self.pipeline.collector
        if isinstance(collector, CallbackCollector):
            collector.report_retry(self.pipeline, state.attempt_number, self._is_last(state), error)
        if self._policy.before_sleep is not None:
            self._policy.before_sleep(state)

    def _note_failure(
        self, error: BaseException, failed_before: int, following: str, last_of: Phase | None = None
    ) -> None:
        """Record and report an attempt that failed; `failed_before` were made for data of an earlier run."""
        if self.record is None:
            return
        try:
            pending = pending_lines(self.pipeline)
        except Exception as problem:  # noqa: BLE001 - nothing that is only told may hide the error itself
            pending = [f"the working directory could not be read ({type(problem).__name__})"]
        # The source may have failed already when it was built, before any step.
        self.record.secrets |= learn_secrets(self.pipeline)
        limit = most_attempts(self._policy)
        most = limit + failed_before if limit is not None else None
        if last_of is not None:
            following += " The next run loads first what is pending." if pending else " Nothing is pending."
        if last_of == "pending" and pending and not any(map(is_stop_request, chain(error, explicit=True))):
            discard = command("discard", self.pipeline.pipeline_name, Path(self.pipeline.working_dir))
            following += f" Should it never load, put it aside: {discard}"
        if last_of is not None and not any(map(is_stop_request, chain(error, explicit=True))):
            # In one line, since the traceback that follows is long, and there more than once.
            reason = reason_line(error, redaction(known_secrets()))
            self._say(logging.ERROR, f"Pipeline {self.pipeline.pipeline_name!r} failed: {reason}. {following}")
        attempt = self.record.note_failure(error, most, pending, following)
        collector = self.pipeline.collector
        if isinstance(collector, CallbackCollector):
            collector.report_failure(self.pipeline, attempt)

    def _why_it_ends(self, error: BaseException) -> str:
        reason = why_not_retried(error, self.settings.retry_pipeline_steps)
        reason = reason or f"the retry policy allows no more ({policy_text(self._policy)})"
        return f"No further attempt: {reason}."

    def _is_last(self, state: RetryCallState) -> bool:
        following = RetryCallState(state.retry_object, state.fn, state.args, state.kwargs)
        following.attempt_number = state.attempt_number + 1
        # It ends after the pause at the earliest, and the next pause is taken to be as long.
        following.upcoming_sleep = pause = state.next_action.sleep if state.next_action else 0.0
        following.start_time, following.outcome_timestamp = state.start_time, (state.outcome_timestamp or 0.0) + pause
        following.outcome = state.outcome
        return bool(self._policy.stop(following))

    def _say(self, level: int, message: str) -> None:
        # The collector's logger is that of the Prefect run, where there is one.
        collector = self.pipeline.collector
        if isinstance(collector, CallbackCollector):
            collector.write_line(message, level)
        else:
            logger.log(level, message)

    def _clean(self) -> None:
        pipeline = self.pipeline
        if pipeline.has_pending_data and not self.settings.discard_pending:
            packages = [each for each in pending_packages(Path(pipeline.working_dir)) if each.is_whole]
            load_ids = tuple(each.load_id for each in packages)
            raise PendingDataError(pipeline.pipeline_name, pipeline.working_dir, load_ids, tuple(map(str, packages)))
        # Before anything is gone: what cannot be restored now is not dropped.
        self._attempt(lambda: try_to_restore(pipeline), "clean")
        if self.settings.discard_pending:
            self._tell_discarded([put_aside(pipeline, for_clean_folder=True)])
        with moved_through(pipeline.working_dir):
            drop(pipeline)
        self._attempt(lambda: pipeline.sync_destination(), "clean")  # noqa: PLW0108 - its arguments are not ours

    def _tell_discarded(self, discarded: Sequence[Discarded | None]) -> None:
        for line in (line for each in discarded if each for line in each.lines()):
            self._say(logging.WARNING, line)
            if self.record is not None:
                self.record.discarded.append(line)

    def _settings_told(self) -> dict[str, str]:
        return {
            "Retry policy": policy_text(self._policy),
            "Steps retried": ", ".join(self.settings.retry_pipeline_steps) or "none",
            "Trace pipeline": self._traces.pipeline_name or "none: traces are not stored",
            "Trace table": self._traces.table_name if self._traces.pipeline_name else "",
            "Pending data": "put aside first" if self.settings.discard_pending else "loaded first",
            "Clean folder": "yes" if self.settings.run_from_clean_folder else "no",
            "Verified": self.settings.verify or "no",
            "Checkpoint": f"none but the working directory, {self.pipeline.working_dir}",
        }


def _failed_jobs(info: LoadInfo) -> Iterator[tuple[str, str, str, str]]:
    """Yield what a load has left out, as `FailedJobsError` takes it."""
    for package in info.load_packages:
        for job in package.jobs["failed_jobs"]:
            message = redact(without_tracebacks(job.failed_message or "no reason is known"), known_secrets())
            line = shortened(printable(" ".join(message.split())), LONGEST_LINE)
            yield package.load_id, job.job_file_info.table_name, job.file_path, line
