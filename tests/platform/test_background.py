"""Background tasks: a task that ends is logged, counted and reported as not ready, unless it was meant to end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog

from ml.platform.background import BackgroundTasks
from ml.platform.errors import NotReady
from ml.platform.telemetry import Telemetry


async def fail() -> None:
    raise LookupError("a message that may quote a signal")


async def end() -> None:
    pass


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


async def cancel_itself() -> None:
    raise asyncio.CancelledError


class Watched:
    """Background tasks with a metric."""

    def __init__(self) -> None:
        self.telemetry = Telemetry()
        self.tasks = BackgroundTasks(self.telemetry.background_task_failures)

    def failures(self, name: str) -> float | None:
        return self.telemetry.registry.get_sample_value("tips_background_task_failures_total", {"task": name})


async def run(watched: Watched, work: Callable[[], Awaitable[None]], **options: Any) -> str | None:
    """Run a task named "part" for a moment; return the detail of the readiness check inside the block."""
    async with watched.tasks.run("part", work(), **options):  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        try:
            await watched.tasks.check_ready()
        except NotReady as error:
            return error.detail
    return None


@pytest.mark.parametrize(("work", "reason"), [(fail, "LookupError"), (end, "returned"), (cancel_itself, "cancelled")])
def test_a_task_that_ends_is_named_by_readiness_log_and_metric(
    work: Callable[[], Awaitable[None]], reason: str
) -> None:
    watched = Watched()
    with structlog.testing.capture_logs() as log:
        detail = asyncio.run(run(watched, work))
    assert detail == f"The service must be restarted: these background tasks have ended: part ({reason})."
    assert watched.failures("part") == 1
    (line,) = log
    assert (line["event"], line["task"], line["reason"]) == ("background_task_failed", "part", reason)


@pytest.mark.parametrize(("work", "options"), [(wait_for_ever, {}), (end, {"endless": False})])
def test_a_task_that_runs_or_ends_as_it_should_is_ready(
    work: Callable[[], Awaitable[None]], options: dict[str, Any]
) -> None:
    watched = Watched()
    with structlog.testing.capture_logs() as log:
        assert asyncio.run(run(watched, work, **options)) is None
    assert watched.failures("part") == 0
    assert log == []


def test_all_failed_tasks_are_named() -> None:
    async def work() -> str:
        tasks = BackgroundTasks()
        async with tasks.run("one", fail()), tasks.run("two", end()), tasks.run("three", wait_for_ever()):
            await asyncio.sleep(0.01)
            with pytest.raises(NotReady) as raised:
                await tasks.check_ready()
            return raised.value.detail

    assert asyncio.run(work()).endswith("have ended: one (LookupError), two (returned).")
