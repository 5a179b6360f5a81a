"""The monitor: it rolls back, pauses and promotes, records evidence, and says so once."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from structlog.testing import capture_logs

from ml.experiments.rollout_state import Kind, RolloutEvent
from ml.platform.errors import StorageUnavailable, UpstreamUnreachable
from ml.rollouts.aliases import Aliases
from ml.rollouts.monitor import Monitor
from ml.store.evidence import EvidenceLog
from ml.store.proposals import Proposal, Proposals
from tests.conftest import eventually
from tests.databases import Database
from tests.fake_serving import TIP_RESPONSE, FakeServing
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.rollouts.scenario import CATALOGUE, LEARNED, LEARNED_FIGURES, OPERATOR, Scenario, a_card, opened


class Registry:
    """Stands for MLflow's registry: it keeps the aliases that were set."""

    def __init__(self) -> None:
        self.set: list[tuple[str, Aliases]] = []
        self.failure: str | None = None

    def __call__(self, name: str, aliases: Aliases) -> str | None:
        self.set.append((name, dict(aliases)))
        return self.failure


def a_monitor(scenario: Scenario, **arguments: Any) -> Monitor:
    transitions = Counter("tips_rollout_transitions", "Events.", ("kind", "action"), registry=CollectorRegistry())
    usual: dict[str, Any] = {"holder": "replica-1", "clock": scenario.clock, "transitions": transitions}
    return Monitor(scenario.rollouts, scenario.store.database, **usual | arguments)


async def begin_canary(scenario: Scenario, kind: Kind = "prompt", share: float = 0.5) -> RolloutEvent:
    await scenario.tips("v1", 30, options={"v1": 1.0})
    scenario.clock.go(minutes=1)
    version = "v2-mentor" if kind == "prompt" else LEARNED
    event = await scenario.rollouts.start(kind, version, **OPERATOR)
    return await scenario.rollouts.promote(event.rollout, share=share, force=True, **OPERATOR)


async def actions(scenario: Scenario) -> list[tuple[str, str]]:
    """Return who did what."""
    events, _ = await scenario.rollouts.reports.state()
    return [(event.actor, event.action) for event in events]


def test_a_worse_canary_is_rolled_back_once_its_rewards_are_mature(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await begin_canary(scenario)
            registry = CollectorRegistry()
            transitions = Counter("tips_rollout_transitions", "Events.", ("kind", "action"), registry=registry)
            monitor = a_monitor(scenario, transitions=transitions)
            await scenario.tips("v1", 90, 60)
            await scenario.tips("v2-mentor", 90, 10)
            assert await monitor.check() == []  # no reward is mature yet
            scenario.clock.go(hours=26)
            with capture_logs() as logs:
                (rolled_back,) = await monitor.check()
            assert (rolled_back.rollout, rolled_back.actor, rolled_back.action) == (
                event.rollout,
                "monitor",
                "rollback",
            )
            assert (rolled_back.from_stage, rolled_back.to_stage) == ("canary", "registered")
            assert rolled_back.reason.startswith("The gate no_loss fails. The mean reward, minus the champion's: -55.6")
            assert rolled_back.evidence["failed"] == ["no_loss"]
            assert rolled_back.evidence["reward"]["high"] < 0
            assert (await scenario.rollouts.reports.state())[1].prompt.shares() == {"v1": 1.0}
            labels = {"kind": "prompt", "action": "rollback"}
            assert registry.get_sample_value("tips_rollout_transitions_total", labels) == 1
            (line,) = (log for log in logs if log.get("action") == "rollback")
            assert (line["event"], line["id"], line["failed"]) == ("rollout_event", rolled_back.id, ["no_loss"])
            assert await monitor.check() == []

    asyncio.run(run())


@ON_SQLITE
def test_an_equal_canary_stays(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await begin_canary(scenario)
            monitor = a_monitor(scenario)
            for _ in range(3):
                await scenario.tips("v1", 60, 20)
                await scenario.tips("v2-mentor", 60, 20)
                scenario.clock.go(hours=26)
                await monitor.check()
            assert await actions(scenario) == [("environment", "initial"), ("ada", "start"), ("ada", "promote")]

    asyncio.run(run())


@pytest.mark.parametrize("what", ["failures", "fallbacks", "latency"])
@ON_SQLITE
def test_errors_and_latency_act_at_once(what: str, database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await begin_canary(scenario, share=0.05)
            await scenario.tips("v1", 200, options={"v1": 0.95, "v2-mentor": 0.05})
            fields: Mapping[str, Any] = {"options": {"v1": 0.95, "v2-mentor": 0.05}}
            if what == "failures":
                await scenario.failures("v2-mentor", 10, **fields)
            elif what == "fallbacks":
                await scenario.tips("v2-mentor", 10, fallback=True, **fields)
            else:
                await scenario.tips("v2-mentor", 10, ms=60_000, **fields)
            gate = "no_excess_latency" if what == "latency" else "no_excess_unusable"
            await a_monitor(scenario).check()
            events, _ = await scenario.rollouts.reports.state()
            assert events[-1].evidence["failed"] == [gate]
            assert (await actions(scenario))[-1] == ("monitor", "rollback")

    asyncio.run(run())


@ON_SQLITE
def test_a_policy_that_does_not_answer_is_rolled_back(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await begin_canary(scenario, "policy")
            await scenario.ranked_tips("uniform", 20)
            await scenario.ranked_tips(LEARNED, 20, score_policy="unavailable")
            await a_monitor(scenario).check()
            assert (await actions(scenario))[-1] == ("monitor", "rollback")

    asyncio.run(run())


@ON_SQLITE
def test_an_alarm_pauses_a_rollout_without_rolling_it_back(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await begin_canary(scenario)
            monitor = a_monitor(scenario)
            await scenario.tips("v1", 200)
            await scenario.tips("v2-mentor", 20)
            await monitor.check()
            await monitor.check()
            assert (await actions(scenario))[3:] == [("monitor", "pause")]
            paused = (await scenario.rollouts.reports.report(event.rollout)).events[-1]
            assert paused.reason == "Alarm: the versions were not drawn by their shares."
            assert (paused.share, paused.to_stage) == (0.5, "canary")

            # Who resumes it has seen the alarm; the gate still fails.
            await scenario.rollouts.resume(event.rollout, **OPERATOR)
            await monitor.check()
            assert (await actions(scenario))[4:] == [("ada", "resume")]
            gates = {gate.name: gate.passed for gate in (await scenario.rollouts.reports.report(event.rollout)).gates}
            assert not gates["alarms"]

    asyncio.run(run())


@ON_SQLITE
def test_auto_ramp_steps_as_the_gates_allow(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await begin_canary(scenario, share=0.25)
            ramping, waiting = a_monitor(scenario, auto_ramp=True), a_monitor(scenario)
            for _ in range(2):
                await scenario.tips("v1", 150, 50)
                await scenario.tips("v2-mentor", 150, 50)
                await ramping.check()  # nothing is mature yet
                scenario.clock.go(hours=26)
                await waiting.check()
                await ramping.check()
                await ramping.check()
            report = await scenario.rollouts.reports.report(event.rollout)
            assert [(e.actor, e.action, e.share, e.gated) for e in report.events[2:]] == [
                ("monitor", "ramp", 0.5, True),
                ("monitor", "promote", 1.0, True),
            ]
            assert report.stage == "champion"
            assert report.events[2].reason == "AUTO_RAMP: all gates of the step ramp pass."

    asyncio.run(run())


@ON_SQLITE
def test_a_champion_is_not_rolled_back_by_the_monitor(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await begin_canary(scenario)
            await scenario.rollouts.promote(event.rollout, share=1.0, force=True, **OPERATOR)
            await scenario.failures("v2-mentor", 50, options={"v2-mentor": 1.0})
            await a_monitor(scenario).check()
            assert (await actions(scenario))[-1] == ("ada", "promote")

    asyncio.run(run())


def test_evidence_is_recorded_when_it_changes(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await begin_canary(scenario)
            monitor = a_monitor(scenario)
            await scenario.tips("v1", 20)
            await scenario.tips("v2-mentor", 20)
            evidence = EvidenceLog(scenario.store.database)
            await monitor.check()
            first = await evidence.history(event.rollout)
            assert {row.name for row in first} >= {"totals", "live_unusable", "funnel"}
            (funnel,) = (row.figures for row in first if row.name == "funnel")
            assert funnel["v2-mentor"]["drawn"] == 20
            scenario.clock.go(minutes=1)
            await monitor.check()
            assert await evidence.history(event.rollout) == first
            scenario.clock.go(days=2)
            await monitor.check()  # the tips are mature now
            assert len({row.day for row in await evidence.history(event.rollout)}) == 2

    asyncio.run(run())


@ON_SQLITE
def test_another_model_is_recorded_once_two_checks_have_seen_it(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await begin_canary(scenario)
            monitor = a_monitor(scenario)

            async def recorded() -> list[tuple[str, str]]:
                await monitor.check()
                events, _ = await scenario.rollouts.reports.state()
                return [(event.version, event.action) for event in events if event.kind == "model"]

            assert await recorded() == []
            scenario.catalogue = replace(scenario.catalogue, model="openai/better")
            assert await recorded() == []
            scenario.catalogue = replace(scenario.catalogue, model="openai/good")
            assert await recorded() == []
            assert await recorded() == []
            scenario.catalogue = replace(scenario.catalogue, model="openai/better")
            assert await recorded() == []
            assert await recorded() == [("openai/better", "change")]
            assert await recorded() == [("openai/better", "change")]
            assert (await scenario.rollouts.reports.overview()).model == "openai/better"

    asyncio.run(run())


def test_one_of_two_replicas_acts_and_the_other_one_takes_over(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await begin_canary(scenario)
            first, second = a_monitor(scenario), a_monitor(scenario, holder="replica-2")
            await first.check()
            await scenario.failures("v2-mentor", 20)
            await scenario.tips("v1", 20)
            await second.check()
            assert (await actions(scenario))[-1] == ("ada", "promote")
            await first.release()
            await second.check()
            assert (await actions(scenario))[-1] == ("monitor", "rollback")

    asyncio.run(run())


@ON_SQLITE
def test_events_of_others_are_announced_once(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            event = await begin_canary(scenario)
            monitor = a_monitor(scenario)
            assert await monitor.check() == []  # what was before the start has been announced
            paused = await scenario.rollouts.pause(event.rollout, **OPERATOR)
            assert await monitor.check() == [paused]
            assert await monitor.check() == []

    asyncio.run(run())


@ON_SQLITE
def test_without_rollouts_nothing_is_written(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            assert await a_monitor(scenario).check() == []
            assert [database.count(table) for table in ("leases", "rollout_events", "rollout_evidence")] == [0, 0, 0]

    asyncio.run(run())


@ON_SQLITE
def test_a_failure_is_logged_once_and_the_next_check_tries_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            monitor, outcomes = a_monitor(scenario), ["storage", "storage", "", "", "storage", ""]
            finished = asyncio.Event()

            async def check() -> list[RolloutEvent]:
                if not outcomes:
                    finished.set()
                elif outcomes.pop(0):
                    raise StorageUnavailable("The database is locked.")
                return []

            monkeypatch.setattr(monitor, "check", check)
            with capture_logs() as logs:
                task = asyncio.create_task(monitor.run(0))
                await finished.wait()
                task.cancel()
            assert [(log["event"], log["outcome"]) for log in logs] == [
                ("rollouts_not_checked", "storage-unavailable")
            ] * 2

    asyncio.run(run())


@ON_SQLITE
def test_without_serving_guardrails_still_act(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            await begin_canary(scenario)
            scenario.serving_error = UpstreamUnreachable("Serving cannot be reached.")
            await scenario.tips("v1", 20)
            await scenario.failures("v2-mentor", 20)
            await a_monitor(scenario).check()
            assert (await actions(scenario))[-1] == ("monitor", "rollback")

    asyncio.run(run())


@ON_SQLITE
def test_the_aliases_of_mlflow_mirror_the_stages_of_policies(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            registry = Registry()
            monitor = a_monitor(scenario, set_aliases=registry)
            await begin_canary(scenario)  # of a prompt version
            await monitor.check()
            assert registry.set == []
            event = await scenario.rollouts.start("policy", LEARNED, **OPERATOR)
            await monitor.check()
            await monitor.check()
            assert registry.set == [("tips", {"challenger": None, "shadow": LEARNED})]
            await scenario.rollouts.promote(event.rollout, share=0.5, force=True, **OPERATOR)
            registry.failure = "MLflow does not change the aliases of tips: MlflowException."
            with capture_logs() as logs:
                await monitor.check()
                await monitor.check()
            assert registry.set[1:] == [("tips", {"challenger": LEARNED, "shadow": None})]
            (line,) = (log for log in logs if log["event"] == "aliases_not_set")
            assert (line["model"], line["reason"]) == ("tips", registry.failure)
            await scenario.rollouts.promote(event.rollout, share=1.0, force=True, **OPERATOR)
            await monitor.check()
            assert registry.set[2:] == [("tips", {"challenger": None, "shadow": None, "champion": LEARNED})]

    asyncio.run(run())


@ON_SQLITE
def test_a_running_recommender_rolls_a_failing_version_back(
    database: Database, start_recommender: StartRecommender, fake_serving: FakeServing
) -> None:
    async def begin() -> None:
        async with opened(database, catalogue=replace(CATALOGUE, prompts=fake_serving.digests)) as scenario:
            event = await scenario.rollouts.start("prompt", "v2-mentor", **OPERATOR)
            await scenario.rollouts.promote(event.rollout, share=0.5, force=True, **OPERATOR)

    async def fail_the_canary(request: Request) -> Response:
        version = (await request.json())["prompt_version"]
        if version == "v2-mentor":
            return JSONResponse({"type": "urn:tips:problem:unusable-tip", "status": 502, "detail": "No."}, 502)
        return JSONResponse(TIP_RESPONSE | {"prompt_version": version})

    asyncio.run(begin())
    fake_serving.generate = fail_the_canary
    recommender = start_recommender(tip_prompt_policy="rollout")

    def is_rolled_back() -> bool:
        recommender.post("/tips", json={"user_id": "u"})
        return 'tips_rollout_transitions_total{action="rollback",kind="prompt"} 1.0' in recommender.get("/metrics").text

    assert eventually(is_rolled_back)
    (row,) = database.rows("SELECT actor, reason FROM rollout_events WHERE action = 'rollback'")
    assert row["actor"] == "monitor"
    assert row["reason"].startswith("The gate no_excess_unusable fails.")
    assert database.count("leases") == 1


@ON_SQLITE
@pytest.mark.parametrize("auto_ramp", [False, True])
def test_a_proposed_rollout_starts_by_itself_only_with_auto_ramp_and_when_all_gates_pass(
    database: Database, auto_ramp: bool
) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            proposal = Proposal("policy", LEARNED, scenario.clock(), "models:/tips/3", {"gain": {"low": 0.01}})
            await Proposals(scenario.store.database).put(proposal)
            cards, scenario.cards = scenario.cards, []
            monitor = a_monitor(scenario, auto_ramp=auto_ramp)
            assert await monitor.check() == []
            scenario.cards = cards
            started = [(event.actor, event.action, event.to_stage) for event in await monitor.check()]
            expected = [("environment", "initial", "champion"), ("monitor", "start", "shadow")]
            assert started == (expected if auto_ramp else [])
            assert await monitor.check() == []

    asyncio.run(run())


@ON_SQLITE
def test_a_proposal_waits_while_another_rollout_of_its_kind_runs(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as scenario:
            scenario.catalogue = replace(CATALOGUE, policies={**CATALOGUE.policies, "ba9876543210": "tips"})
            scenario.cards.append(a_card("policy", "ba9876543210", **LEARNED_FIGURES))
            await scenario.rollouts.start("policy", LEARNED, **OPERATOR)
            proposal = Proposal("policy", "ba9876543210", scenario.clock(), "models:/tips/4", {})
            await Proposals(scenario.store.database).put(proposal)
            monitor = a_monitor(scenario, auto_ramp=True)
            await monitor.check()
            assert await actions(scenario) == [("environment", "initial"), ("ada", "start")]
            await scenario.rollouts.rollback(2, **OPERATOR)
            await monitor.check()
            assert await actions(scenario) == [
                ("environment", "initial"),
                ("ada", "start"),
                ("ada", "rollback"),
                ("monitor", "start"),
            ]

    asyncio.run(run())
