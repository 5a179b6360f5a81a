"""The deletion of stored data: old tips, or one user's. Rows are deleted together with their counts."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.store import tables
from ml.store.counts import Counts
from ml.store.database import MAX_PARAMETERS, Database
from ml.store.day_revisions import DayRevisions
from ml.store.failures import GenerationFailure
from ml.store.hours import day_of, hour_of, start_of
from ml.store.idempotency import IdempotencyKeys
from ml.store.rollup import CounterDelta

_FAILURES = tables.generation_failures
_OLD_FAILURES = delete(_FAILURES).where(_FAILURES.c.created_at < bindparam("before"))
_SHADOWS = (tables.shadow_tips, tables.shadow_rankings)
_IDS_OF_TIPS = (
    *(table.c.tip_id for table in (tables.reactions, tables.exposures, tables.shadow_tips)),
    tables.shadow_rankings.c.decision_id,
)
_FAILURES_OF_USER = delete(_FAILURES).where(_FAILURES.c.user_id == bindparam("of_user")).returning(_FAILURES)


async def purge(database: Database, counts: Counts, keys: IdempotencyKeys, before: datetime, now: datetime) -> int:
    """Delete the tips and failures of all full hours before `before`, with all that belongs to them.

    That is their exposures, reactions, shadows, idempotency keys and counts, except the draws of everyone (see
    `Counts.remove`). Returns the number of tips. Deletes in one transaction per chunk, so that a recommender never
    waits for more than one chunk; the counts of these hours are deleted in the last transaction, with the failures and
    the expired keys.
    """
    tips, hour = tables.tip_scores, hour_of(before)
    # Locked, so that no reaction to a tip is stored while the tip is being deleted.
    old_tips = (
        select(tips.c.tip_id, tips.c.created_at)
        .where(tips.c.created_at < start_of(hour))
        .order_by(tips.c.tip_id)
        .limit(MAX_PARAMETERS)
        .with_for_update()
    )
    purged, revisions = 0, DayRevisions(database)
    while True:
        async with database.writing() as connection:
            rows = (await connection.execute(old_tips)).all()
            if not rows:
                await keys.remove_old(connection, start_of(hour), now)
                await connection.execute(_OLD_FAILURES, {"before": start_of(hour)})
                for shadows in _SHADOWS:
                    await connection.execute(delete(shadows).where(shadows.c.created_at < start_of(hour)))
                await counts.remove(connection, hour)
                break
            tip_ids = [row.tip_id for row in rows]
            await keys.remove_of_tips(connection, tip_ids)
            await _delete_tips(connection, tip_ids)
            await revisions.after_deletion(connection, {day_of(row.created_at) for row in rows})
            purged += len(rows)
    await database.wipe_deleted()
    return purged


async def forget(database: Database, counts: Counts, keys: IdempotencyKeys, user_id: str, delta: CounterDelta) -> int:
    """Delete all data of one user, and subtract it from the counts; returns the number of tips. `delta`: is empty."""
    tips = tables.tip_scores
    # Locked until the transaction ends; SQLite, which has one writer at a time, ignores this.
    query = select(tips).where(tips.c.user_id == user_id).order_by(tips.c.tip_id).with_for_update()
    async with database.writing() as connection:
        rows = (await connection.execute(query)).mappings().all()
        for row in rows:
            delta.add_row(row, -1)
        await keys.remove_of_user(connection, user_id)
        await _delete_tips(connection, [row["tip_id"] for row in rows])
        for failure in (await connection.execute(_FAILURES_OF_USER, {"of_user": user_id})).mappings():
            delta.add_failure(GenerationFailure.of(failure), -1)
        for shadows in _SHADOWS:
            await connection.execute(delete(shadows).where(shadows.c.user_id == user_id))
        await counts.add(connection, delta)
        await counts.remove_empty(connection)
        await DayRevisions(database).after_deletion(connection, {day_of(row["created_at"]) for row in rows})
    await database.wipe_deleted()
    return len(rows)


async def _delete_tips(connection: AsyncConnection, tip_ids: Sequence[UUID]) -> None:
    for start in range(0, len(tip_ids), MAX_PARAMETERS):
        chunk = tip_ids[start : start + MAX_PARAMETERS]
        for column in _IDS_OF_TIPS:
            await connection.execute(delete(column.table).where(column.in_(chunk)))
        await connection.execute(delete(tables.tip_scores).where(tables.tip_scores.c.tip_id.in_(chunk)))
