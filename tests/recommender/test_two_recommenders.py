"""Two recommenders on one database: no deadlocks, and consistent rows and counters."""

import asyncio
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from ml.platform.errors import RequestInProgress
from ml.platform.idempotency_key import IdempotencyKey
from ml.store.reactions import REACTIONS, Reaction, UnknownTipsError
from ml.store.tip_records import TipRecord
from ml.store.tips import Reservation, TipStore, open_tip_store
from tests.conftest import eventually
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_tip
from tests.fixtures import StartRecommender
from tests.store.rebuilt_counts import check_counts


def test_reactions_to_the_same_tips_through_both_recommenders_are_counted_once(
    start_recommender: StartRecommender, database: Database
) -> None:
    both = [start_recommender(), start_recommender()]
    ids = [both[number % 2].post("/tips", json={"user_id": "u-1"}).json()["tip_id"] for number in range(6)]
    rng = random.Random(3)
    latest: dict[str, tuple[int, str]] = {}
    requests = []
    for number in range(120):
        sampled = rng.sample(ids, 3)
        reactions = []
        for tip_id in sampled:
            age, kind = rng.randrange(1000), rng.choice([*REACTIONS])
            latest[tip_id] = max(latest.get(tip_id, (-1000, "")), (-age, kind))
            at = (NOW - timedelta(seconds=age)).isoformat()
            reactions.append({"tip_id": tip_id, "reaction": kind, "at": at})
        requests.append((both[number % 2], reactions))

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(
            lambda request: request[0].post("/reactions/batch", json={"reactions": request[1]}), requests
        )
        assert {answer.status_code for answer in answers} == {200}
    rows = database.rows("SELECT tip_id, reaction FROM tip_scores")
    stored = {str(row["tip_id"]).replace("-", ""): row["reaction"] for row in rows}
    assert stored == {tip_id.replace("-", ""): kind for tip_id, (_, kind) in latest.items()}
    check_counts(database)


def test_both_recommenders_learn_from_all_rewards_and_store_complete_decisions(
    start_recommender: StartRecommender, database: Database, clock: SetClock
) -> None:
    settings = {"tip_prompt_version": "v1,v2-mentor", "tip_prompt_policy": "thompson", "tip_candidates": 3}
    both = [start_recommender(**settings), start_recommender(**settings)]

    def ask(number: int) -> tuple[str, str]:
        http = both[number % 2]
        tip = http.post("/tips", json={"user_id": f"u-{number % 9}"}).raise_for_status().json()
        reaction = "helpful" if tip["prompt_version"] == "v2-mentor" else "dismissed"
        http.post("/reactions", json={"tip_id": tip["tip_id"], "reaction": reaction}).raise_for_status()
        return tip["tip_id"], tip["prompt_version"]

    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(ask, range(120))]
    rows = database.rows("SELECT decision_id, shown, options FROM tip_scores")
    assert (len(rows), sum(bool(row["shown"]) for row in rows)) == (360, len({*answers}))
    assert {*Counter(str(row["decision_id"]) for row in rows).values()} == {3}
    check_counts(database)
    clock.go(hours=26)

    def both_have_moved() -> bool:
        for number in (0, 1):
            ask(number)
        newest = database.rows("SELECT options FROM tip_scores ORDER BY created_at DESC LIMIT 6")
        return all(json.loads(row["options"])["v2-mentor"] > 0.9 for row in newest)

    assert eventually(both_have_moved, 30)


def test_users_are_forgotten_and_tips_purged_during_reactions(database: Database) -> None:
    async def run() -> None:
        async with (
            open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as first,
            open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as second,
            asyncio.timeout(120),
        ):
            tips = [
                a_tip(user_id=f"u-{number % 5}", created_at=NOW - timedelta(hours=number % 4)) for number in range(60)
            ]
            await asyncio.gather(*(first.add(tip) for tip in tips))
            reactions = [
                store.react(
                    [Reaction(tip.tip_id, kind)], IdempotencyKey(f"{tip.tip_id}-{kind}", "b") if keyed else None
                )
                for kind in ("done", "saved")
                for keyed in (False, True)
                for tip in reversed(tips)
                for store in (first, second)
            ]
            requests = [
                add_with_key(store, a_tip(user_id=f"u-{number % 5}"), f"key-{number}")
                for number in range(40)
                for store in (first, second)
            ]
            deletions = [second.forget("u-1"), first.purge(NOW - timedelta(hours=2)), second.forget("u-3")]
            outcomes = await asyncio.gather(*reactions, *requests, *deletions, return_exceptions=True)
            expected = {list, UnknownTipsError, int, TipRecord, Reservation, RequestInProgress}
            assert {type(outcome) for outcome in outcomes} <= expected
            keys = [outcome for outcome in outcomes if isinstance(outcome, TipRecord | Reservation)]
            assert len(keys) >= 24  # of the users who were not forgotten

    asyncio.run(run())
    check_counts(database)
    answered = "SELECT tip_id FROM idempotency_keys WHERE tip_id IS NOT NULL"
    assert database.rows(f"{answered} AND tip_id NOT IN (SELECT tip_id FROM tip_scores)") == []
    assert len(database.rows(f"{answered} AND user_id IS NOT NULL")) >= 24


async def add_with_key(store: TipStore, tip: TipRecord, key: str) -> TipRecord | Reservation:
    """Answer a request that has a key with this tip; return the stored answer, if there is one."""
    async with store.reserve(IdempotencyKey(key, "b"), tip.user_id, [], timedelta(seconds=40)) as reserved:
        if isinstance(reserved, Reservation):
            await store.add(tip, claim=reserved.claim)
        return reserved
