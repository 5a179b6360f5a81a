"""The copy of all tips of one database into another, with what belongs to them, in one transaction."""

from datetime import timedelta

from sqlalchemy import insert, select

from ml.store import tables
from ml.store.counts import Counts
from ml.store.database import Database
from ml.store.failures import GenerationFailure
from ml.store.rollup import CounterDelta, window_seconds

_ROWS_PER_STATEMENT = 500
_TABLES = (tables.tip_scores, tables.reactions, tables.exposures, tables.generation_failures)


async def copy_tips(source_url: str, target_url: str, reaction_window: timedelta) -> None:
    """Add all tips, reactions, exposures and failures of a database to another one: all of them or none.

    Both have the newest schema, and hours that were counted with this reaction window. Raises StorageUnavailable.
    """
    source, target = Database(source_url), Database(target_url)
    try:
        delta = CounterDelta(window_seconds(reaction_window))
        async with source.reading() as reading, target.writing() as writing:
            for table in _TABLES:
                rows = await reading.stream(select(table))
                async for part in rows.mappings().partitions(_ROWS_PER_STATEMENT):
                    await writing.execute(insert(table), [dict(row) for row in part])
                    for row in part:
                        if table is tables.tip_scores:
                            delta.add_row(row)
                        elif table is tables.generation_failures:
                            delta.add_failure(GenerationFailure.of(row))
            await Counts(target).add(writing, delta)
    finally:
        await source.close()
        await target.close()
