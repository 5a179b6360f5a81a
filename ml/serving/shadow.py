"""The policy that is only asked: beside the answers, in a thread of its own, where nothing touches them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

import structlog

from ml.experiments.assignment import Assignment
from ml.platform.telemetry import Telemetry
from ml.registry.policies import Policy

log = structlog.get_logger()

MAX_WAITING = 64
"""Decisions; a shadow that does not keep up misses some, rather than be late with all of them."""


class ShadowScorer:
    """Logs what another policy would have chosen, beside what was chosen."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._room = threading.BoundedSemaphore(MAX_WAITING)

    def ask(
        self, shadow: Policy, choose: Callable[[], Assignment], event_id: str, policy: Policy, choice: Assignment
    ) -> None:
        """Have both decisions logged in one event, soon; or not at all, if too many wait already."""
        outcomes = self._telemetry.shadow_scores
        if not self._room.acquire(blocking=False):
            outcomes.labels(shadow.name, shadow.version, "dropped").inc()
            return

        def ask() -> None:
            started = time.perf_counter()
            other = choose()
            log.info(
                "shadow_decision",
                event_id=event_id,
                candidates=len(choice.distribution),
                policy=policy.name,
                policy_version=policy.version,
                chosen=choice.option,
                probability=choice.probability,
                shadow_policy=shadow.name,
                shadow_policy_version=shadow.version,
                shadow_chosen=other.option,
                shadow_probability=other.probability,
                shadow_probability_of_chosen=other.distribution[choice.option],
                shadow_ms=round((time.perf_counter() - started) * 1000, 2),
            )

        def done(future: Future[None]) -> None:
            self._room.release()
            if future.cancelled():
                return
            if error := future.exception():
                log.warning("shadow_failed", event_id=event_id, exc_info=(type(error), error, error.__traceback__))
            outcomes.labels(shadow.name, shadow.version, "failed" if error else "ok").inc()

        self._thread.submit(copy_context().run, ask).add_done_callback(done)

    def close(self) -> None:
        """Forget what still waits."""
        self._thread.shutdown(wait=False, cancel_futures=True)
