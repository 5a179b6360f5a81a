"""The decision log: complete decisions with their rewards, and the aggregates of users."""

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
from tests.example_tips import DIGEST, NOW, WINDOW, SetClock, a_tip

DAY = timedelta(days=1)
LATER = NOW + DAY


def a_decision(*probabilities: float, shown: int = 0, **fields: Any) -> list[TipRecord]:
    """Return the records of a decision among ranked candidates; `shown`: the index of the chosen one."""
    tips = [
        a_tip(prompt_version=f"v{number}", prompt_version_asked=f"v{number}", tip=f"Tip {number}.", **fields)
        for number in range(1, len(probabilities) + 1)
    ]
    ids = [str(tip.tip_id) for tip in tips]
    ranking: dict[str, Any] = {
        "decision_id": tips[0].tip_id,
        "score_policy": "linear",
        "score_policy_version": "0123456789ab",
        "candidates": ids,
        "aggregates": {"tips_7d": 3.0},
    }
    ranking |= {name: value for name, value in fields.items() if name in ranking}
    return [
        replace(tip, score=0.4, score_probability=probability, shown=index == shown, **ranking)
        for index, (tip, probability) in enumerate(zip(tips, probabilities, strict=True))
    ]


def read_decisions(
    database: Database,
    *decisions: list[TipRecord],
    reactions: Mapping[uuid.UUID, str] | None = None,
    since: datetime | None = None,
    before: datetime = LATER,
) -> list[LoggedDecision]:
    """Store decisions, given by their records, and reactions; then return the logged decisions of the period."""

    async def run() -> list[LoggedDecision]:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            for records in decisions:
                await store.add(*records)
            await store.react([Reaction(tip_id, kind) for tip_id, kind in (reactions or {}).items()])
            return [decision async for decision in store.decisions(before, since)]

    return asyncio.run(run())


def test_a_single_candidate_is_logged_as_a_decision_among_prompt_versions(database: Database) -> None:
    tip = a_tip(options={"v1": 0.25, "v2-mentor": 0.75}, prompt_version="v2-mentor", prompt_version_asked="v2-mentor")
    (decision,) = read_decisions(database, [tip], reactions={tip.tip_id: "saved"})
    assert decision == LoggedDecision(
        id=str(tip.tip_id),
        user_id="u-1",
        at=NOW.timestamp(),
        signals={"mood": "low"},
        aggregates={},
        candidates=(LoggedCandidate("v1", 0.25), LoggedCandidate("v2-mentor", 0.75, prompt_digest=DIGEST)),
        chosen=1,
        reward=0.5,
        reward_in_window=0.5,
        ranked=False,
        segments=("mood:low", "visits:new"),
    )


def test_with_serving_s_default_the_version_in_the_response_is_the_chosen_one(database: Database) -> None:
    tip = a_tip(prompt_version="v7", prompt_version_asked=None, options={"v7": 1.0})
    (decision,) = read_decisions(database, [tip])
    only_candidate = LoggedCandidate("v7", 1.0, prompt_digest=DIGEST)
    assert (decision.candidates, decision.chosen, decision.reward) == ((only_candidate,), 0, 0)


def test_the_chosen_candidate_is_the_version_that_was_drawn(database: Database) -> None:
    (decision,) = read_decisions(database, [a_tip(prompt_version="v1.1", prompt_version_asked="v2-mentor")])
    # The digest of another version says nothing about the drawn one.
    assert decision.candidates[decision.chosen] == LoggedCandidate("v2-mentor", 0.5)


def test_ranked_candidates_are_logged_with_their_tips_in_order(database: Database) -> None:
    rows = a_decision(0.1, 0.7, 0.2, shown=1)
    other = a_decision(0.5, 0.5, created_at=NOW + timedelta(seconds=1))
    decision, second = read_decisions(database, rows, other, reactions={rows[1].tip_id: "done"})
    assert decision == LoggedDecision(
        id=str(rows[0].tip_id),
        user_id="u-1",
        at=NOW.timestamp(),
        signals={"mood": "low"},
        aggregates={"tips_7d": 3.0},
        candidates=(
            LoggedCandidate("v1", 0.1, "Tip 1.", DIGEST),
            LoggedCandidate("v2", 0.7, "Tip 2.", DIGEST),
            LoggedCandidate("v3", 0.2, "Tip 3.", DIGEST),
        ),
        chosen=1,
        reward=1.0,
        reward_in_window=1.0,
        ranked=True,
        segments=("mood:low", "visits:new"),
    )
    assert (second.id, second.chosen, second.reward, len(second.candidates)) == (str(other[0].tip_id), 0, 0, 2)


def test_candidates_without_a_ranking_are_logged_as_a_decision_among_prompt_versions(database: Database) -> None:
    rows = a_decision(1.0, 0.0, score_policy="unavailable", aggregates=None)
    (decision,) = read_decisions(database, rows)
    candidates = LoggedCandidate("v1", 0.5, prompt_digest=DIGEST), LoggedCandidate("v2-mentor", 0.5)
    assert decision.candidates == candidates
    assert (decision.id, decision.chosen, decision.ranked) == (str(rows[0].tip_id), 0, False)
    both = read_decisions(database, a_decision(0.5, 0.5, score_policy="uniform"))
    (ranked,) = [decision for decision in both if decision.ranked]
    assert [candidate.probability for candidate in ranked.candidates] == [0.5, 0.5]


def test_decisions_that_nothing_can_be_learned_from_are_left_out(database: Database) -> None:
    kept = a_tip()
    incomplete = a_decision(0.5, 0.5)[:1]
    left_out = [[a_tip(fallback=True)], [a_tip(policy="playground")], [a_tip(shown=False)], incomplete]
    assert [decision.id for decision in read_decisions(database, [kept], *left_out)] == [str(kept.tip_id)]


def test_the_decisions_of_a_period_are_in_the_order_of_time_over_several_pages(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "_SHOWN_TIPS", decision_log._SHOWN_TIPS.limit(3))
    monkeypatch.setattr(decision_log, "_PAGE", 3)
    # Several decisions at the same instant fill more than one page.
    hours = [0, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 4]
    decisions = [
        a_decision(0.5, 0.5, shown=1, created_at=NOW + timedelta(hours=hour))
        if index % 2
        else [a_tip(created_at=NOW + timedelta(hours=hour))]
        for index, hour in enumerate(hours)
    ]
    logged = read_decisions(database, *reversed(decisions))
    assert {decision.id for decision in logged} == {str(records[0].tip_id) for records in decisions}
    assert [decision.at for decision in logged] == sorted(decision.at for decision in logged)
    some = read_decisions(database, since=NOW + timedelta(hours=1), before=NOW + timedelta(hours=3))
    assert len(some) == 8
    assert {decision.at for decision in some} == {(NOW + timedelta(hours=hour)).timestamp() for hour in (1, 2)}


async def _aggregates(store: TipStore, now: datetime = NOW) -> dict[str, Mapping[str, float]]:
    return {user: aggregates async for user, aggregates in store.user_aggregates(now)}


def test_the_aggregates_of_users_are_those_of_their_shown_and_mature_tips(database: Database) -> None:
    async def run() -> None:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:

            async def show(user: str, reaction: str | None = None, **age: float) -> None:
                tip = a_tip(user_id=user, created_at=NOW - timedelta(**age))
                await store.add(tip, a_tip(user_id=user, created_at=tip.created_at, shown=False))
                if reaction:
                    await store.react([Reaction(tip.tip_id, reaction)])

            await show("often", "done", days=2)
            await show("often", "saved", days=8)
            await show("often", "not_helpful", days=29)
            await show("often", days=10)
            await show("often", "done", hours=1)
            await show("often", "done", days=31)
            await show("today", "done", hours=23)
            await show("long ago", "done", days=40)
            assert await _aggregates(store) == {
                "often": {"reward_rate_30d": 1.5 / 4, "tips_7d": 2},
                "today": {"tips_7d": 1},
            }
            assert await _aggregates(store, NOW - timedelta(days=50)) == {}
            # Reading only a part of them leaves no connection open.
            async for _ in store.user_aggregates(NOW):
                break
            await store.forget("often")
            assert await _aggregates(store) == {"today": {"tips_7d": 1}}

    asyncio.run(run())
