"""Random changes of stored tips, and what the tests of exports compare."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from ml.features.offline_store import OfflineStore
from ml.pipelines.export import export
from ml.platform.background import BackgroundTasks
from ml.store.database import Database
from ml.store.exposures import Exposure
from ml.store.reactions import REACTIONS, Reaction
from ml.store.tips import TipStore
from tests.example_tips import NOW, WINDOW, SetClock, a_tip

Change = tuple[Any, ...]

TIPS = 12
DAYS = 3

_NUMBERS = st.integers(0, TIPS - 1)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.tuples(st.just("add"), st.sets(_NUMBERS, min_size=1, max_size=4)),
    st.tuples(st.just("react"), _NUMBERS, st.sampled_from([*REACTIONS]), st.integers(0, 3)),
    st.tuples(st.just("expose"), _NUMBERS),
    st.tuples(st.just("forget"), st.integers(0, 2)),
    st.tuples(st.just("purge"), st.integers(0, 24 * DAYS)),
    st.tuples(st.just("wait"), st.integers(1, 30)),
)
"""Changes of up to `TIPS` tips of three users on `DAYS` days, the newest first."""


def created_at(number: int) -> datetime:
    """Return when a tip is created: two of a day at the same time, and one at midnight."""
    return NOW.replace(hour=0, minute=0) + timedelta(hours=number // 2 * 4) - timedelta(days=number % DAYS)


async def change(url: str, changes: Sequence[Change], clock: SetClock) -> None:
    """Make the changes, of which those of tips that are not stored have no effect."""
    database = Database(url)
    store = TipStore(database, clock, WINDOW)
    async with BackgroundTasks().run("writer", store.writer.run()):
        for each in changes:
            await _change(store, clock, each)
    await database.close()


async def _change(store: TipStore, clock: SetClock, each: Change) -> None:
    async with store.database.reading() as connection:
        rows = await connection.exec_driver_sql("SELECT tip_id FROM tip_scores")
        stored = {UUID(str(row.tip_id)).int for row in rows}
    match each:
        case ("add", numbers):
            new = [
                a_tip(
                    tip_id=UUID(int=number),
                    created_at=created_at(number),
                    user_id=f"u-{number % 3}",
                    decision_id=UUID(int=min(numbers)) if number % 2 else None,
                    aggregates={"reward_rate_30d": number / 7} if number % 5 else None,
                )
                for number in sorted(numbers - stored)
            ]
            if new:
                await store.add(*new)
        case ("react", number, kind, minutes) if number in stored:
            await store.react([Reaction(UUID(int=number), kind, created_at(number) + timedelta(minutes=minutes))])
        case ("expose", number) if number in stored:
            await store.expose([Exposure(UUID(int=number))])
        case ("forget", user):
            await store.forget(f"u-{user}")
        case ("purge", hours):
            await store.purge(NOW - timedelta(hours=hours))
        case ("wait", hours):
            clock.go(hours=hours)


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of each file of an offline store."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def files_of_new_export(url: str, folder: Path) -> dict[str, bytes]:
    """Return the files of a full export."""
    export(url, OfflineStore.open(str(folder)))
    return files(folder)


def make_changes(url: str, changes: Sequence[Change], clock: SetClock) -> None:
    asyncio.run(change(url, changes, clock))
