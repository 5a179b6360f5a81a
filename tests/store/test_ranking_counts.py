"""The draws of rollouts: of prompt versions once per decision, and of ranking policies."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from ml.experiments.policies import POLICIES
from ml.platform.errors import UpstreamFailed
from ml.platform.idempotency_key import IdempotencyKey
from ml.rewards.funnel import PeriodCounts, build_funnel
from ml.store.day_counts import RankingCounts
from ml.store.exposures import Exposure
from ml.store.failures import GenerationFailure
from ml.store.hours import hour_of
from ml.store.reactions import Reaction
from ml.store.recount import recount
from ml.store.tip_dimensions import DrawOutcome
from ml.store.tip_records import TipRecord
from ml.store.tips import Reservation, TipStore, open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_failure, a_tip
from tests.store.rebuilt_counts import check_counts

ALL_HOURS = range(2**31 - 1)
MATURE = hour_of(NOW) + 1
SHARES = {"v1": 0.75, "v2-mentor": 0.25}
POLICY_SHARES = {"uniform": 0.9, "abc": 0.1}


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[TipStore]:
    async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
        yield store


def a_decision(
    outcomes: Sequence[str], ids: Sequence[UUID] | None = None, version: str = "v1", **fields: Any
) -> tuple[list[TipRecord], list[GenerationFailure]]:
    """Return the tips and failures of a decision under `rollout`, in which the last written candidate is shown.

    `outcomes`: of each candidate, "written", "fallback" or "failed".
    """
    ids = ids or [uuid4() for _ in outcomes]
    written = [tip_id for tip_id, outcome in zip(ids, outcomes, strict=True) if outcome != "failed"]
    drawn = {"policy": "rollout", "options": SHARES, "probability": SHARES[version], "prompt_version_asked": version}
    of_decision = drawn | {"decision_id": (written or [*ids])[0]}
    tips = [
        a_tip(
            tip_id=tip_id,
            fallback=outcome == "fallback",
            prompt_version=version,
            shown=tip_id == written[-1],
            score_policy="linear",
            candidates=[str(each) for each in written],
            **of_decision | fields,
        )
        for tip_id, outcome in zip(ids, outcomes, strict=True)
        if outcome != "failed"
    ]
    failed = [tip_id for tip_id in ids if tip_id not in written]
    return tips, [a_failure(tip_id=tip_id, **of_decision) for tip_id in failed]


async def draws(store: TipStore) -> dict[DrawOutcome, int]:
    found: Counter[DrawOutcome] = Counter()
    for draw in await store.counts.draws("", ALL_HOURS, MATURE):
        found[draw.outcome] += draw.tips
    return dict(found)


async def rankings(store: TipStore, segment: str = "") -> dict[tuple[str, DrawOutcome, bool], tuple[int, float]]:
    counts = await store.counts.rankings(segment, ALL_HOURS, MATURE)
    return {(count.policy_version, count.outcome, count.seen): (count.tips, count.reward) for count in counts}


def test_a_decision_of_rollouts_is_one_draw_of_its_version_however_many_candidates_it_had(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as store:
            expected: Counter[str] = Counter()
            for outcomes, outcome in (
                (["written"], "comparable"),
                (["written", "written", "written"], "comparable"),
                (["failed", "written", "failed"], "comparable"),
                (["written", "fallback"], "fallback"),
                (["failed", "failed", "failed"], "failed"),
            ):
                tips, failures = a_decision(outcomes)
                await (store.add(*tips, failures=failures) if tips else store.add_failures(failures))
                expected[outcome] += 1
                assert await draws(store) == expected
            holdout: dict[str, Any] = {"policy": "holdout", "options": {"v1": 1.0}, "probability": 1.0}
            tips, failures = a_decision(["written", "written", "written"], **holdout)
            await store.add(*tips)
            assert await draws(store) == expected | {"per_user": 1}
            users = [draw.rewards.n async for draw in store.user_draws("", ALL_HOURS, MATURE)]
            assert sum(users) == expected["comparable"]

    asyncio.run(run())
    check_counts(database)


def test_a_retry_after_a_decision_without_a_tip_leaves_one_draw(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as store:
            for number, retry in enumerate((["failed", "written"], ["written", "failed"], ["failed", "failed"])):
                ids = [uuid4(), uuid4()]
                key = IdempotencyKey(f"{number}" * 64, "b" * 64)
                before = await draws(store)
                for outcomes in (["failed", "failed"], retry):
                    tips, failures = a_decision(outcomes, ids)
                    with suppress(UpstreamFailed):
                        async with store.reserve(key, "u-1", [], timedelta(seconds=9)) as reserved:
                            assert isinstance(reserved, Reservation)
                            if not tips:
                                await store.add_failures(failures, reserved.claim)
                                raise UpstreamFailed("No tip was written.")
                            await store.add(*tips, failures=failures, claim=reserved.claim)
                    await asyncio.to_thread(check_counts, database)
                after = await draws(store)
                assert sum(after.values()) == sum(before.values()) + 1
                outcome: DrawOutcome = "comparable" if "written" in retry else "failed"
                assert after[outcome] == before.get(outcome, 0) + 1

    asyncio.run(run())
    check_counts(database)


def test_draws_of_ranking_policies_are_counted_with_the_reward_in_the_window_and_recounted(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as store:
            drawn: dict[str, Any] = {"policy_options": POLICY_SHARES, "policy_asked": "abc", "policy_event": 7}
            tips, _ = a_decision(["written", "written"], **drawn)
            shown = tips[-1]
            await store.add(*tips)
            others = [
                a_tip(**drawn | {"policy_asked": "uniform"}, score_policy="uniform", user_id="u-2"),
                a_tip(**drawn, score_policy="unavailable"),
                a_tip(**drawn, fallback=True),
                a_tip(policy_options={"uniform": 1.0}, policy_asked="uniform"),
                a_tip(),
            ]
            await store.add(*others)
            unseen = {
                ("abc", "comparable", False): (1, 0),
                ("uniform", "comparable", False): (1, 0),
                ("abc", "failed", False): (1, 0),
                ("abc", "fallback", False): (1, 0),
            }
            assert await rankings(store) == await rankings(store, "mood:low") == unseen
            await store.react([Reaction(shown.tip_id, "saved"), Reaction(tips[0].tip_id, "done")])
            await store.expose([Exposure(others[0].tip_id)])
            seen = {key: value for key, value in unseen.items() if key[0] != "uniform"}
            expected = seen | {("abc", "comparable", False): (1, 0.5), ("uniform", "comparable", True): (1, 0)}
            assert await rankings(store) == expected
            (count,) = [each for each in await store.counts.rankings("", ALL_HOURS, MATURE) if each.seen]
            day = hour_of(NOW) // 24
            assert count == RankingCounts(day, POLICY_SHARES, "uniform", "comparable", True, True, 1, 0.0, 0.0)
            await asyncio.to_thread(check_counts, database)
            await recount(store.database, WINDOW)
            assert await rankings(store) == expected
            await asyncio.to_thread(check_counts, database)
            await store.forget("u-2")
            del expected["uniform", "comparable", True]
            assert await rankings(store) == expected
            await asyncio.to_thread(check_counts, database)
            await store.purge(NOW + timedelta(hours=1))
            assert await rankings(store, "mood:low") == {}
            assert await rankings(store) == expected
            assert (await recount(store.database, WINDOW)).dropped_hours == 0
            assert await rankings(store) == expected
            assert (await recount(store.database, 2 * WINDOW)).dropped_hours == 1
            assert await rankings(store) == {}

    asyncio.run(run())
    check_counts(database)


def test_the_columns_of_rollouts_are_stored_with_the_tip(database: Database) -> None:
    fields: Mapping[str, Any] = {
        "prompt_event": 5,
        "policy_asked": "abc",
        "policy_options": POLICY_SHARES,
        "policy_event": 7,
    }
    key = IdempotencyKey("k" * 64, "b" * 64)

    async def run() -> None:
        async with opened(database) as store:
            tip = a_tip(**fields)
            async with store.reserve(key, "u-1", [], timedelta(seconds=9)) as reserved:
                assert isinstance(reserved, Reservation)
                await store.add(tip, claim=reserved.claim)
            async with store.reserve(key, "u-1", [], timedelta(seconds=9)) as stored:
                assert stored == replace(tip, segments=(*tip.segments, "visits:new"))

    asyncio.run(run())


def test_versions_that_fail_alike_pass_the_sample_ratio_test_and_one_that_fails_more_does_not(
    sqlite_database: Database,
) -> None:
    """600 decisions of three candidates; of the canary's tips, either as many fail as of the champion's, or most."""
    rng = random.Random(3)

    def decisions(failing: Mapping[str, float]) -> list[tuple[list[TipRecord], list[GenerationFailure]]]:
        made = []
        for _ in range(600):
            ids = [UUID(int=rng.getrandbits(128), version=4) for _ in range(3)]
            versions = {each.option for each in POLICIES["rollout"].draw(SHARES, "u-1", [str(each) for each in ids])}
            (version,) = versions
            outcomes = ["failed" if rng.random() < failing[version] else "written" for _ in ids]
            made.append(a_decision(outcomes, ids, version))
        return made

    async def run() -> list[bool]:
        alarms: list[bool] = []
        async with opened(sqlite_database) as store:
            for failing in ({"v1": 0.5, "v2-mentor": 0.5}, {"v1": 0.0, "v2-mentor": 0.9}):
                made = decisions(failing)
                await asyncio.gather(
                    *(store.add(*tips, failures=failures) for tips, failures in made if tips),
                    *(store.add_failures(failures) for tips, failures in made if not tips),
                )
                counted = await store.counts.draws("", ALL_HOURS, MATURE)
                assert sum(draw.tips for draw in counted) == 600 * (1 + len(alarms))
                drawn, written = build_funnel(PeriodCounts(draws=counted), PeriodCounts(), exposures=False).tests
                assert not drawn.alarm
                alarms.append(written.alarm)
        return alarms

    assert asyncio.run(run()) == [False, True]
    check_counts(sqlite_database)
