"""The comparison of users who follow rollouts with held-out users."""

import asyncio

import httpx
import pytest
from scipy import stats

from ml.rollouts.holdout import HoldoutComparison, HoldoutReader
from tests.databases import Database
from tests.example_tips import WINDOW
from tests.fixtures import ON_SQLITE
from tests.rollouts.example_rollouts import running_app
from tests.rollouts.scenario import Scenario, opened


async def fill(scenario: Scenario, users: int) -> tuple[list[float], list[float]]:
    """Store tips of both groups; return the mean reward of each user, of those who follow rollouts first."""
    clock = scenario.clock
    await scenario.tips("v2-mentor", 5, 5, policy="rollout", user_id="before-the-holdout")
    clock.go(hours=1)
    means: tuple[list[float], list[float]] = ([], [])
    for number in range(users):
        for group, policy in enumerate(("rollout", "holdout")):
            version, tips, rewarded = ("v2-mentor", 4, number % 4) if policy == "rollout" else ("v1", 2, number % 2)
            options = {version: 1.0}
            await scenario.tips(version, tips, rewarded, options=options, policy=policy, user_id=f"{policy}-{number}")
            means[group].append(rewarded / tips)
    await scenario.tips("v1", 1, 1, policy="rollout", user_id="in-both")
    await scenario.tips("v1", 1, 1, policy="holdout", user_id="in-both")
    await scenario.tips("v1", 1, 1, policy="holdout", user_id="fallback", fallback=True)
    clock.now += WINDOW
    clock.go(hours=2)
    await scenario.tips("v1", 1, 1, policy="holdout", user_id="young")
    return means


async def compare(scenario: Scenario, *, exposure_reported: bool = False) -> HoldoutComparison:
    database = scenario.store.database
    return await HoldoutReader(database, WINDOW, exposure_reported, scenario.clock).compare()


def test_each_user_counts_once_and_the_interval_is_that_of_welch(database: Database) -> None:
    async def work() -> None:
        async with opened(database) as scenario:
            following, held_out = await fill(scenario, 24)
            found = await compare(scenario)
            assert (found.following, found.held_out) == (24, 24)
            assert found.difference
            expected = stats.ttest_ind(following, held_out, equal_var=False)
            interval = expected.confidence_interval(0.95)
            assert found.difference.estimate == pytest.approx(0.375 - 0.25)
            assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))
            assert "+12.5 points" in found.words
            unseen = await compare(scenario, exposure_reported=True)
            assert (unseen.following, unseen.held_out, unseen.difference) == (0, 0, None)

    asyncio.run(work())


@ON_SQLITE
def test_with_few_users_there_is_no_figure(database: Database) -> None:
    async def work() -> HoldoutComparison:
        async with opened(database) as scenario:
            assert (await compare(scenario)).words.startswith("Not known: there are 0 users")
            await fill(scenario, 3)
            with running_app(database.url, scenario.clock) as url:
                async with httpx.AsyncClient(base_url=url, auth=("ada", "open sesame")) as http:
                    answer = (await http.get("/rollouts/holdout")).json()
                    assert answer["words"] in (await http.get("/admin/rollouts?holdout=true")).text
                    assert "Compute the figure" in (await http.get("/admin/rollouts")).text
            assert (answer["following"], answer["held_out"], answer["difference"]) == (3, 3, None)
            return await compare(scenario)

    assert asyncio.run(work()).difference is None
