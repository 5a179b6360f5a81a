"""The copy of all tips and reactions of one database into another, in one transaction."""

from typing import Any

from sqlalchemy import insert, select

from ml.store import tables
from ml.store.counts import Counts
from ml.store.database import Database
from ml.store.reactions import effective_reaction
from ml.store.rollup import CounterDelta, TipDimensions

_ROWS_PER_STATEMENT = 500


async def copy_tips(source_url: str, target_url: str) -> None:
    """Add all tips and reactions of the database at `source_url` to the one at `target_url`: all of them or none.

    Both have the newest schema. Raises StorageUnavailable.
    """
    source, target = Database(source_url), Database(target_url)
    try:
        delta = CounterDelta()
        async with source.reading() as reading, target.writing() as writing:
            for table in (tables.tip_scores, tables.reactions):
                rows = await reading.stream(select(table))
                async for part in rows.mappings().partitions(_ROWS_PER_STATEMENT):
                    await writing.execute(insert(table), [dict(row) for row in part])
                    if table is tables.tip_scores:
                        for row in part:
                            _count(delta, row)
            await Counts(target).add(writing, delta)
    finally:
        await source.close()
        await target.close()


def _count(delta: CounterDelta, row: Any) -> None:
    tip = TipDimensions.of(row)
    delta.add_tip(tip)
    if effective := effective_reaction(row):
        delta.add_reaction(tip, effective.kind, effective.reward)
