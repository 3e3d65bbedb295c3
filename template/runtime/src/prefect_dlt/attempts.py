"""Make what comes before a pipeline's run again when it fails, as the runner's policy says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, retry_if_exception
from tenacity.nap import sleep as default_sleep

from prefect_dlt.configuration import RunnerSettings
from prefect_dlt.known_secrets import known_secrets
from prefect_dlt.reasons import reason_line
from prefect_dlt.redact import redaction
from prefect_dlt.retry import worth_retrying
from prefect_dlt.stop import pause

logger = logging.getLogger("prefect_dlt")

Made = TypeVar("Made")


def attempted(settings: RunnerSettings, what: str, make: Callable[[], Made]) -> Made:
    """Return what `make` returns, and call it again after a failure that may pass, as often as the policy says.

    Args:
        settings: Of the runner: its policy, and which steps are made again.
        what: What is being done, for the log.
        make: Does it.
    """

    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None:
            seconds = state.next_action.sleep if state.next_action else 0.0
            said = reason_line(error, redaction(known_secrets()))
            number = state.attempt_number
            logger.warning(
                "Attempt %s to %s failed, and the next one starts in %.1f s: %s", number, what, seconds, said
            )
        if settings.policy.before_sleep is not None:
            settings.policy.before_sleep(state)

    policy = settings.policy.copy(
        retry=settings.policy.retry & retry_if_exception(worth_retrying(settings.retry_pipeline_steps)),
        before_sleep=before_sleep,
        # Whoever has given another knows why.
        sleep=pause if settings.policy.sleep is default_sleep else settings.policy.sleep,
        reraise=True,
    )
    return policy(make)
