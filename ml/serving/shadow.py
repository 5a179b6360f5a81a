"""The shadow policy: it runs in its own thread, its decisions are logged, and it never affects an answer."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

import structlog

from ml.experiments.assignment import Assignment
from ml.platform.telemetry import Telemetry
from ml.registry.policies import Ranker

log = structlog.get_logger()

MAX_WAITING = 64
"""The maximum number of decisions that wait for the shadow policy; further ones are dropped."""


class ShadowScorer:
    """Logs the decisions of a shadow policy together with those of the live policy."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._free_slots = threading.BoundedSemaphore(MAX_WAITING)

    def submit(
        self, shadow: Ranker, draw: Callable[[], Assignment], event_id: str, policy: Ranker, drawn: Assignment
    ) -> None:
        """Log the shadow's draw and the live policy's (`drawn`) as one event, later; drop it if too many wait."""
        outcomes = self._telemetry.shadow_scores
        if not self._free_slots.acquire(blocking=False):
            outcomes.labels(shadow.name, shadow.version, "dropped").inc()
            return

        def run() -> None:
            started = time.perf_counter()
            shadow_drawn = draw()
            log.info(
                "shadow_decision",
                event_id=event_id,
                candidates=len(drawn.distribution),
                policy=policy.name,
                policy_version=policy.version,
                chosen=drawn.option,
                probability=drawn.probability,
                shadow_policy=shadow.name,
                shadow_policy_version=shadow.version,
                shadow_chosen=shadow_drawn.option,
                shadow_probability=shadow_drawn.probability,
                shadow_probability_of_chosen=shadow_drawn.distribution[drawn.option],
                shadow_ms=round((time.perf_counter() - started) * 1000, 2),
            )

        def on_done(future: Future[None]) -> None:
            self._free_slots.release()
            if future.cancelled():
                return
            if error := future.exception():
                log.warning("shadow_failed", event_id=event_id, exc_info=(type(error), error, error.__traceback__))
            outcomes.labels(shadow.name, shadow.version, "failed" if error else "ok").inc()

        self._thread.submit(copy_context().run, run).add_done_callback(on_done)

    def close(self) -> None:
        """End the thread; decisions that are waiting are dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)
