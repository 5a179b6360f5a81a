"""What those who learn read from the store: whole decisions, with what came of them, and what is known of people."""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from ml.experiments.decisions import LoggedCandidate, LoggedDecision
from ml.store import decision_log
from ml.store.reactions import Reaction
from ml.store.tips import TipRecord, TipStore, open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, SetClock, a_tip

DAY = timedelta(days=1)
LATER = NOW + DAY


def a_decision(*probabilities: float, shown: int = 0, **fields: Any) -> list[TipRecord]:
    """The rows of a decision among candidates that were ranked."""
    tips = [
        a_tip(prompt_version=f"v{place + 1}", prompt_version_asked=f"v{place + 1}", tip=f"Tip {place + 1}.", **fields)
        for place in range(len(probabilities))
    ]
    ids = [str(tip.tip_id) for tip in tips]
    ranked: dict[str, Any] = {
        "decision_id": tips[0].tip_id,
        "score_policy": "linear",
        "score_policy_version": "0123456789ab",
        "candidates": ids,
        "aggregates": {"tips_7d": 3.0},
    }
    ranked |= {name: value for name, value in fields.items() if name in ranked}
    return [
        replace(tip, score=0.4, score_probability=probability, shadow=place != shown, **ranked)
        for place, (tip, probability) in enumerate(zip(tips, probabilities, strict=True))
    ]


def read(
    database: Database, *stored: list[TipRecord], react: Mapping[uuid.UUID, str] | None = None, **within: datetime
) -> list[LoggedDecision]:
    async def run() -> list[LoggedDecision]:
        async with open_tip_store(database.url, SetClock()) as store:
            for rows in stored:
                await store.add(*rows)
            await store.react([Reaction(tip_id, kind) for tip_id, kind in (react or {}).items()])
            return [one async for one in store.decisions(**{"before": LATER, **within})]

    return asyncio.run(run())


def test_a_tip_without_rivals_was_a_choice_between_versions(database: Database) -> None:
    tip = a_tip(options={"v1": 0.25, "v2-mentor": 0.75}, prompt_version="v2-mentor", prompt_version_asked="v2-mentor")
    (decision,) = read(database, [tip], react={tip.tip_id: "saved"})
    assert decision == LoggedDecision(
        id=str(tip.tip_id),
        user_id="u-1",
        at=NOW.timestamp(),
        signals={"mood": "low"},
        aggregates={},
        candidates=(LoggedCandidate("v1", 0.25), LoggedCandidate("v2-mentor", 0.75)),
        chosen=1,
        reward=0.5,
        ranked=False,
    )


def test_where_serving_s_default_decided_the_version_that_wrote_was_taken(database: Database) -> None:
    tip = a_tip(prompt_version="v7", prompt_version_asked=None, options={"v7": 1.0})
    (decision,) = read(database, [tip])
    assert (decision.candidates, decision.chosen, decision.reward) == ((LoggedCandidate("v7", 1.0),), 0, 0)


def test_what_counts_is_the_version_that_was_asked_for(database: Database) -> None:
    (decision,) = read(database, [a_tip(prompt_version="v1.1", prompt_version_asked="v2-mentor")])
    assert decision.candidates[decision.chosen].prompt_version == "v2-mentor"


def test_ranked_candidates_come_with_their_texts_in_their_order(database: Database) -> None:
    rows = a_decision(0.1, 0.7, 0.2, shown=1)
    other = a_decision(0.5, 0.5, created_at=NOW + timedelta(seconds=1))
    decision, second = read(database, rows, other, react={rows[1].tip_id: "done"})
    assert decision == LoggedDecision(
        id=str(rows[0].tip_id),
        user_id="u-1",
        at=NOW.timestamp(),
        signals={"mood": "low"},
        aggregates={"tips_7d": 3.0},
        candidates=(
            LoggedCandidate("v1", 0.1, "Tip 1."),
            LoggedCandidate("v2", 0.7, "Tip 2."),
            LoggedCandidate("v3", 0.2, "Tip 3."),
        ),
        chosen=1,
        reward=1.0,
        ranked=True,
    )
    assert (second.id, second.chosen, second.reward, len(second.candidates)) == (str(other[0].tip_id), 0, 0, 2)


def test_where_nothing_ranked_them_the_first_one_was_a_choice_between_versions(database: Database) -> None:
    rows = a_decision(1.0, 0.0, score_policy="unavailable", aggregates=None)
    (decision,) = read(database, rows)
    assert decision.candidates == (LoggedCandidate("v1", 0.5), LoggedCandidate("v2-mentor", 0.5))
    assert (decision.id, decision.chosen, decision.ranked) == (str(rows[0].tip_id), 0, False)
    (uniform,) = [one for one in read(database, a_decision(0.5, 0.5, score_policy="uniform")) if one.ranked]
    assert [candidate.probability for candidate in uniform.candidates] == [0.5, 0.5]


def test_decisions_that_nothing_can_be_learned_from_are_left_out(database: Database) -> None:
    kept = a_tip()
    halved = a_decision(0.5, 0.5)
    left_out = [[a_tip(fallback=True)], [a_tip(policy="playground")], [a_tip(shadow=True)], halved[:1]]
    assert [decision.id for decision in read(database, [kept], *left_out)] == [str(kept.tip_id)]


def test_decisions_come_in_the_order_of_time_from_a_time_to_another_however_many(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "_SHOWN", decision_log._SHOWN.limit(3))
    monkeypatch.setattr(decision_log, "_PAGE", 3)
    # Many of them at the same instant.
    hours = [0, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 4]
    decisions = [
        a_decision(0.5, 0.5, shown=1, created_at=NOW + timedelta(hours=hour))
        if place % 2
        else [a_tip(created_at=NOW + timedelta(hours=hour))]
        for place, hour in enumerate(hours)
    ]
    found = read(database, *reversed(decisions))
    assert {one.id for one in found} == {str(rows[0].tip_id) for rows in decisions}
    assert [one.at for one in found] == sorted(one.at for one in found)
    some = read(database, since=NOW + timedelta(hours=1), before=NOW + timedelta(hours=3))
    assert len(some) == 8
    assert {one.at for one in some} == {(NOW + timedelta(hours=hour)).timestamp() for hour in (1, 2)}


async def _people(store: TipStore, now: datetime = NOW) -> dict[str, Mapping[str, float]]:
    return {user: known async for user, known in store.user_aggregates(now, DAY)}


def test_what_is_known_of_a_person_beforehand(database: Database) -> None:
    async def run() -> None:
        async with open_tip_store(database.url, SetClock()) as store:

            async def shown(user: str, reaction: str | None = None, **ago: float) -> None:
                tip = a_tip(user_id=user, created_at=NOW - timedelta(**ago))
                await store.add(tip, a_tip(user_id=user, created_at=tip.created_at, shadow=True))
                if reaction:
                    await store.react([Reaction(tip.tip_id, reaction)])

            await shown("often", "done", days=2)
            await shown("often", "saved", days=8)
            await shown("often", "not_helpful", days=29)
            await shown("often", days=10)
            await shown("often", "done", hours=1)
            await shown("often", "done", days=31)
            await shown("today", "done", hours=23)
            await shown("long ago", "done", days=40)
            assert await _people(store) == {
                "often": {"reward_rate_30d": 1.5 / 4, "tips_7d": 2},
                "today": {"tips_7d": 1},
            }
            assert await _people(store, NOW - timedelta(days=50)) == {}
            # Whoever reads only some of them keeps no connection.
            async for _ in store.user_aggregates(NOW, DAY):
                break
            await store.forget("often")
            assert await _people(store) == {"today": {"tips_7d": 1}}

    asyncio.run(run())
