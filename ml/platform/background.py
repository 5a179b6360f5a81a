"""Background tasks and threads that end with the service."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger()


@asynccontextmanager
async def run_in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` as a task until the block ends, then cancel it; a failure is logged."""

    def log_failure(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.error("background_work_failed", exc_info=(type(error), error, error.__traceback__))

    task = asyncio.create_task(work)
    task.add_done_callback(log_failure)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


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
