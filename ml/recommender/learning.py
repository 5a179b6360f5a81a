"""What the rotation learns from: the rewards in the store, read beside the requests, so that no tip waits for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog

from ml.platform.background import run_in_background
from ml.platform.clock import Clock
from ml.platform.errors import StorageUnavailable
from ml.recommender.selection import PromptSelector
from ml.store.rollup import hour_of
from ml.store.tips import TipStore

log = structlog.get_logger()

REFRESH_SECONDS = 60.0


@asynccontextmanager
async def keep_learning(
    rotation: PromptSelector, tip_scores: TipStore, *, reaction_window: timedelta, clock: Clock, every: float
) -> AsyncIterator[None]:
    """Let a rotation that learns do so until the block ends: at once, and then `every` so many seconds.

    Raises StorageUnavailable when the rewards cannot be read at first; later, the rotation goes on with what it knows.
    """

    async def learn() -> None:
        # Of younger tips only those with a reaction would count, and a version that is new, or shown more and more, has
        # more of them: it would seem better than it is.
        earned = await tip_scores.counts.earned(hour_of(clock() - reaction_window))
        # Beside the requests: for twenty versions it takes 40 ms.
        await asyncio.to_thread(rotation.learn, earned)

    async def go_on() -> None:
        while True:
            await asyncio.sleep(every)
            try:
                await learn()
            except StorageUnavailable:
                log.warning("rewards_not_read", reason="versions are chosen by the rewards that are known already")

    if not rotation.learns:
        yield
        return
    await learn()
    async with run_in_background(go_on()):
        yield
