"""Operations on rollouts: which moves are possible, who wins, and what is recorded."""

import asyncio

import pytest

from ml.experiments.rollout_state import RolloutEvent
from ml.platform.errors import (
    RolloutConflict,
    RolloutRefused,
    UnknownRollout,
    UnprocessableRequest,
    UpstreamUnreachable,
)
from ml.rollouts.operations import Rollouts
from ml.store.proposals import Proposal, Proposals
from tests.databases import Database
from tests.example_tips import NOW
from tests.fixtures import ON_SQLITE
from tests.rollouts.scenario import DIGESTS, FORCED, LEARNED, OPERATOR, opened, start


def test_the_first_champion_is_recorded_before_the_first_rollout(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await start(scenario)
            events, state = await scenario.rollouts.reports.state()
            assert [(e.id, e.action, e.version, e.digest, e.actor, e.gated) for e in events] == [
                (1, "initial", "v1", DIGESTS["v1"], "environment", False),
                (2, "start", "v2-mentor", DIGESTS["v2-mentor"], "ada", True),
            ]
            assert events[1].reason == OPERATOR["reason"]
            assert state.prompt.shares() == {"v1": 1.0}
            await scenario.rollouts.start("policy", LEARNED, **OPERATOR)
            _, state = await scenario.rollouts.reports.state()
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
            _, state = await rollouts.reports.state()
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
            report = await scenario.rollouts.reports.report(event.rollout)
            assert (report.stage, report.move, report.gates) == ("champion", None, ())
            await scenario.rollouts.rollback(event.rollout, **OPERATOR)
            _, state = await scenario.rollouts.reports.state()
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
            _, state = await scenario.rollouts.reports.state()
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
                with pytest.raises(UnprocessableRequest, match="The segment should be one of mood:"):
                    await start(scenario, segment=segment)
            for words in ({"reason": " "}, {"reason": "a\nb"}, {"reason": "x" * 1_001}, {"actor": ""}):
                with pytest.raises(UnprocessableRequest, match="should be one line"):
                    await rollouts.start("prompt", "v1", **OPERATOR | words)
            assert (await rollouts.reports.state())[0] == []
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
                await rollouts.reports.report(99)
            assert len((await rollouts.reports.state())[0]) == 3

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
            assert (await scenario.rollouts.reports.state())[0][-1] == won[0]
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
            _, state = await scenario.rollouts.reports.state()
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
            failed = {
                gate.name for gate in (await scenario.rollouts.reports.report(event.rollout)).gates if not gate.passed
            }
            assert failed >= {"card", "listed"}
            with pytest.raises(RolloutRefused, match="The gate listed fails"):
                await scenario.rollouts.promote(event.rollout, **OPERATOR)
            with pytest.raises(UpstreamUnreachable):
                await start(scenario, "v3-few-shot", segment="locale:de")
            await scenario.rollouts.rollback(event.rollout, **OPERATOR)

    asyncio.run(run())


def a_proposal(version: str = LEARNED) -> Proposal:
    return Proposal("policy", version, NOW, "models:/tips/3", {"gain": {"low": 0.01}})


def test_a_proposal_waits_for_the_gates_of_its_start_and_its_evidence_is_in_the_event(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await Proposals(scenario.store.database).put(a_proposal())
            (report,) = (await scenario.rollouts.reports.overview()).proposals
            assert (report.version, report.can_start) == (LEARNED, True)
            scenario.cards.clear()
            (report,) = (await scenario.rollouts.reports.overview()).proposals
            assert [gate.name for gate in report.gates if not gate.passed] == ["card"]
            scenario.serving_error = UpstreamUnreachable("")
            (report,) = (await scenario.rollouts.reports.overview()).proposals
            assert [gate.name for gate in report.gates if not gate.passed] == ["card", "listed"]
            scenario.serving_error = None
            event = await scenario.rollouts.start("policy", LEARNED, **FORCED)
            assert event.evidence["proposal"] == {"gain": {"low": 0.01}}
            assert (await scenario.rollouts.reports.overview()).proposals == ()

    asyncio.run(run())


@ON_SQLITE
def test_a_rollout_that_nobody_proposed_has_no_evidence_of_a_proposal(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await Proposals(scenario.store.database).put(a_proposal("ba9876543210"))
            event = await scenario.rollouts.start("policy", LEARNED, **OPERATOR)
            assert "proposal" not in event.evidence

    asyncio.run(run())
