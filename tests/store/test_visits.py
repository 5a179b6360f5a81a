"""Each tip and failure is stored with whether its user has an earlier tip."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ml.store.hours import hour_of
from ml.store.tips import TipStore, open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_failure, a_tip
from tests.store.rebuilt_counts import check_counts

HOUR = range(hour_of(NOW), hour_of(NOW) + 1)


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[TipStore]:
    async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
        yield store


def stored(database: Database, table: str = "tip_scores") -> list[tuple[str, str]]:
    rows = database.rows(f"SELECT user_id, segments FROM {table}")
    return sorted((row["user_id"], json.loads(row["segments"])[-1]) for row in rows)


async def counted(store: TipStore) -> dict[str, int]:
    """Return the numbers of draws of new and of returning users."""
    found = {}
    for segment in await store.counts.segments(HOUR):
        if segment.startswith("visits:"):
            found[segment] = sum(draw.tips for draw in await store.counts.draws(segment, HOUR, 0))
    return found


def test_a_user_is_new_until_a_tip_is_stored(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as store:
            await store.add_failures([a_failure(user_id="ü-1")])
            first = a_tip(user_id="ü-1"), a_tip(user_id="ü-1", shown=False)
            await store.add(*first)  # the candidates of one decision
            await asyncio.gather(store.add(a_tip(user_id="ü-1")), store.add(a_tip(user_id='"2"')))
            await store.add_failures([a_failure(user_id="ü-1"), a_failure(user_id="3")])
            assert await counted(store) == {"visits:new": 5, "visits:returning": 2}

    asyncio.run(run())
    new, returning = "visits:new", "visits:returning"
    assert stored(database) == [('"2"', new), ("ü-1", new), ("ü-1", new), ("ü-1", returning)]
    assert stored(database, "generation_failures") == [("3", new), ("ü-1", new), ("ü-1", returning)]
    check_counts(database)


def test_a_user_whose_tips_were_deleted_is_new_also_if_another_process_deleted_them(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as store, opened(database) as other_process:
            for _ in range(2):
                await store.add(a_tip(user_id="u-1"))
            assert await other_process.forget("u-1") == 2
            await store.add(a_tip(user_id="u-1"))
            assert await counted(store) == {"visits:new": 1}

    asyncio.run(run())
    assert stored(database) == [("u-1", "visits:new")]
