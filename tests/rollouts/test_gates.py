"""Gates: each one, failing alone, makes a promotion impossible."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ml.experiments.guardrails import OneSidedLimits
from ml.experiments.rollout_state import Kind, RolloutEvent
from ml.platform.errors import RolloutRefused
from ml.rollouts.evidence import Evidence
from ml.rollouts.gate_settings import GateSettings
from ml.rollouts.gates import GATES, GUARDRAILS, Step, check_gates
from tests.databases import Database
from tests.fixtures import ON_SQLITE
from tests.rollouts.scenario import DIGESTS, LEARNED, LENIENT, OPERATOR, Scenario, opened

Journey = Callable[[Scenario], Awaitable[RolloutEvent]]
"""Brings a version to where all gates of its next step pass; returns an event of its rollout."""


async def start_prompt(scenario: Scenario) -> RolloutEvent:
    return await scenario.rollouts.start("prompt", "v2-mentor", **OPERATOR)


async def shadow_prompt(scenario: Scenario, day_1: int = 20, day_2: int = 20, **fields: object) -> RolloutEvent:
    event = await start_prompt(scenario)
    await scenario.shadow_tips(event, day_1, **fields)
    scenario.clock.go(hours=24)
    await scenario.shadow_tips(event, day_2, **fields)
    return event


async def shadow_policy(
    scenario: Scenario,
    n: int = 30,
    shadow: tuple[float, float] = (0.5, 0.5),
    live: tuple[float, float] = (0.5, 0.5),
    rewards: float = 0.5,
) -> RolloutEvent:
    event = await scenario.rollouts.start("policy", LEARNED, **OPERATOR)
    for _ in range(2):
        await scenario.shadow_rankings(event, n, live=live, shadow=shadow, rewards=rewards)
        scenario.clock.go(hours=26)
    return event


async def begin_canary(scenario: Scenario, share: float) -> RolloutEvent:
    await scenario.tips("v1", 30, options={"v1": 1.0})
    scenario.clock.go(minutes=1)
    event = await start_prompt(scenario)
    return await scenario.rollouts.promote(event.rollout, share=share, force=True, **OPERATOR)


async def equal_traffic(scenario: Scenario) -> None:
    await scenario.tips("v1", 150, 50)
    await scenario.tips("v2-mentor", 150, 50)


async def canary(scenario: Scenario, share: float = 0.25) -> RolloutEvent:
    event = await begin_canary(scenario, share)
    await equal_traffic(scenario)
    scenario.clock.go(hours=26)
    return event


async def last_canary(scenario: Scenario) -> RolloutEvent:
    return await canary(scenario, 0.5)


@pytest.mark.parametrize(
    ("journey", "stage"),
    [(shadow_prompt, "canary"), (shadow_policy, "canary"), (canary, "canary"), (last_canary, "champion")],
)
@ON_SQLITE
def test_promotes_when_all_gates_pass(journey: Journey, stage: str, database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await journey(scenario)
            promoted = await scenario.rollouts.promote(event.rollout, **OPERATOR)
            assert (promoted.to_stage, promoted.gated) == (stage, True)
            assert promoted.evidence["failed"] == []

    asyncio.run(run())


# One journey per gate to where it is the only one that fails.


async def without_card(scenario: Scenario) -> RolloutEvent:
    event = await shadow_prompt(scenario)
    scenario.cards = []
    return event


async def with_another_digest(scenario: Scenario) -> RolloutEvent:
    event = await shadow_prompt(scenario)
    scenario.catalogue = replace(scenario.catalogue, prompts=DIGESTS | {"v2-mentor": "f" * 64})
    return event


async def paused(scenario: Scenario) -> RolloutEvent:
    event = await shadow_prompt(scenario)
    return await scenario.rollouts.pause(event.rollout, **OPERATOR)


async def with_few_decisions(scenario: Scenario) -> RolloutEvent:
    return await shadow_prompt(scenario, 20, 19)


async def within_one_day(scenario: Scenario) -> RolloutEvent:
    event = await start_prompt(scenario)
    await scenario.shadow_tips(event, 40)
    return event


async def unusable_in_shadow(scenario: Scenario) -> RolloutEvent:
    event = await shadow_prompt(scenario)
    await scenario.shadow_tips(event, 30, failed=True)
    return event


async def slow_in_shadow(scenario: Scenario) -> RolloutEvent:
    return await shadow_prompt(scenario, ms=1_300)


async def with_long_tips(scenario: Scenario) -> RolloutEvent:
    return await shadow_prompt(scenario, tokens=100)


async def worse_in_shadow(scenario: Scenario) -> RolloutEvent:
    event = await scenario.rollouts.start("policy", LEARNED, **OPERATOR)
    for _ in range(2):
        for chosen, rewards in enumerate((1.0, 0.0)):
            shadow = (0.05, 0.95)
            await scenario.shadow_rankings(event, 30, chosen, live=(0.5, 0.5), shadow=shadow, rewards=rewards)
        scenario.clock.go(hours=26)
    return event


async def without_support(scenario: Scenario) -> RolloutEvent:
    scenario.settings = replace(scenario.settings, min_effective_sample_size=61)
    return await shadow_policy(scenario)


async def out_of_reach(scenario: Scenario) -> RolloutEvent:
    event = await shadow_policy(scenario)
    await scenario.shadow_rankings(event, 10, live=(1.0, 0.0), shadow=(0.4, 0.6), rewards=0.5)
    scenario.clock.go(hours=26)
    return event


async def in_disagreement(scenario: Scenario) -> RolloutEvent:
    scenario.settings = replace(scenario.settings, margin=0.99)
    return await shadow_policy(scenario, live=(0.9, 0.1), shadow=(0.05, 0.95))


async def with_a_loss(scenario: Scenario) -> RolloutEvent:
    event = await begin_canary(scenario, 0.25)
    known: dict[str, Any] = {"user_id": "u-known"}
    await scenario.tips("v1", 1, options={"v1": 1.0}, **known)
    users: tuple[dict[str, Any], ...] = ({}, known)
    for fields in users:  # neither new nor returning users alone are enough to know it
        await scenario.tips("v1", 30, 20, **fields)
        await scenario.tips("v2-mentor", 30, **fields)
    scenario.clock.go(hours=26)
    return event


async def with_failures(scenario: Scenario) -> RolloutEvent:
    event = await begin_canary(scenario, 0.25)
    await scenario.tips("v1", 250)
    await scenario.tips("v2-mentor", 90)
    await scenario.failures("v2-mentor", 160)
    scenario.clock.go(hours=26)
    return event


async def with_slow_tips(scenario: Scenario) -> RolloutEvent:
    event = await begin_canary(scenario, 0.25)
    await scenario.tips("v1", 150)
    await scenario.tips("v2-mentor", 150, ms=1_200)
    scenario.clock.go(hours=26)
    return event


async def with_lost_tips(scenario: Scenario) -> RolloutEvent:
    event = await canary(scenario)
    await scenario.tips("v1", 200)
    return event


async def with_lost_exposures(scenario: Scenario) -> RolloutEvent:
    scenario.exposure_reported = True
    event = await begin_canary(scenario, 0.25)
    await scenario.tips("v1", 200)
    await scenario.tips("v2-mentor", 80)
    await scenario.tips("v2-mentor", 120, seen=False)
    scenario.clock.go(hours=26)
    return event


async def with_unseen_reactions(scenario: Scenario) -> RolloutEvent:
    scenario.exposure_reported = True
    event = await begin_canary(scenario, 0.25)
    await equal_traffic(scenario)
    await scenario.tips("v1", 5, 5, seen=False)
    scenario.clock.go(hours=26)
    return event


async def with_a_harmed_slice(scenario: Scenario) -> RolloutEvent:
    event = await begin_canary(scenario, 0.25)
    for activity, rewarded in (("working", (90, 5)), ("walking", (5, 90))):
        fields: dict[str, Any] = {"segments": (f"activity:{activity}",)}
        await scenario.tips("v1", 100, rewarded[0], **fields)
        await scenario.tips("v2-mentor", 100, rewarded[1], **fields)
    scenario.clock.go(hours=26)
    return event


async def with_few_tips(scenario: Scenario) -> RolloutEvent:
    event = await canary(scenario, 0.05)
    await scenario.rollouts.promote(event.rollout, share=0.25, force=True, **OPERATOR)
    scenario.clock.go(hours=26)
    return event


async def too_early(scenario: Scenario) -> RolloutEvent:
    scenario.settings = replace(scenario.settings, min_step_hours=48)
    return await canary(scenario)


async def not_better(scenario: Scenario) -> RolloutEvent:
    scenario.settings = replace(scenario.settings, criterion="better")
    return await last_canary(scenario)


async def not_known_to_be_usable(scenario: Scenario) -> RolloutEvent:
    scenario.settings = replace(scenario.settings, max_unusable=0.01)
    return await last_canary(scenario)


async def not_known_to_be_fast(scenario: Scenario) -> RolloutEvent:
    scenario.settings = replace(scenario.settings, max_slow=0.01)
    return await last_canary(scenario)


@dataclass(frozen=True)
class Failing:
    """A journey to where one gate fails alone, and its figure and its bound."""

    gate: str
    journey: Journey
    figure: str
    bound: str


FAILING = [
    Failing("card", without_card, "no card", "complete"),
    Failing("listed", with_another_digest, "not listed", "listed by serving"),
    Failing("not_paused", paused, "paused", "not paused"),
    Failing("shadow_decisions", with_few_decisions, "39", "at least 40"),
    Failing("shadow_days", within_one_day, "1", "at least 2"),
    Failing("unusable", unusable_in_shadow, "+42.9 points, at most ", "at most +30.0 points"),
    Failing("latency", slow_in_shadow, "+100.0 points, at most ", "at most +60.0 points"),
    Failing("tokens", with_long_tips, "1.61 times, at most ", "at most 1.50 times"),
    Failing("off_policy_gain", worse_in_shadow, "points, at least -", "above -30.0 points"),
    Failing("support", without_support, "60", "at least 61"),
    Failing("unreachable", out_of_reach, "8.6 %", "at most 5.0 %"),
    Failing("agreement", in_disagreement, "0.15", "at least 0.20"),
    Failing("no_loss", with_a_loss, "-66.7 points, at most -", "not known to be below +0.0 points"),
    Failing("no_excess_unusable", with_failures, "points, with a p-value of ", "at most +30.0 points, or a p-value"),
    Failing("no_excess_latency", with_slow_tips, "+100.0 points, with a p-value of ", "at most +60.0 points, or"),
    Failing("alarms", with_lost_tips, "the versions were not drawn by their shares", "none"),
    Failing("alarms", with_lost_exposures, "the seen tips are not distributed by the shares", "none"),
    Failing("alarms", with_unseen_reactions, "reactions have no exposures", "none"),
    Failing("slices", with_a_harmed_slice, "harmed: activity:working", "none harmed"),
    Failing("step_tips", with_few_tips, "0", "at least 20"),
    Failing("step_hours", too_early, "hours", "at least 48 hours"),
    Failing("reward", not_better, "+0.0 points, at least -", "above +0.0 points (better)"),
    Failing("live_unusable", not_known_to_be_usable, "+0.0 points, at most +", "at most +1.0 points"),
    Failing("live_latency", not_known_to_be_fast, "+0.0 points, at most +", "at most +1.0 points"),
]


def test_every_gate_has_such_a_journey() -> None:
    assert {failing.gate for failing in FAILING} == GATES.keys()


@pytest.mark.parametrize("failing", FAILING, ids=lambda failing: f"{failing.gate}-{failing.journey.__name__}")
@ON_SQLITE
def test_a_single_failing_gate_refuses_the_promotion(failing: Failing, database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await failing.journey(scenario)
            report = await scenario.rollouts.reports.report(event.rollout)
            assert [gate.name for gate in report.gates if not gate.passed] == [failing.gate]
            with pytest.raises(RolloutRefused) as refused:
                await scenario.rollouts.promote(event.rollout, **OPERATOR)
            for part in (f"gate {failing.gate} fails", failing.figure, failing.bound):
                assert part in refused.value.detail
            assert [error.pointer for error in refused.value.errors] == [f"#/gates/{failing.gate}"]
            assert (await scenario.rollouts.reports.report(event.rollout)).events == report.events

            forced = await scenario.rollouts.promote(event.rollout, force=True, actor="ada", reason="I know better.")
            assert (forced.gated, forced.reason) == (False, "I know better.")
            assert forced.evidence["failed"] == [failing.gate]
            assert forced.evidence["gates"][failing.gate]["passed"] is False

    asyncio.run(run())


@ON_SQLITE
def test_a_version_with_an_incomplete_card_stays_registered(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            scenario.cards = [card.model_copy(update={"contact": None}) for card in scenario.cards]
            with pytest.raises(RolloutRefused, match="missing: contact: set CARD_CONTACT"):
                await start_prompt(scenario)
            assert (await scenario.rollouts.reports.state())[0] == []

    asyncio.run(run())


@ON_SQLITE
def test_the_time_of_the_embedded_model_in_the_background_is_not_held_against_a_version(database: Database) -> None:
    async def run() -> None:
        async with opened(database, settings=LENIENT) as scenario:
            event = await shadow_prompt(scenario, ms=9_000, model="embedded/small")
            (latency,) = [
                each for each in (await scenario.rollouts.reports.report(event.rollout)).gates if each.name == "latency"
            ]
            assert (latency.passed, latency.figure.startswith("not comparable")) == (True, True)
            await scenario.shadow_tips(event, 40, ms=9_000)  # by a hosted model
            with pytest.raises(RolloutRefused, match="The gate latency fails"):
                await scenario.rollouts.promote(event.rollout, **OPERATOR)

    asyncio.run(run())


def test_the_defaults_and_a_step_without_data() -> None:
    nothing = Evidence("prompt", "v2-mentor")
    failed = {result.name for result in check_gates(nothing, "champion", GateSettings()) if not result.passed}
    assert failed == {"card", "listed", "step_tips", "step_hours", "reward", "live_unusable", "live_latency"}
    failed = {result.name for result in check_gates(nothing, "canary", GateSettings()) if not result.passed}
    assert failed == {"card", "listed", "shadow_decisions", "shadow_days", "unusable", "latency", "tokens"}
    assert GATES.keys() > {*GUARDRAILS}


@pytest.mark.parametrize("kind", ["prompt", "policy"])
def test_every_step_of_every_kind_has_gates(kind: Kind) -> None:
    steps: dict[Step, set[str]] = {
        step: {result.name for result in check_gates(Evidence(kind, "x"), step, LENIENT)}
        for step in ("shadow", "canary", "ramp", "champion")
    }
    assert steps["shadow"] == {"card", "listed"}
    assert steps["ramp"] < steps["champion"]
    assert ("off_policy_gain" in steps["canary"]) == (kind == "policy")


def test_a_sentence_names_gate_figure_and_bound() -> None:
    evidence = Evidence("prompt", "v2-mentor", reward=OneSidedLimits(-0.02, -0.05, 0.01))
    (result,) = (each for each in check_gates(evidence, "champion", GateSettings()) if each.name == "reward")
    assert result.sentence == (
        "The gate reward fails. The mean reward, minus the champion's: -2.0 points, at least -5.0 points; the bound "
        "is: above -3.0 points (non-inferior)."
    )
