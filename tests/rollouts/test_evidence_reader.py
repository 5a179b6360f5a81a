"""The evidence about rollouts: which tips it is from, and what they are compared with."""

import asyncio
from dataclasses import asdict
from typing import Any

import pytest

from ml.experiments.comparison import Stratum, sum_pair
from ml.experiments.guardrails import difference_limits
from ml.experiments.statistics import Sample
from tests.databases import Database
from tests.example_tips import DIGEST
from tests.fixtures import ON_SQLITE
from tests.rollouts.scenario import FORCED, LEARNED, OPERATOR, opened, start


def test_the_latency_limit_is_fixed_when_a_canary_begins(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            for ms in (1_000, 2_000):
                await scenario.tips("v1", 19 if ms == 1_000 else 1, options={"v1": 1.0}, ms=ms)
            scenario.clock.go(minutes=1)
            event = await start(scenario)
            event = await scenario.rollouts.promote(event.rollout, share=0.5, **FORCED)
            assert event.evidence["latency_limit_ms"] == 1_250
            await scenario.tips("v1", 40, ms=1_240)
            await scenario.tips("v2-mentor", 40, ms=1_260)
            for _ in range(2):  # the second time from what was read before
                scenario.clock.go(hours=30)
                evidence = (await scenario.rollouts.reports.report(event.rollout)).evidence
                assert evidence.latency_limit_ms == 1_250
                assert evidence.live_slow
                assert evidence.live_slow.estimate == 1
                assert evidence.slow_excess
                assert evidence.slow_excess.observed == 40

    asyncio.run(run())


@ON_SQLITE
def test_another_model_begins_a_new_evidence_window(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await start(scenario)
            event = await scenario.rollouts.promote(event.rollout, share=0.5, **FORCED)
            for version in ("v1", "v2-mentor"):
                await scenario.tips(version, 60, 20)
            scenario.clock.go(hours=25)
            evidence = (await scenario.rollouts.reports.report(event.rollout)).evidence
            assert (evidence.reward_tips, evidence.step_tips) == (120, 60)

            await scenario.rollouts.record_model("openai/better", expected=event.id)
            evidence = (await scenario.rollouts.reports.report(event.rollout)).evidence
            assert (evidence.reward, evidence.reward_tips, evidence.step_tips) == (None, 0, 0)
            assert evidence.latency_limit_ms is None  # the limit was that of the other model
            await scenario.tips("v1", 200, ms=500)
            scenario.clock.go(minutes=5)
            await scenario.tips("v1", 20, ms=500)
            await scenario.tips("v2-mentor", 20, ms=800)
            evidence = (await scenario.rollouts.reports.report(event.rollout)).evidence
            assert evidence.latency_limit_ms == 625
            assert evidence.slow_excess
            assert evidence.slow_excess.observed == 20

    asyncio.run(run())


@ON_SQLITE
def test_a_policy_is_compared_with_the_champion_by_its_ranked_tips(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await scenario.rollouts.start("policy", LEARNED, **OPERATOR)
            event = await scenario.rollouts.promote(event.rollout, share=0.5, **FORCED)
            await scenario.ranked_tips("uniform", 60, 10)
            await scenario.ranked_tips(LEARNED, 60, 40)
            await scenario.ranked_tips(LEARNED, 30, score_policy="unavailable")
            scenario.clock.go(hours=26)
            evidence = (await scenario.rollouts.reports.report(event.rollout)).evidence
            assert evidence.reward
            assert round(evidence.reward.estimate, 3) == 0.5
            assert evidence.reward_tips == 120
            assert evidence.unusable_excess
            assert evidence.unusable_excess.observed == 30
            assert [(row.version, row.drawn, row.failed, row.mature) for row in evidence.funnel] == [
                ("uniform", 60, 0, 60),
                (LEARNED, 90, 30, 60),
            ]

    asyncio.run(run())


@ON_SQLITE
def test_the_rewards_of_the_day_before_a_canary_centre_its_first_ones(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await scenario.tips("v1", 200, 120, options={"v1": 1.0})
            scenario.clock.go(hours=24)
            event = await start(scenario)
            event = await scenario.rollouts.promote(event.rollout, share=0.5, **FORCED)
            await scenario.tips("v1", 60, 36)
            await scenario.tips("v2-mentor", 60, 30)
            scenario.clock.go(hours=26)
            evidence = (await scenario.rollouts.reports.report(event.rollout)).evidence
        before = Stratum(0, {"v1": 1.0}, "v1", Sample(200, 120, 120))
        shares = {"v1": 0.5, "v2-mentor": 0.5}
        compared = [
            Stratum(1, shares, "v1", Sample(60, 36, 36)),
            Stratum(1, shares, "v2-mentor", Sample(60, 30, 30)),
        ]
        expected = difference_limits(sum_pair(compared, "v1", "v2-mentor", earlier=[before]))
        assert expected
        assert evidence.reward
        assert asdict(evidence.reward) == pytest.approx(asdict(expected))
        assert evidence.reward_tips == 120

    asyncio.run(run())


@ON_SQLITE
def test_tips_of_another_digest_do_not_count_as_evidence(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await start(scenario)
            event = await scenario.rollouts.promote(event.rollout, share=0.5, **FORCED)
            await scenario.tips("v1", 30, 10)
            await scenario.tips("v2-mentor", 30, 10, prompt_digest=DIGEST)
            scenario.clock.go(hours=26)
            assert (await scenario.rollouts.reports.report(event.rollout)).evidence.reward_tips == 0

    asyncio.run(run())


@ON_SQLITE
def test_the_evidence_of_a_segment_is_that_of_its_users(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await start(scenario, segment="locale:de")
            event = await scenario.rollouts.promote(event.rollout, share=0.5, **FORCED)
            german: dict[str, Any] = {"segments": ("locale:de",)}
            await scenario.tips("v1", 30, 10, **german)
            await scenario.tips("v2-mentor", 30, 10, **german)
            await scenario.tips("v1", 30, 10, options={"v1": 1.0}, segments=("locale:fr",))
            scenario.clock.go(hours=26)
            evidence = (await scenario.rollouts.reports.report(event.rollout)).evidence
            assert [row.drawn for row in evidence.funnel] == [30, 30]
            assert {each.name for each in evidence.slices} == {"locale:de", "locale:fr", "visits:new"}

    asyncio.run(run())
