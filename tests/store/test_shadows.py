"""Shadow tips and rankings: stored next to real decisions, deleted with them, and counted nowhere."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, select

from ml.store import tables
from ml.store.reactions import Reaction
from ml.store.shadows import ShadowCandidate, ShadowDecision, Shadows
from ml.store.tip_records import TipRecord
from ml.store.tips import TipStore, open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_failure, a_tip
from tests.store.rebuilt_counts import check_counts
from tests.store.rollout_rows import a_shadow_ranking, a_shadow_tip

LATER = NOW + timedelta(hours=2)


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[tuple[TipStore, Shadows]]:
    async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
        yield store, Shadows(store.database)


def a_decision(*versions: str, probability: float = 0.5, **fields: Any) -> list[TipRecord]:
    """Return the candidates of a ranked decision, of which the first is shown."""
    ids = [uuid4() for _ in versions]
    return [
        a_tip(
            tip_id=tip_id,
            decision_id=ids[0],
            prompt_version=version,
            prompt_version_asked=version,
            shown=index == 0,
            score_policy="linear",
            score_probability=probability,
            candidates=[str(candidate) for candidate in ids],
            **fields,
        )
        for index, (tip_id, version) in enumerate(zip(ids, versions, strict=True))
    ]


def ids_of(decision: list[TipRecord]) -> list[str]:
    return [str(tip.tip_id) for tip in decision]


def test_shadows_of_tips_and_failures_are_stored_once_and_counted_nowhere(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as (store, shadows):
            tip, failure = a_tip(), a_failure()
            await store.add(tip, failures=[failure])
            of_failure = a_shadow_tip(failure.tip_id, live_failed=True, live_tokens=0, tip=None, model=None)
            stored = [
                a_shadow_tip(tip.tip_id),
                a_shadow_tip(failure.tip_id, failed=True, error="busy", created_at=LATER),
            ]
            other_rollout = a_shadow_tip(tip.tip_id, rollout=9)
            for shadow in (*stored, other_rollout, of_failure):  # the last one is of the same tip as another one
                await shadows.add_tip(shadow)
            assert await shadows.tips(2, NOW) == stored
            assert await shadows.tips(2, NOW + timedelta(seconds=1)) == stored[1:]
            assert await shadows.tips(9, NOW) == [other_rollout]
            ranking = a_shadow_ranking(tip.tip_id, {str(tip.tip_id): 1.0}, rollout=2)
            await shadows.add_ranking(ranking)
            assert await shadows.rankings(2, NOW) == [ranking]
            assert [await shadows.count(rollout) for rollout in (2, 9, 1)] == [3, 1, 0]

    asyncio.run(run())
    check_counts(database)
    assert database.count("tip_scores") == database.count("generation_failures") == 1


def test_a_shadow_of_a_deleted_decision_is_not_stored(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as (store, shadows):
            await store.add(tip := a_tip(), failures=[failure := a_failure()])
            await store.forget("u-1")
            await shadows.add_tip(a_shadow_tip(tip.tip_id))
            await shadows.add_tip(a_shadow_tip(failure.tip_id))
            await shadows.add_ranking(a_shadow_ranking(tip.tip_id, {str(tip.tip_id): 1.0}))

    asyncio.run(run())
    assert database.count("shadow_tips") == database.count("shadow_rankings") == 0


@pytest.mark.parametrize("forgotten", ["u-1", None])
def test_forget_and_purge_delete_the_shadows_of_their_tips_and_failures(
    database: Database, forgotten: str | None
) -> None:
    async def run() -> None:
        async with opened(database) as (store, shadows):
            other = {"user_id": "u-2", "created_at": LATER}
            tips, failures = [a_tip(), a_tip(**other)], [a_failure(), a_failure(**other)]
            await store.add(*tips, failures=failures)
            users = {each.tip_id: (each.user_id, each.created_at) for each in tips}
            users |= {each.tip_id: (each.user_id, each.created_at) for each in failures}
            for tip_id, (user_id, created_at) in users.items():
                await shadows.add_tip(a_shadow_tip(tip_id, user_id=user_id, created_at=created_at))
            for tip in tips:
                await shadows.add_ranking(
                    a_shadow_ranking(tip.tip_id, None, user_id=tip.user_id, created_at=tip.created_at)
                )
            if forgotten:
                await store.forget(forgotten)
            else:
                await store.purge(LATER)
            kept = await shadows.tips(2, NOW)
            assert {shadow.tip_id for shadow in kept} == {tips[1].tip_id, failures[1].tip_id}
            assert [ranking.decision_id for ranking in await shadows.rankings(3, NOW)] == [tips[1].tip_id]

    asyncio.run(run())


def test_forgetting_a_user_while_shadows_are_stored_leaves_none(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as (store, shadows):
            for _ in range(6):
                tips = [a_tip() for _ in range(5)]
                await store.add(*tips)
                await asyncio.gather(
                    *(shadows.add_tip(a_shadow_tip(tip.tip_id)) for tip in tips[:3]),
                    store.forget("u-1"),
                    *(shadows.add_ranking(a_shadow_ranking(tip.tip_id, None)) for tip in tips[3:]),
                )

    asyncio.run(run())
    assert database.count("shadow_tips") == database.count("shadow_rankings") == 0


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_shadow_waits_for_the_deletion_of_its_tip(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as (store, shadows):
            await store.add(tip := a_tip())
            is_tip = tables.tip_scores.c.tip_id == tip.tip_id
            async with store.database.writing() as connection:
                await connection.execute(select(tables.tip_scores).where(is_tip).with_for_update())  # as `forget` does
                adding = asyncio.create_task(shadows.add_tip(a_shadow_tip(tip.tip_id)))
                await asyncio.sleep(0.1)
                await connection.execute(delete(tables.tip_scores).where(is_tip))
            await adding

    asyncio.run(run())
    assert database.count("shadow_tips") == 0


def test_decisions_have_both_rankings_and_the_reward_of_the_shown_candidate(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as (store, shadows):
            decision, late = a_decision("v1", "v2-mentor"), a_decision("v1", "v2-mentor", created_at=LATER)
            for candidates, at in ((decision, NOW), (late, LATER)):
                await store.add(*candidates)
                first, second = ids_of(candidates)
                scores = {second: 0.7, first: 0.2}
                ranking = a_shadow_ranking(UUID(first), {second: 0.9, first: 0.1}, scores=scores, created_at=at)
                await shadows.add_ranking(ranking)
            await store.react([Reaction(decision[0].tip_id, "saved")])
            found = await shadows.decisions(3, NOW, LATER)
            of_first, of_second = ShadowCandidate("v1", 0.5, 0.1, 0.2), ShadowCandidate("v2-mentor", 0.5, 0.9, 0.7)
            in_order = sorted(decision, key=lambda tip: tip.tip_id)
            both = (of_first, of_second) if in_order[0] is decision[0] else (of_second, of_first)
            assert found == [ShadowDecision(NOW, both, both.index(of_first), 0.5, seen=False)]
            assert [each.at for each in await shadows.decisions(3, NOW, LATER + WINDOW)] == [NOW, LATER]
            assert await shadows.decisions(4, NOW, LATER) == []

    asyncio.run(run())


def test_decisions_without_both_rankings_are_left_out(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as (store, shadows):
            not_answered, incomplete, unavailable, unscored = (
                a_decision("v1", "v2-mentor", probability=probability) for probability in (0.5, 0.5, 0.0, 0.5)
            )
            for decision in (not_answered, incomplete, unavailable, unscored):
                await store.add(*decision)
            both = {
                name: dict.fromkeys(ids_of(name_of), 0.5) for name, name_of in (("u", unavailable), ("s", unscored))
            }
            await shadows.add_ranking(a_shadow_ranking(not_answered[0].tip_id, None))
            await shadows.add_ranking(a_shadow_ranking(incomplete[0].tip_id, {ids_of(incomplete)[0]: 1.0}))
            await shadows.add_ranking(a_shadow_ranking(unavailable[0].tip_id, both["u"]))
            await shadows.add_ranking(a_shadow_ranking(unscored[0].tip_id, both["s"], scores=None))
            assert len(await shadows.rankings(3, NOW)) == 4
            assert await shadows.decisions(3, NOW, LATER) == []

    asyncio.run(run())
