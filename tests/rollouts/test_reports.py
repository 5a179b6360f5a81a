"""Reports on rollouts: where versions are, what is not gated, and how soon a harm would be found."""

import asyncio
from dataclasses import replace

from ml.rollouts.reports import detectable_harms
from tests.databases import Database
from tests.example_tips import NOW
from tests.fixtures import ON_SQLITE
from tests.rollouts.scenario import LEARNED, OPERATOR, opened, start


@ON_SQLITE
def test_the_overview_says_what_is_not_gated(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            overview = await scenario.rollouts_with(prompt_policy="sticky").reports.overview()
            assert overview.not_gated == (
                "Prompt versions are not gated: TIP_PROMPT_POLICY is sticky, so TIP_PROMPT_VERSION decides; rollouts "
                "of prompt versions have no effect.",
                "Ranking policies are not gated: SCORE_POLICY decides, until the first rollout of one.",
            )
            assert (await scenario.rollouts.reports.overview()).not_gated[0] == (
                "Prompt versions are not gated before the first rollout of one."
            )
            ended = await start(scenario)
            await scenario.rollouts.rollback(ended.rollout, **OPERATOR)
            running = await start(scenario, "v3-few-shot")
            await scenario.rollouts.start("policy", LEARNED, **OPERATOR)
            overview = await scenario.rollouts.reports.overview()
            assert overview.not_gated == ()
            assert {kind: each.version for kind, each in overview.champions.items()} == {
                "prompt": "v1",
                "policy": "uniform",
            }
            assert [report.version for report in overview.open] == ["v3-few-shot", LEARNED]
            assert [(event.rollout, event.action) for event in overview.ended] == [(ended.rollout, "rollback")]
            assert overview.event == overview.open[0].event == running.id + 2
            assert (await scenario.rollouts.reports.report(ended.rollout)).stage == "registered"

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
            assert "not known" in (await scenario.rollouts.reports.report(event.rollout)).detectable[0]
            scenario.clock.go(hours=26)
            report = await scenario.rollouts.reports.report(event.rollout)
            assert report.detectable[0].startswith("At a share of 1%, a drop of the mean reward from 25.0% to 23.0%")
            assert replace(report.events[0], at=0) == replace(event, at=0)
            assert report.events[0].at == NOW.timestamp()

    asyncio.run(run())
