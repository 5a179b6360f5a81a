"""`forget` and `purge`: the data is deleted from rows and counters, and from the disk."""

import asyncio
import random
from datetime import timedelta

from ml.platform.idempotency_key import IdempotencyKey
from ml.store.reactions import Reaction
from ml.store.tips import open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_tip
from tests.fixtures import ON_SQLITE
from tests.store.rebuilt_counts import check_counts

TABLES = (
    "tip_scores",
    "reactions",
    "reward_hours",
    "draw_hours",
    "ranking_hours",
    "shadow_tips",
    "shadow_rankings",
    "exposures",
    "generation_failures",
    "idempotency_keys",
)


def test_only_the_given_user_is_forgotten(database: Database) -> None:
    async def run() -> None:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            other = a_tip(user_id="u-10", prompt_version="v2-mentor")
            for tip in (a_tip(user_id="u-1"), a_tip(user_id="u-1"), other):
                await store.add(tip)
                await store.react([Reaction(tip.tip_id, kind) for kind in ("helpful", "dismissed")])
            assert await store.forget("u-1") == 2
            assert await store.forget("u-1") == 0
            assert await store.forget("'; DROP TABLE tip_scores; --") == 0

    asyncio.run(run())
    assert [row["user_id"] for row in database.rows("SELECT user_id FROM tip_scores")] == ["u-10"]
    assert database.count("reactions") == 2
    assert {row["prompt_version"] for row in database.rows("SELECT prompt_version FROM reward_hours")} == {"v2-mentor"}
    check_counts(database)


def test_when_the_only_user_is_forgotten_all_tables_are_empty(database: Database) -> None:
    async def run() -> None:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            for options in ({"v1": 1 / 3, "v2": 2 / 3}, {"v1": 0.1, "v2": 0.9}, {"v1": 1.0}):
                await store.add(tip := a_tip(options=options))
                await store.react([Reaction(tip.tip_id, "saved")], IdempotencyKey(f"reaction-{tip.tip_id}", "b"))
                async with store.reserve(IdempotencyKey(f"{tip.tip_id}", "b"), "u-1", [], timedelta(seconds=1)):
                    pass
            assert await asyncio.to_thread(database.count, "idempotency_keys") == 6
            await store.forget("u-1")

    asyncio.run(run())
    assert [database.count(table) for table in TABLES] == [0] * len(TABLES)


def test_old_tips_are_purged_in_full_hours(database: Database) -> None:
    async def run() -> None:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            for age in (-1, 0, 39, 41, 3 * 60):
                await store.add(tip := a_tip(created_at=NOW - timedelta(minutes=age)))
                await store.react([Reaction(tip.tip_id, "helpful")])
            assert await store.purge(NOW) == 2
            assert await store.purge(NOW) == 0

    asyncio.run(run())
    assert [database.count(table) for table in ("tip_scores", "reactions")] == [3, 3]
    check_counts(database)


@ON_SQLITE
def test_no_bytes_of_a_forgotten_user_are_left_on_disk(database: Database) -> None:
    forgotten, goal = "user-4711-gone", "a goal that no other user has"

    def bytes_on_disk() -> bytes:
        return b"".join(file.read_bytes() for file in database.file.parent.glob(f"{database.file.name}*"))

    async def run() -> None:
        rng = random.Random(1)
        users = [f"user-{rng.randrange(9000):04}-kept" for _ in range(1500)] + [forgotten] * 20
        rng.shuffle(users)
        async with (
            open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store,
            open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as other_process,
        ):
            await other_process.database.ping()
            for start in range(0, len(users), 50):
                new = [
                    a_tip(user_id=user, signals={"goal": goal if user == forgotten else "sleep"})
                    for user in users[start : start + 50]
                ]
                await asyncio.gather(*(store.add(tip) for tip in new))
                await store.react([Reaction(tip.tip_id, "done") for tip in new])
            assert forgotten.encode() in bytes_on_disk()
            assert await store.forget(forgotten) == 20
            remaining = bytes_on_disk()
            assert forgotten.encode() not in remaining
            assert goal.encode() not in remaining
            assert await store.purge(NOW + timedelta(days=1)) == 1500
            assert b"user-" not in bytes_on_disk()

    asyncio.run(run())
