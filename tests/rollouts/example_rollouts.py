"""A service with the routes and pages of rollouts only, on a database with rollouts in several stages."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from pydantic import SecretStr

from ml.platform.app_factory import build_service
from ml.platform.errors import UpstreamUnreachable
from ml.platform.settings import ServiceSettings
from ml.platform.telemetry import Telemetry
from ml.rollouts import card_pages, pages
from ml.rollouts.cards import CardReader, CardStore
from ml.rollouts.holdout import HoldoutReader
from ml.rollouts.routes import router
from ml.store.tips import open_tip_store
from tests.example_tips import DIGEST, WINDOW, SetClock
from tests.rollouts.scenario import CATALOGUE, LEARNED, Scenario, a_card
from tests.server import running

PASSWORD = SecretStr("open sesame")
HOSTILE = "v9-<b>&{{7*7}}"
"""The version, the actor and the reasons of a rollout that try to be markup."""

_CATALOGUE = replace(CATALOGUE, prompts={**CATALOGUE.prompts, HOSTILE: DIGEST})
_SEGMENTS = ("locale:de", "activity:working")
_SHARES = {"v1": 0.75, "v2-mentor": 0.25}

Work = Callable[[Scenario], Awaitable[None]]


@asynccontextmanager
async def opened(url: str, clock: SetClock) -> AsyncIterator[Scenario]:
    async with open_tip_store(url, clock, reaction_window=WINDOW) as store:
        scenario = Scenario(store, clock, catalogue=_CATALOGUE)
        scenario.cards.append(a_card("prompt", HOSTILE, digest=DIGEST, purpose=HOSTILE, contact=HOSTILE))
        scenario.cards.append(a_card("model", "openai/good", digest=None))
        yield scenario


def fill(url: str, clock: SetClock, work: Work) -> None:
    """Do work on the database, in an event loop of its own: Playwright has one in this thread."""

    async def open_and_work() -> None:
        async with opened(url, clock) as scenario:
            await work(scenario)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(open_and_work())).result()


@contextmanager
def running_app(
    url: str, clock: SetClock, *, password: SecretStr | None = PASSWORD, serving_answers: bool = True
) -> Iterator[str]:
    """Run the service, and yield its address."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with opened(url, clock) as scenario:
            if not serving_answers:
                scenario.serving_error = UpstreamUnreachable("Serving cannot be reached.")
            store = CardStore(scenario.store.database, WINDOW, exposure_reported=False)
            reader = CardReader(scenario._cards, store, clock)
            holdout = HoldoutReader(scenario.store.database, WINDOW, exposure_reported=False, clock=clock)
            yield {"rollouts": scenario.rollouts, "cards": reader, "holdout": holdout, "ready": []}

    app = build_service(
        lifespan,
        settings=ServiceSettings(),
        telemetry=Telemetry(),
        routers=[router],
        open_routers=[pages.build_router(password), card_pages.build_router(password)],
    )
    with running(app) as address:
        yield address


async def several_stages(scenario: Scenario) -> None:
    """A version that was rolled back, one with a hostile name in shadow, a canary with tips, and a policy in shadow."""
    rollouts, clock = scenario.rollouts, scenario.clock
    ada: dict[str, Any] = {"actor": "ada", "reason": "Warmer words."}
    first = await rollouts.start("prompt", "v3-few-shot", **ada)
    await rollouts.rollback(first.rollout, actor="grace", reason="It repeats its examples.")
    second = await rollouts.start("prompt", "v2-mentor", **ada)
    for _ in range(2):
        await scenario.shadow_tips(second, 40)
        clock.go(days=1)
    await rollouts.promote(second.rollout, share=0.25, **ada)
    for _ in range(2):
        clock.go(hours=2)
        await scenario.tips("v1", 90, 20, options=_SHARES, segments=_SEGMENTS)
        await scenario.tips("v2-mentor", 30, 12, options=_SHARES, segments=_SEGMENTS)
    clock.now += WINDOW
    clock.go(hours=3)
    await rollouts.start("prompt", HOSTILE, segment="locale:fr", actor=HOSTILE, reason=HOSTILE)
    policy = await rollouts.start("policy", LEARNED, actor="grace", reason="The nightly policy.")
    await scenario.shadow_rankings(policy, 30, live=[0.5, 0.5], shadow=[0.7, 0.3], rewards=0.5)
    clock.now += WINDOW
    clock.go(hours=2)
