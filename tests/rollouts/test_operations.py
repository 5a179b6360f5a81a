"""Operations on rollouts: which moves are possible, who wins, and what is recorded."""

import asyncio
from dataclasses import asdict, replace
from typing import Any

import pytest

from ml.experiments.comparison import Stratum, sum_pair
from ml.experiments.guardrails import difference_limits
from ml.experiments.rollout_state import RolloutEvent
from ml.experiments.statistics import Sample
from ml.platform.errors import (
    RolloutConflict,
    RolloutRefused,
    UnknownRollout,
    UnprocessableRequest,
    UpstreamUnreachable,
)
from ml.rollouts.operations import Rollouts
from ml.rollouts.reports import detectable_harms
from ml.store.proposals import Proposal, Proposals
from tests.databases import Database
from tests.example_tips import DIGEST, NOW
from tests.fixtures import ON_SQLITE
from tests.rollouts.scenario import DIGESTS, LEARNED, OPERATOR, Scenario, opened

FORCED = {**OPERATOR, "force": True}


async def start(scenario: Scenario, version: str = "v2-mentor", segment: str = "") -> RolloutEvent:
    return await scenario.rollouts.start("prompt", version, segment=segment, **OPERATOR)


def test_the_first_champion_is_recorded_before_the_first_rollout(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await start(scenario)
            events, state = await scenario.rollouts.state()
            assert [(e.id, e.action, e.version, e.digest, e.actor, e.gated) for e in events] == [
                (1, "initial", "v1", DIGESTS["v1"], "environment", False),
                (2, "start", "v2-mentor", DIGESTS["v2-mentor"], "ada", True),
            ]
            assert events[1].reason == OPERATOR["reason"]
            assert state.prompt.shares() == {"v1": 1.0}
            await scenario.rollouts.start("policy", LEARNED, **OPERATOR)
            _, state = await scenario.rollouts.state()
            assert state.policy.champion is not None
            assert state.policy.champion.version == "uniform"

    asyncio.run(run())


@ON_SQLITE
def test_the_first_champion_is_that_of_the_environment(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            rollouts = scenario.rollouts_with(prompt_versions=("v3-few-shot",))
            with pytest.raises(RolloutRefused, match="v3-few-shot is the champion already"):
                await rollouts.start("prompt", "v3-few-shot", **OPERATOR)
            await rollouts.start("prompt", "v1", **OPERATOR)
            _, state = await rollouts.state()
            assert state.prompt.champion
            assert state.prompt.champion.version == "v3-few-shot"

    asyncio.run(run())


@ON_SQLITE
def test_a_rollout_steps_through_the_ramp_to_champion_and_back(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await start(scenario)
            steps = []
            for _ in range(5):
                event = await scenario.rollouts.promote(event.rollout, **FORCED)
                steps.append((event.action, event.to_stage, event.share))
            assert steps == [
                ("promote", "canary", 0.01),
                ("ramp", "canary", 0.05),
                ("ramp", "canary", 0.25),
                ("ramp", "canary", 0.5),
                ("promote", "champion", 1.0),
            ]
            with pytest.raises(RolloutRefused, match="is the champion already"):
                await scenario.rollouts.promote(event.rollout, **FORCED)
            report = await scenario.rollouts.report(event.rollout)
            assert (report.stage, report.move, report.gates) == ("champion", None, ())
            await scenario.rollouts.rollback(event.rollout, **OPERATOR)
            _, state = await scenario.rollouts.state()
            assert state.prompt.shares() == {"v1": 1.0}
            with pytest.raises(RolloutRefused, match="v1 is the first champion"):
                await scenario.rollouts.rollback(1, **OPERATOR)
            with pytest.raises(RolloutRefused, match="has ended"):
                await scenario.rollouts.rollback(event.rollout, **OPERATOR)

    asyncio.run(run())


@ON_SQLITE
def test_the_canary_of_a_segment_begins_anew_with_everyone(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await start(scenario, segment="locale:de")
            event = await scenario.rollouts.promote(event.rollout, share=0.5, **FORCED)
            _, state = await scenario.rollouts.state()
            assert state.prompt.shares(["locale:de"]) == {"v1": 0.5, "v2-mentor": 0.5}
            assert state.prompt.shares(["locale:fr"]) == {"v1": 1.0}
            with pytest.raises(UnprocessableRequest, match="below 1"):
                await scenario.rollouts.promote(event.rollout, share=1.0, **FORCED)
            event = await scenario.rollouts.promote(event.rollout, **FORCED)
            assert (event.action, event.to_stage, event.share, event.segment) == ("ramp", "canary", 0.01, "")

    asyncio.run(run())


@ON_SQLITE
def test_there_is_one_rollout_at_a_time_of_each_kind_and_segment(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            first = await start(scenario)
            with pytest.raises(RolloutRefused, match="The rollout 2 of v2-mentor is in shadow"):
                await start(scenario, "v3-few-shot")
            with pytest.raises(RolloutRefused, match="The rollout 2 of v2-mentor is in shadow"):
                await start(scenario, segment="locale:de")
            await start(scenario, "v3-few-shot", segment="locale:de")
            await scenario.rollouts.rollback(first.rollout, **OPERATOR)
            again = await start(scenario)
            assert again.rollout == again.id

    asyncio.run(run())


@ON_SQLITE
def test_wrong_input_is_refused_and_changes_nothing(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            rollouts = scenario.rollouts
            with pytest.raises(UnprocessableRequest) as unknown:
                await rollouts.start("prompt", "v9", **OPERATOR)
            assert unknown.value.errors[0].allowed == tuple(DIGESTS)
            for kind, version in (("policy", "v1"), ("model", "openai/good")):
                with pytest.raises(UnprocessableRequest):
                    await rollouts.start(kind, version, **OPERATOR)  # type: ignore[arg-type]
            for segment in ("mood", "mood:", "visits:new", "energy:5", ":de", "locale:\n"):
                with pytest.raises(UnprocessableRequest, match="for example locale:de"):
                    await start(scenario, segment=segment)
            for words in ({"reason": " "}, {"reason": "a\nb"}, {"reason": "x" * 1_001}, {"actor": ""}):
                with pytest.raises(UnprocessableRequest, match="should be one line"):
                    await rollouts.start("prompt", "v1", **OPERATOR | words)
            assert (await rollouts.state())[0] == []
            event = await start(scenario)
            for share in (0.0, -0.1, 1.0, 1.1, float("nan")):
                with pytest.raises(UnprocessableRequest, match="share should be above 0 and below 1"):
                    await rollouts.promote(event.rollout, share=share, **FORCED)
            await rollouts.promote(event.rollout, share=0.05, **FORCED)
            with pytest.raises(UnprocessableRequest, match=r"above 0.05 and at most 1"):
                await rollouts.promote(event.rollout, share=0.05, **FORCED)
            for operation in (rollouts.promote, rollouts.pause, rollouts.resume, rollouts.rollback):
                with pytest.raises(UnknownRollout):
                    await operation(99, **OPERATOR)
            with pytest.raises(UnknownRollout):
                await rollouts.report(99)
            assert len((await rollouts.state())[0]) == 3

    asyncio.run(run())


def test_of_concurrent_operators_one_wins_and_the_others_are_told(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await start(scenario)
            last = event.id
            results = await asyncio.gather(
                *(
                    Rollouts.rollback(scenario.rollouts, event.rollout, actor=f"op-{n}", reason="Mine.", expected=last)
                    for n in range(5)
                ),
                return_exceptions=True,
            )
            won = [result for result in results if isinstance(result, RolloutEvent)]
            lost = [result for result in results if isinstance(result, RolloutConflict | RolloutRefused)]
            assert (len(won), len(lost)) == (1, 4)
            assert (await scenario.rollouts.state())[0][-1] == won[0]
            with pytest.raises(RolloutConflict, match="Somebody else has changed a rollout"):
                await scenario.rollouts.start("prompt", "v3-few-shot", expected=last, **OPERATOR)

    asyncio.run(run())


@ON_SQLITE
def test_a_paused_rollout_keeps_its_share_until_it_is_resumed(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await start(scenario)
            await scenario.rollouts.promote(event.rollout, share=0.2, **FORCED)
            with pytest.raises(RolloutRefused, match="is not paused"):
                await scenario.rollouts.resume(event.rollout, **OPERATOR)
            await scenario.rollouts.pause(event.rollout, **OPERATOR)
            with pytest.raises(RolloutRefused, match="is paused already"):
                await scenario.rollouts.pause(event.rollout, **OPERATOR)
            _, state = await scenario.rollouts.state()
            assert state.prompt.shares() == {"v1": 0.8, "v2-mentor": 0.2}
            resumed = await scenario.rollouts.resume(event.rollout, **OPERATOR)
            assert (resumed.share, resumed.paused, resumed.gated) == (0.2, False, False)

    asyncio.run(run())


@ON_SQLITE
def test_without_serving_there_are_reports_but_promotions_need_force(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await start(scenario)
            scenario.serving_error = UpstreamUnreachable("Serving cannot be reached.")
            failed = {gate.name for gate in (await scenario.rollouts.report(event.rollout)).gates if not gate.passed}
            assert failed >= {"card", "listed"}
            with pytest.raises(RolloutRefused, match="The gate listed fails"):
                await scenario.rollouts.promote(event.rollout, **OPERATOR)
            with pytest.raises(UpstreamUnreachable):
                await start(scenario, "v3-few-shot", segment="locale:de")
            await scenario.rollouts.rollback(event.rollout, **OPERATOR)

    asyncio.run(run())


@ON_SQLITE
def test_the_overview_says_what_is_not_gated(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            overview = await scenario.rollouts_with(prompt_policy="sticky").overview()
            assert overview.not_gated == (
                "Prompt versions are not gated: TIP_PROMPT_POLICY is sticky, so TIP_PROMPT_VERSION decides; rollouts "
                "of prompt versions have no effect.",
                "Ranking policies are not gated: SCORE_POLICY decides, until the first rollout of one.",
            )
            assert (await scenario.rollouts.overview()).not_gated[0] == (
                "Prompt versions are not gated before the first rollout of one."
            )
            ended = await start(scenario)
            await scenario.rollouts.rollback(ended.rollout, **OPERATOR)
            running = await start(scenario, "v3-few-shot")
            await scenario.rollouts.start("policy", LEARNED, **OPERATOR)
            overview = await scenario.rollouts.overview()
            assert overview.not_gated == ()
            assert {kind: each.version for kind, each in overview.champions.items()} == {
                "prompt": "v1",
                "policy": "uniform",
            }
            assert [report.version for report in overview.open] == ["v3-few-shot", LEARNED]
            assert [(event.rollout, event.action) for event in overview.ended] == [(ended.rollout, "rollback")]
            assert overview.event == overview.open[0].event == running.id + 2
            assert (await scenario.rollouts.report(ended.rollout)).stage == "registered"

    asyncio.run(run())


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
                evidence = (await scenario.rollouts.report(event.rollout)).evidence
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
            evidence = (await scenario.rollouts.report(event.rollout)).evidence
            assert (evidence.reward_tips, evidence.step_tips) == (120, 60)

            await scenario.rollouts.record_model("openai/better", expected=event.id)
            evidence = (await scenario.rollouts.report(event.rollout)).evidence
            assert (evidence.reward, evidence.reward_tips, evidence.step_tips) == (None, 0, 0)
            assert evidence.latency_limit_ms is None  # the limit was that of the other model
            await scenario.tips("v1", 200, ms=500)
            scenario.clock.go(minutes=5)
            await scenario.tips("v1", 20, ms=500)
            await scenario.tips("v2-mentor", 20, ms=800)
            evidence = (await scenario.rollouts.report(event.rollout)).evidence
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
            evidence = (await scenario.rollouts.report(event.rollout)).evidence
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
            evidence = (await scenario.rollouts.report(event.rollout)).evidence
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
            assert (await scenario.rollouts.report(event.rollout)).evidence.reward_tips == 0

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
            evidence = (await scenario.rollouts.report(event.rollout)).evidence
            assert [row.drawn for row in evidence.funnel] == [30, 30]
            assert {each.name for each in evidence.slices} == {"locale:de", "locale:fr", "visits:new"}

    asyncio.run(run())


def test_how_many_tips_it_takes_to_find_a_harm() -> None:
    assert detectable_harms(0.23, 0.1)[-1] == (
        "At a share of 10%, a drop of the mean reward from 23.0% to 15.0% is found after about 4,300 tips with a "
        "probability of 90 %."
    )
    assert [sentence.partition(" to ")[0] for sentence in detectable_harms(0.04, 0.5)] == [
        "At a share of 50%, a drop of the mean reward from 4.0%"
    ]
    assert "more than a million tips" in detectable_harms(0.5, 0.001)[0]
    assert "not known" in detectable_harms(None, 0.1)[0]
    assert "compared with nothing" in detectable_harms(0.5, 1.0)[0]


@ON_SQLITE
def test_a_report_names_the_rate_of_the_champion(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await start(scenario)
            await scenario.tips("v1", 40, 10, options={"v1": 1.0})
            assert "not known" in (await scenario.rollouts.report(event.rollout)).detectable[0]
            scenario.clock.go(hours=26)
            report = await scenario.rollouts.report(event.rollout)
            assert report.detectable[0].startswith("At a share of 1%, a drop of the mean reward from 25.0% to 23.0%")
            assert replace(report.events[0], at=0) == replace(event, at=0)
            assert report.events[0].at == NOW.timestamp()

    asyncio.run(run())


def a_proposal(version: str = LEARNED) -> Proposal:
    return Proposal("policy", version, NOW, "models:/tips/3", {"gain": {"low": 0.01}})


def test_a_proposal_waits_for_the_gates_of_its_start_and_its_evidence_is_in_the_event(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await Proposals(scenario.store.database).put(a_proposal())
            (report,) = (await scenario.rollouts.overview()).proposals
            assert (report.version, report.can_start) == (LEARNED, True)
            scenario.cards.clear()
            (report,) = (await scenario.rollouts.overview()).proposals
            assert [gate.name for gate in report.gates if not gate.passed] == ["card"]
            scenario.serving_error = UpstreamUnreachable("")
            (report,) = (await scenario.rollouts.overview()).proposals
            assert [gate.name for gate in report.gates if not gate.passed] == ["card", "listed"]
            scenario.serving_error = None
            event = await scenario.rollouts.start("policy", LEARNED, **FORCED)
            assert event.evidence["proposal"] == {"gain": {"low": 0.01}}
            assert (await scenario.rollouts.overview()).proposals == ()

    asyncio.run(run())


@ON_SQLITE
def test_a_rollout_that_nobody_proposed_has_no_evidence_of_a_proposal(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await Proposals(scenario.store.database).put(a_proposal("ba9876543210"))
            event = await scenario.rollouts.start("policy", LEARNED, **OPERATOR)
            assert "proposal" not in event.evidence

    asyncio.run(run())
