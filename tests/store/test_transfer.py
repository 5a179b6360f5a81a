"""The copy of all tips and reactions into another database."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from ml.store import tables
from ml.store.database import Database as OpenDatabase
from ml.store.database import migrate_database
from ml.store.reactions import Reaction
from ml.store.tips import open_tip_store
from ml.store.transfer import copy_tips
from tests.example_tips import WINDOW, a_tip

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


async def fill(url: str, n: int) -> None:
    async with open_tip_store(url, lambda: NOW, reaction_window=WINDOW) as store:
        tips = [a_tip(created_at=NOW - timedelta(hours=hour), simulated=True) for hour in range(n)]
        await store.add(*tips)
        await store.react([Reaction(tip.tip_id, "helpful", NOW) for tip in tips[::2]])


async def contents(url: str) -> dict[str, list[tuple[object, ...]]]:
    database = OpenDatabase(url)
    try:
        async with database.reading() as connection:
            return {
                table.name: sorted((tuple(map(str, row)) for row in await connection.execute(select(table))), key=str)
                for table in (
                    tables.tip_scores,
                    tables.reactions,
                    tables.reward_hours,
                    tables.draw_hours,
                    tables.exposures,
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
    assert copied == asyncio.run(contents(source))
    with pytest.raises(IntegrityError):
        asyncio.run(copy_tips(source, database_url, WINDOW))
    assert asyncio.run(contents(database_url)) == copied
