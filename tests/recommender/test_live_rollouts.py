"""The effective state of rollouts: the first champion, changes without a restart, and sources that cannot be read."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from ml.experiments.rollout_state import RolloutState
from ml.platform.background import BackgroundTasks
from ml.platform.errors import StorageUnavailable
from ml.recommender.live_rollouts import LiveRollouts
from ml.recommender.serving_client import ServingClient
from ml.store.database import Database as Store
from ml.store.rollouts import RolloutLog
from tests.databases import Database
from tests.example_tips import DIGEST, NOW, SetClock
from tests.fake_serving import POLICY_VERSION, FakeServing
from tests.fixtures import ON_SQLITE
from tests.rollout_events import append, move

OTHER_DIGEST = "b" * 64
EVERY = 0.01


@asynccontextmanager
async def following(
    store: Store, url: str, *, decides_prompts: bool = True, first_champion: str | None = None
) -> AsyncIterator[LiveRollouts]:
    """Follow the rollouts in a store, with the serving at a URL."""
    background = BackgroundTasks()
    async with httpx.AsyncClient(base_url=url) as http:
        live = LiveRollouts(
            RolloutLog(store),
            ServingClient(http, timeout=30),
            decides_prompts=decides_prompts,
            first_champion=first_champion,
            clock=SetClock(),
        )
        async with live.keep_current(background, every=EVERY):
            yield live
            await background.check_ready()


async def becomes(condition: Callable[[], bool]) -> bool:
    """Wait until a condition that other tasks change is true; the timeout only ends a failing test."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - other tasks and threads change it
            await asyncio.sleep(EVERY)
    return True


def run(database: Database, test: Callable[[Store], Awaitable[None]]) -> None:
    async def open_and_run() -> None:
        store = Store(database.url)
        try:
            await test(store)
        finally:
            await store.close()

    asyncio.run(open_and_run())


def champion(state: RolloutState) -> tuple[str, str] | None:
    found = state.prompt.champion
    return (found.version, found.digest) if found else None


@pytest.mark.parametrize(("first", "version"), [(None, "v1"), ("v2-mentor", "v2-mentor")])
def test_two_replicas_that_start_together_record_one_first_champion(
    database: Database, fake_serving: FakeServing, first: str | None, version: str
) -> None:
    async def test(store: Store) -> None:
        other = Store(database.url)

        async def start(own: Store) -> RolloutState:
            async with following(own, fake_serving.url, first_champion=first) as live:
                return live.state

        try:
            states = await asyncio.gather(start(store), start(other))
        finally:
            await other.close()
        assert [champion(state) for state in states] == [(version, DIGEST)] * 2
        (event,) = await RolloutLog(store).events()
        assert (event.kind, event.action, event.actor, event.gated) == ("prompt", "initial", "environment", False)
        assert event.at == NOW.timestamp()

    run(database, test)


@ON_SQLITE
def test_no_champion_is_recorded_if_prompts_do_not_follow_rollouts(
    database: Database, fake_serving: FakeServing
) -> None:
    async def test(store: Store) -> None:
        async with following(store, fake_serving.url, decides_prompts=False) as live:
            assert live.state == RolloutState()
        assert await RolloutLog(store).events() == []
        # Nothing refers to the catalogue yet, so serving is not asked.
        assert fake_serving.prompts_requests == 0

    run(database, test)


@ON_SQLITE
@pytest.mark.parametrize(("first", "warns"), [("v2-mentor", True), ("v1", False), (None, False)])
def test_another_first_champion_than_the_recorded_one_is_ignored_with_a_warning(
    database: Database, fake_serving: FakeServing, first: str | None, warns: bool
) -> None:
    async def test(store: Store) -> None:
        await append(store, move("v1", "champion"))
        with capture_logs() as logs:
            async with following(store, fake_serving.url, first_champion=first) as live:
                assert champion(live.state) == ("v1", DIGEST)
        warnings = [line for line in logs if line["event"] == "first_champion_ignored"]
        assert [(line["prompt_version"], line["champion"]) for line in warnings] == [("v2-mentor", "v1")] * warns

    run(database, test)


def test_an_event_is_effective_without_a_restart(database: Database, fake_serving: FakeServing) -> None:
    async def test(store: Store) -> None:
        async with following(store, fake_serving.url) as live:
            before = live.state
            await append(store, move("v2-mentor", "canary", share=0.25))
            assert await becomes(lambda: live.state.event == 2)
            assert live.state.prompt.shares() == {"v1": 0.75, "v2-mentor": 0.25}
            assert before.prompt.shares() == {"v1": 1.0}

    run(database, test)


@ON_SQLITE
def test_an_event_waits_until_serving_has_its_version_with_its_digest(
    database: Database, fake_serving: FakeServing
) -> None:
    async def test(store: Store) -> None:
        with capture_logs() as logs:
            async with following(store, fake_serving.url) as live:
                await append(
                    store,
                    move("v4", "canary", share=0.25),
                    move("0123456789ff", "champion", kind="policy"),
                    move("v2-mentor", "shadow", digest=OTHER_DIGEST),
                )
                assert await becomes(lambda: any(line["event"] == "rollout_not_effective" for line in logs))
                assert live.state.prompt.shares() == {"v1": 1.0}
                assert live.state.policy.champion is None
                fake_serving.digests["v4"] = DIGEST
                fake_serving.policies["0123456789ff"] = "linear"
                assert await becomes(lambda: live.state.event == 3)
                assert live.state.prompt.shares() == {"v1": 0.75, "v4": 0.25}
                assert live.state.policy.shares() == {"0123456789ff": 1.0}
                assert live.state.prompt.shadows == []
                # A rolled-back version that serving has no more is out of use at once.
                del fake_serving.digests["v4"]
                await append(store, move("v4", "registered", rollout=2, from_stage="canary", action="rollback"))
                assert await becomes(lambda: live.state.event == 5)

    run(database, test)


@ON_SQLITE
def test_the_champion_stays_when_a_release_of_serving_changes_its_content(
    database: Database, fake_serving: FakeServing
) -> None:
    async def test(store: Store) -> None:
        await append(store, move("v1", "champion"), move("v2-mentor", "champion"))
        fake_serving.digests = dict.fromkeys(fake_serving.digests, OTHER_DIGEST)
        async with following(store, fake_serving.url, first_champion="v1") as live:
            assert champion(live.state) == ("v2-mentor", OTHER_DIGEST)
        *_, event = await RolloutLog(store).events()
        assert (event.action, event.reason) == ("initial", "serving has another content of the champion")

    run(database, test)


@ON_SQLITE
def test_the_last_state_stays_while_a_source_cannot_be_read_and_each_change_is_logged_once(
    database: Database, fake_serving: FakeServing
) -> None:
    async def test(store: Store) -> None:
        def changes() -> list[tuple[Any, Any]]:
            return [(line["event"], line["source"]) for line in logs if "source" in line]

        with capture_logs() as logs:
            async with following(store, fake_serving.url) as live:
                await append(store, move(POLICY_VERSION, "champion", kind="policy"))
                assert await becomes(lambda: live.state.event == 2)
                known = live.state
                fake_serving.prompts_fail = True
                asked = fake_serving.prompts_requests
                assert await becomes(lambda: fake_serving.prompts_requests > asked + 3)
                assert changes() == [("rollouts_not_read", "catalogue")]
                # Events take effect all the same, with the last catalogue.
                await append(store, move("v2-mentor", "canary", share=0.5))
                assert await becomes(lambda: live.state.event == 3)
                fake_serving.prompts_fail = False
                assert await becomes(lambda: ("rollouts_read_again", "catalogue") in changes())
                logs.clear()
                await asyncio.to_thread(database.rows, "ALTER TABLE rollout_events RENAME TO gone")
                assert await becomes(lambda: ("rollouts_not_read", "rollouts") in changes())
                await asyncio.sleep(5 * EVERY)
                await asyncio.to_thread(database.rows, "ALTER TABLE gone RENAME TO rollout_events")
                assert await becomes(lambda: ("rollouts_read_again", "rollouts") in changes())
                assert changes() == [("rollouts_not_read", "rollouts"), ("rollouts_read_again", "rollouts")]
                assert live.state.policy == known.policy

    run(database, test)


@ON_SQLITE
def test_a_log_that_cannot_be_read_at_the_start_fails_it(database: Database, fake_serving: FakeServing) -> None:
    async def test(store: Store) -> None:
        await asyncio.to_thread(database.rows, "DROP TABLE rollout_events")
        with pytest.raises(StorageUnavailable):
            async with following(store, fake_serving.url):
                pass

    run(database, test)


@ON_SQLITE
def test_without_an_answer_of_serving_all_events_take_effect_and_the_first_champion_waits(
    database: Database, fake_serving: FakeServing
) -> None:
    async def test(store: Store) -> None:
        fake_serving.prompts_fail = True
        async with following(store, fake_serving.url) as live:
            assert live.state == RolloutState()
            fake_serving.prompts_fail = False
            assert await becomes(lambda: champion(live.state) == ("v1", DIGEST))
        fake_serving.prompts_fail = True
        async with following(store, fake_serving.url) as live:
            assert champion(live.state) == ("v1", DIGEST)

    run(database, test)
