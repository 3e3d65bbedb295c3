"""How a runner is set up: by what it is given in code, and else by dlt's configuration, section `runner`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from dlt.common.configuration import configspec, resolve_configuration
from dlt.common.configuration.exceptions import ConfigValueCannotBeCoercedException
from dlt.common.configuration.resolve import inject_section
from dlt.common.configuration.specs import BaseConfiguration
from dlt.common.configuration.specs.config_section_context import ConfigSectionContext
from dlt.pipeline.pipeline import Pipeline
from dlt.pipeline.typing import TPipelineStep
from tenacity import AsyncRetrying, Retrying

from prefect_dlt.errors import ConfigurationError
from prefect_dlt.retry import check_seconds, check_steps, no_retry, policy_named

Verify = Literal["raise", "warn"]

SECTION = "runner"


@configspec
class RunnerConfiguration(BaseConfiguration):
    """What dlt's configuration may say of a runner, in `[runner]` or, for one pipeline, in `[<pipeline>.runner]`.

    Attributes:
        retry_policy: "none", "fixed_attempts" or "exponential_backoff"; see `prefect_dlt.retry`.
        retry_attempts: Attempts in total, the first one included; for both policies that retry.
        retry_wait: Pause of "fixed_attempts", in seconds.
        retry_multiplier: Factor on the pauses of "exponential_backoff".
        retry_min: Shortest pause of "exponential_backoff", in seconds.
        retry_max: Longest pause of "exponential_backoff", in seconds.
        retry_pipeline_steps: Steps that may be made again: a list, or names separated by commas.
        store_trace_info: Whether to store a trace after every attempt.
        run_from_clean_folder: Whether to begin with an empty working directory.
        discard_pending: Whether to move aside what an earlier run left.
        verify: false, true or "raise", or "warn".
        lock_timeout: Longest wait for another run of the pipeline to end, in seconds.
    """

    retry_policy: str = "none"
    retry_attempts: int = 3
    retry_wait: float = 1.0
    retry_multiplier: float = 1.0
    retry_min: float = 1.0
    retry_max: float = 60.0
    # Not list[str]: dlt would take an environment variable only as JSON then.
    retry_pipeline_steps: Any = "load"
    store_trace_info: bool = False
    run_from_clean_folder: bool = False
    discard_pending: bool = False
    # Not bool | str: dlt would read "true" as text then.
    verify: Any = False
    lock_timeout: float = 0.0

    __section__: ClassVar[str] = SECTION


@dataclass(frozen=True)
class RunnerSettings:
    """How a runner is set up.

    Attributes:
        retry_policy: How often and with which pauses a failed attempt is made again; None for one attempt.
        retry_pipeline_steps: Steps that may be made again.
        store_trace_info: Whether to store a trace after every attempt, or a pipeline that says where.
        run_from_clean_folder: Whether to begin with an empty working directory.
        discard_pending: Whether to move aside what an earlier run left, rather than load it.
        verify: What to do when the destination does not hold what was normalised; None not to look.
        lock_timeout: Longest wait for another run of the pipeline to end, in seconds.
    """

    retry_policy: Retrying | None = None
    retry_pipeline_steps: tuple[TPipelineStep, ...] = ("load",)
    store_trace_info: bool | Pipeline = False
    run_from_clean_folder: bool = False
    discard_pending: bool = False
    verify: Verify | None = None
    lock_timeout: float = 0.0

    @property
    def policy(self) -> Retrying:
        """The policy; that of one attempt where none is set."""
        return self.retry_policy or no_retry()


def runner_settings(pipeline_name: str, **given: Any) -> RunnerSettings:
    """Return how to set up a runner of a pipeline.

    Args:
        pipeline_name: Whose section of the configuration counts, beside the one for all pipelines.
        **given: Arguments of `prefect_dlt.runner`. What is None is taken from the configuration.

    Raises:
        ConfigurationError: If a value, given or configured, cannot work.
    """
    given = {name: value for name, value in given.items() if value is not None}
    configured = _configured(pipeline_name)
    policy: Any = given.get("retry_policy", configured.retry_policy)
    return RunnerSettings(
        retry_policy=_policy(policy, configured),
        retry_pipeline_steps=check_steps(given.get("retry_pipeline_steps", _steps(configured.retry_pipeline_steps))),
        store_trace_info=_trace_store(given.get("store_trace_info", configured.store_trace_info)),
        run_from_clean_folder=_flag("run_from_clean_folder", given, configured),
        discard_pending=_flag("discard_pending", given, configured),
        verify=_verify(given.get("verify", configured.verify)),
        lock_timeout=check_seconds("lock_timeout", given.get("lock_timeout", configured.lock_timeout)),
    )


def _configured(pipeline_name: str) -> RunnerConfiguration:
    # Nothing of a pipeline or source that happens to be active: the same settings wherever the runner is made.
    context = ConfigSectionContext(pipeline_name=pipeline_name, sections=())
    try:
        with inject_section(context, merge_existing=False):
            return resolve_configuration(RunnerConfiguration())
    except ConfigValueCannotBeCoercedException as error:
        where = f"in [{SECTION}] or [{pipeline_name}.{SECTION}] of dlt's configuration, or {SECTION.upper()}__*"
        expected = f"{where}, give it as {getattr(error.hint, '__name__', error.hint)}"
        raise ConfigurationError(error.field_name, error.field_value, expected) from None


def _policy(policy: Any, configured: RunnerConfiguration) -> Retrying:
    if isinstance(policy, str):
        numbers = {name: configured[f"retry_{name}"] for name in ("attempts", "wait", "multiplier", "min", "max")}
        try:
            return policy_named(policy, **numbers)
        except ConfigurationError as error:
            if error.argument not in numbers:
                raise
            # By the name it was configured with, not by that of the policy's argument.
            raise ConfigurationError(f"retry_{error.argument}", error.value, error.expected) from None
    if not isinstance(policy, Retrying) or isinstance(policy, AsyncRetrying):
        raise ConfigurationError("retry_policy", policy, "give a tenacity.Retrying, or the name of a policy")
    return policy


def _steps(configured: Any) -> Any:
    if not isinstance(configured, str):
        return configured
    try:
        return json.loads(configured)
    except ValueError:
        return [name.strip() for name in configured.split(",") if name.strip()]


def _trace_store(store: Any) -> bool | Pipeline:
    if not isinstance(store, bool | Pipeline):
        raise ConfigurationError("store_trace_info", store, "give True, False or a pipeline to store traces with")
    return store


def _flag(name: str, given: dict[str, Any], configured: RunnerConfiguration) -> bool:
    value: Any = given.get(name, configured[name])
    if not isinstance(value, bool):
        raise ConfigurationError(name, value, "give True or False")
    return value


def _verify(verify: Any) -> Verify | None:
    words: Iterable[str] = get_args(Verify)
    word = str(verify).lower()
    if word in {"true", "false"}:
        return "raise" if word == "true" else None
    if word not in words:
        raise ConfigurationError("verify", verify, f"give True, False or one of {', '.join(map(repr, words))}")
    return "raise" if word == "raise" else "warn"
