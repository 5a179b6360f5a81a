"""The copy of one database into another: of the log of rollouts, and of all tips with what belongs to them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from sqlalchemy import RowMapping, Table, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.platform.errors import RolloutConflict
from ml.store import tables
from ml.store.counts import Counts
from ml.store.database import Database
from ml.store.day_revisions import DayRevisions
from ml.store.failures import GenerationFailure
from ml.store.hours import day_of
from ml.store.rollup import CounterDelta, window_seconds

_ROWS_PER_STATEMENT = 500
_TABLES = (
    *(tables.tip_scores, tables.reactions, tables.exposures, tables.generation_failures),
    *(tables.shadow_tips, tables.shadow_rankings),
)
_EVENT = tables.rollout_events.c.id


async def copy_rollouts(source_url: str, target_url: str) -> int:
    """Copy the log of rollouts into a database whose log is empty; return the id of its last event, 0 without any.

    Both have the newest schema. The webhook gets nothing from the copy. Raises StorageUnavailable.
    """
    async with _connected(source_url, target_url) as (reading, writing, _):
        async for _ in _copy(reading, writing, tables.rollout_events):
            pass
        return await _last_event(writing)


async def copy_tips(source_url: str, target_url: str, reaction_window: timedelta, *, last_event: int = 0) -> None:
    """Add all tips of a database to another one, with their reactions, exposures, failures and shadows: all or none.

    `last_event`: the id of the last event of rollouts that the target had when the log was copied from it. Events since
    are added, too, so that each tip's event is known; the webhook does not get them. Both databases have the newest
    schema, and hours that were counted with this reaction window. Raises StorageUnavailable, and RolloutConflict if the
    target has other events since.
    """
    delta = CounterDelta(window_seconds(reaction_window))
    days: set[int] = set()
    async with _connected(source_url, target_url) as (reading, writing, target):
        if await _last_event(writing) != last_event:
            raise RolloutConflict("Somebody has changed a rollout in the database in the meantime.")
        async for _ in _copy(reading, writing, tables.rollout_events, after=last_event):
            pass
        for table in _TABLES:
            async for rows in _copy(reading, writing, table):
                for row in rows:
                    if table is tables.tip_scores:
                        delta.add_row(row)
                        days.add(day_of(row["created_at"]))
                    elif table is tables.generation_failures:
                        delta.add_failure(GenerationFailure.of(row))
        await Counts(target).add(writing, delta)
        await DayRevisions(target).replace(writing, days)


@asynccontextmanager
async def _connected(
    source_url: str, target_url: str
) -> AsyncIterator[tuple[AsyncConnection, AsyncConnection, Database]]:
    """Yield a connection to read from, one in a transaction to write to, and the latter's database."""
    source, target = Database(source_url), Database(target_url)
    try:
        async with source.reading() as reading, target.writing() as writing:
            yield reading, writing, target
    finally:
        await source.close()
        await target.close()


async def _copy(
    reading: AsyncConnection, writing: AsyncConnection, table: Table, after: int = 0
) -> AsyncIterator[Sequence[RowMapping]]:
    """Copy the rows of a table, in parts, and yield each part. `after`: the id of an event, if it is of events."""
    query = select(table).where(after < _EVENT).order_by(_EVENT) if table is tables.rollout_events else select(table)
    async for rows in (await reading.stream(query)).mappings().partitions(_ROWS_PER_STATEMENT):
        await writing.execute(insert(table), [dict(row) for row in rows])
        yield rows


async def _last_event(connection: AsyncConnection) -> int:
    return (await connection.execute(select(func.max(_EVENT)))).scalar() or 0
