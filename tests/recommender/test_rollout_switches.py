"""Two replicas under load while rollouts change: every tip has a version that the event which decided it allows."""

import asyncio
import json
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx

from ml.experiments.rollout_state import fold
from ml.platform.telemetry import Telemetry
from ml.recommender.app import open_state
from ml.recommender.recommend import Recommender
from ml.recommender.settings import RecommenderSettings
from ml.store.rollouts import RolloutLog
from tests.databases import Database
from tests.example_tips import DIGEST
from tests.fake_serving import FakeServing
from tests.rollout_events import append, random_move, wrong_versions

REQUESTS, SWITCHES, CALLERS = 600, 10, 8
VERSIONS = ("v1", "v2-mentor", "v3", "v4")
LOCALES = (None, "de", "en")


@dataclass
class Load:
    """The requests that are left, and the numbers of those that were answered."""

    left: int
    answered: int = 0


async def call(recommenders: list[Recommender], load: Load, rng: random.Random) -> None:
    while load.left:
        load.left -= 1
        locale = rng.choice(LOCALES)
        user = f"u-{rng.randrange(100)}"
        await rng.choice(recommenders).tip(user, {"locale": locale} if locale else {})
        load.answered += 1


def test_no_tip_has_a_version_that_its_event_does_not_allow(database: Database) -> None:
    fake_serving = FakeServing(digests=dict.fromkeys(VERSIONS, DIGEST))
    settings = RecommenderSettings(database_url=database.url, tip_prompt_policy="rollout")
    transport = httpx.ASGITransport(fake_serving.app())

    async def run() -> None:
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://serving"))
            states: list[Any] = [
                await stack.enter_async_context(open_state(settings, Telemetry(), http, poll_seconds=0.02))
                for _ in range(2)
            ]
            load, rng, store = Load(REQUESTS), random.Random(1), states[0]["tip_store"].database
            recommenders = [state["recommender"] for state in states]
            callers = [
                asyncio.create_task(call(recommenders, load, random.Random(number))) for number in range(CALLERS)
            ]
            for number in range(1, SWITCHES + 1):
                while load.answered < number * REQUESTS // (SWITCHES + 1):  # noqa: ASYNC110 - other tasks count
                    await asyncio.sleep(0.005)
                await append(store, random_move(fold(await RolloutLog(store).events()), VERSIONS, rng))
            await asyncio.gather(*callers)
            events = await RolloutLog(store).events()
        assert len(events) == SWITCHES + 1
        tips = await asyncio.to_thread(database.rows, "SELECT * FROM tip_scores")
        for tip in tips:
            tip["options"], tip["segments"] = json.loads(tip["options"]), json.loads(tip["segments"])
        assert len(tips) == REQUESTS
        assert wrong_versions(tips, events) == []
        # The switches took effect under load, and the check can fail.
        assert len({tip["prompt_event"] for tip in tips}) > SWITCHES // 2
        moved = [tip | {"prompt_event": tip["prompt_event"] % len(events) + 1} for tip in tips]
        assert len(wrong_versions(moved, events)) > REQUESTS // 4

    asyncio.run(run())
