"""The copy of all tips and reactions into another database."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from ml.platform.errors import RolloutConflict
from ml.store import tables
from ml.store.database import Database as OpenDatabase
from ml.store.database import migrate_database
from ml.store.reactions import Reaction
from ml.store.rollouts import NewRolloutEvent, RolloutLog
from ml.store.shadows import Shadows
from ml.store.tips import open_tip_store
from ml.store.transfer import copy_rollouts, copy_tips
from tests.databases import Database
from tests.example_tips import WINDOW, a_tip
from tests.store.rollout_rows import a_move, a_shadow_tip

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


async def fill(url: str, n: int) -> None:
    async with open_tip_store(url, lambda: NOW, reaction_window=WINDOW) as store:
        drawn = {"policy_options": {"uniform": 0.5, "abc": 0.5}, "policy_asked": "abc", "prompt_event": 2}
        tips = [a_tip(created_at=NOW - timedelta(hours=hour), simulated=True, **drawn) for hour in range(n)]
        await store.add(*tips)
        await store.react([Reaction(tip.tip_id, "helpful", NOW) for tip in tips[::2]])
        await Shadows(store.database).add_tip(a_shadow_tip(tips[0].tip_id))


async def contents(url: str) -> dict[str, list[tuple[object, ...]]]:
    database = OpenDatabase(url)
    try:
        async with database.reading() as connection:
            return {
                table.name: sorted((tuple(map(str, row)) for row in await connection.execute(select(table))), key=str)
                for table in (
                    *(tables.tip_scores, tables.reactions, tables.exposures, tables.shadow_tips),
                    *(tables.reward_hours, tables.draw_hours, tables.ranking_hours, tables.rollout_events),
                )
            }
    finally:
        await database.close()


def test_tips_reactions_and_counts_are_added_and_nothing_is_added_twice(database_url: str, tmp_path: Path) -> None:
    source = f"sqlite+aiosqlite:///{tmp_path}/source.db"
    migrate_database(source)
    asyncio.run(fill(source, 1_200))
    asyncio.run(copy_tips(source, database_url, WINDOW))
    copied = asyncio.run(contents(database_url))
    assert len(copied["tip_scores"]) == 1_200
    assert copied["ranking_hours"]
    assert copied == asyncio.run(contents(source))
    with pytest.raises(IntegrityError):
        asyncio.run(copy_tips(source, database_url, WINDOW))
    assert asyncio.run(contents(database_url)) == copied


async def append(url: str, *moves: NewRolloutEvent, notify: bool = False) -> None:
    database = OpenDatabase(url)
    log = RolloutLog(database)
    for move in moves:
        await log.append(move, expected=len(await log.events()), notify=notify)
    await database.close()


def test_tips_are_copied_with_the_events_of_rollouts_that_came_after_the_copied_log(
    database: Database, tmp_path: Path
) -> None:
    source = f"sqlite+aiosqlite:///{tmp_path}/source.db"
    migrate_database(source)
    assert asyncio.run(copy_rollouts(database.url, source)) == 0
    asyncio.run(append(database.url, a_move("initial", "v1"), a_move("start"), notify=True))
    assert asyncio.run(copy_rollouts(database.url, source)) == 2
    asyncio.run(append(source, a_move("promote", rollout=2, share=0.1), a_move("rollback", rollout=2), notify=True))
    asyncio.run(fill(source, 3))
    asyncio.run(copy_tips(source, database.url, WINDOW, last_event=2))
    assert asyncio.run(contents(database.url)) == asyncio.run(contents(source))
    assert database.count("rollout_events") == 4
    assert [row["event_id"] for row in database.rows("SELECT event_id FROM webhook_outbox")] == [1, 2]


def test_nothing_is_copied_when_the_target_has_other_events_of_rollouts(database: Database, tmp_path: Path) -> None:
    source = f"sqlite+aiosqlite:///{tmp_path}/source.db"
    migrate_database(source)
    asyncio.run(append(database.url, a_move("initial", "v1")))
    assert asyncio.run(copy_rollouts(database.url, source)) == 1
    asyncio.run(fill(source, 3))
    asyncio.run(append(database.url, a_move("start")))
    with pytest.raises(RolloutConflict):
        asyncio.run(copy_tips(source, database.url, WINDOW, last_event=1))
    assert (database.count("tip_scores"), database.count("rollout_events")) == (0, 2)
