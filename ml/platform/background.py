"""Background tasks and threads that end with the service."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import structlog
from prometheus_client import Counter

from ml.platform.errors import NotReady

T = TypeVar("T")

log = structlog.get_logger()


class BackgroundTasks:
    """The background tasks of one service; the service is not ready once one of them has failed."""

    def __init__(self, failures: Counter | None = None) -> None:
        """`failures`: the metric that counts failures, with the name of the task as its label."""
        self._failures = failures
        self._failed: dict[str, str] = {}

    @asynccontextmanager
    async def run(self, name: str, work: Coroutine[Any, Any, None], *, endless: bool = True) -> AsyncIterator[None]:
        """Run `work` as a task until the block ends, then cancel it.

        The task has failed when it raises, when it is cancelled before the block ends, or when it returns although it
        is `endless`. A failure is logged, counted, and reported by `check_ready`.
        """
        is_closing = False

        def on_done(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            ends_as_expected = is_closing or not (endless or task.cancelled())
            if error is None and ends_as_expected:
                return
            reason = type(error).__name__ if error else "cancelled" if task.cancelled() else "returned"
            self._failed[name] = reason
            if self._failures:
                self._failures.labels(name).inc()
            exc_info = error and (type(error), error, error.__traceback__)
            log.error("background_task_failed", task=name, reason=reason, exc_info=exc_info)

        if self._failures:
            self._failures.labels(name)  # so that the metric is 0, and not missing, before a failure
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(on_done)
        try:
            yield
        finally:
            is_closing = True
            task.cancel()
            await asyncio.wait([task])

    async def check_ready(self) -> None:
        """Raise NotReady, naming the tasks, once a task has failed."""
        if self._failed:
            failed = ", ".join(f"{name} ({reason})" for name, reason in self._failed.items())
            raise NotReady(f"The service must be restarted: these background tasks have ended: {failed}.")


async def run_in_daemon_thread(function: Callable[[], T]) -> T:
    """Run `function` in a daemon thread and return its result; the thread does not delay shutdown.

    For work that cannot be cancelled and may take minutes, such as loading a model.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            setter(value)

    def run() -> None:
        outcome: tuple[Callable[[Any], None], Any]
        try:
            outcome = (future.set_result, function())
        except Exception as error:  # noqa: BLE001 - re-raised in the task that awaits the future
            outcome = (future.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed, so no task awaits the future
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return await future
