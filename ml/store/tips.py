"""The store of tips and reactions, on SQLite or PostgreSQL. An operation that returns is durable.

New tips and reactions go through one writer with group commit. The counters change in the same transaction as the
rows that they count; `purge` and `forget` delete rows together with their counts.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.experiments.decisions import LoggedDecision
from ml.platform.background import BackgroundTasks
from ml.platform.clock import Clock
from ml.store import decision_log, tables
from ml.store.counts import Counts
from ml.store.database import MAX_PARAMETERS, Database
from ml.store.group_commit import GroupCommit
from ml.store.reactions import Reaction, ReactionResult, ReactionWriter, effective_reaction
from ml.store.rollup import CounterDelta, TipDimensions, hour_of, start_of


@dataclass(frozen=True, slots=True)
class TipRecord:
    """A row of `tip_scores`: one tip written for a user, how its prompt version was drawn, and its cost.

    `ms`: the time it took to write, in milliseconds. `shown`: False for a candidate that was not chosen. From
    `decision_id` on: the decision among the candidates and its ranking. `candidates`: their ids, in order; None if
    there was only one.
    """

    tip_id: UUID
    user_id: str
    created_at: datetime
    policy: str
    policy_version: str
    options: Mapping[str, float]
    probability: float
    prompt_version_asked: str | None
    generation_id: str
    prompt_version: str
    prompt_digest: str
    model: str
    fallback: bool
    signals: Mapping[str, Any]
    segments: tuple[str, ...]
    tip: str
    input_tokens: int
    output_tokens: int
    ms: int
    shown: bool = True
    simulated: bool = False
    decision_id: UUID | None = None
    score: float | None = None
    score_probability: float | None = None
    score_policy: str | None = None
    score_policy_version: str | None = None
    candidates: Sequence[str] | None = None
    aggregates: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class _AddTips:
    """The operation that stores tips, all or none."""

    tips: Sequence[TipRecord]


@asynccontextmanager
async def open_tip_store(
    url: str, clock: Clock, background: BackgroundTasks | None = None
) -> AsyncIterator["TipStore"]:
    """Open the store at `url`, with its writer, until the block ends.

    `background`: the tasks of the service, of which the writer becomes one. An SQLite database is created or migrated. Raises ConfigurationError when a PostgreSQL database does not have the
    newest schema, and StorageUnavailable when the database cannot be reached.
    """
    database = Database(url)
    store = TipStore(database, clock)
    try:
        await database.prepare()
        async with (background or BackgroundTasks()).run("writer", store.writer.run()):
            yield store
    finally:
        await database.close()


class TipStore:
    """The tables `tip_scores` and `reactions`, and the counters of both."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self.counts = Counts(database)
        self._clock = clock
        self._reactions = ReactionWriter(database)
        self.writer: GroupCommit[_AddTips | Sequence[Reaction]] = GroupCommit(self._commit)

    async def add(self, *tips: TipRecord) -> None:
        """Store all tips of one decision; returns when they are durable.

        Raises StorageUnavailable or Busy; then no row is stored.
        """
        await self.writer.submit(_AddTips(tips))

    async def react(self, reactions: Sequence[Reaction]) -> list[ReactionResult]:
        """Store reactions, all or none; returns their results, in order, when they are durable.

        Raises UnknownTipsError, StorageUnavailable or Busy.
        """
        results: list[ReactionResult] = await self.writer.submit(reactions)
        return results

    async def holds_real_tips(self) -> bool:
        """Return whether there are tips that were not simulated."""
        table = tables.tip_scores
        async with self.database.reading() as connection:
            found = await connection.execute(select(table.c.tip_id).where(~table.c.simulated).limit(1))
            return found.first() is not None

    def decisions(self, before: datetime, since: datetime | None = None) -> AsyncIterator[LoggedDecision]:
        """Yield the decisions from `since` to `before`, in the order of time; see `decision_log`."""
        return decision_log.decisions(self.database, before, since)

    def user_aggregates(
        self, now: datetime, reaction_window: timedelta
    ) -> AsyncIterator[tuple[str, Mapping[str, float]]]:
        """Yield the aggregates of each user with tips in the last 30 days; see `decision_log`."""
        return decision_log.user_aggregates(self.database, now, reaction_window)

    async def purge(self, before: datetime) -> int:
        """Delete the tips of all full hours before `before`, with their reactions and counts.

        Returns the number of tips. Deletes in one transaction per chunk, so that a recommender never waits for
        more than one chunk; the counts of these hours are deleted in the last transaction.
        """
        tips, hour = tables.tip_scores, hour_of(before)
        # Locked, so that no reaction to a tip is stored while the tip is being deleted.
        old_tips = (
            select(tips.c.tip_id)
            .where(tips.c.created_at < start_of(hour))
            .order_by(tips.c.tip_id)
            .limit(MAX_PARAMETERS)
            .with_for_update()
        )
        purged = 0
        while True:
            async with self.database.writing() as connection:
                tip_ids = (await connection.execute(old_tips)).scalars().all()
                if not tip_ids:
                    await self.counts.remove(connection, hour)
                    break
                await _delete(connection, tip_ids)
                purged += len(tip_ids)
        await self.database.wipe_deleted()
        return purged

    async def forget(self, user_id: str) -> int:
        """Delete all data of one user, and subtract it from the counts; returns the number of tips."""
        tips = tables.tip_scores
        # Locked until the transaction ends; SQLite, which has one writer at a time, ignores this.
        query = select(tips).where(tips.c.user_id == user_id).order_by(tips.c.tip_id).with_for_update()
        async with self.database.writing() as connection:
            rows = (await connection.execute(query)).mappings().all()
            delta = CounterDelta()
            for row in rows:
                tip = TipDimensions.of(row)
                delta.add_tip(tip, -1)
                if effective := effective_reaction(row):
                    delta.add_reaction(tip, effective.kind, effective.reward, -1)
            await _delete(connection, [row["tip_id"] for row in rows])
            await self.counts.add(connection, delta)
            await self.counts.remove_empty(connection)
        await self.database.wipe_deleted()
        return len(rows)

    async def _commit(self, operations: Sequence[_AddTips | Sequence[Reaction]]) -> Sequence[Any]:
        """Execute the operations in one transaction; return each one's result."""
        async with self.database.writing() as connection:
            delta = CounterDelta()
            tips = [tip for operation in operations if isinstance(operation, _AddTips) for tip in operation.tips]
            await self._insert_tips(connection, tips, delta)
            batches = [operation for operation in operations if not isinstance(operation, _AddTips)]
            answers = iter(await self._reactions.store(connection, batches, delta, self._clock()) if batches else ())
            await self.counts.add(connection, delta)
        return [None if isinstance(operation, _AddTips) else next(answers) for operation in operations]

    async def _insert_tips(self, connection: AsyncConnection, tips: Sequence[TipRecord], delta: CounterDelta) -> None:
        if tips:
            rows = [tables.as_row(tip) for tip in tips]
            await connection.execute(insert(tables.tip_scores), rows)
            for row in rows:
                delta.add_tip(TipDimensions.of(row))


async def _delete(connection: AsyncConnection, tip_ids: Sequence[UUID]) -> None:
    for start in range(0, len(tip_ids), MAX_PARAMETERS):
        chunk = tip_ids[start : start + MAX_PARAMETERS]
        await connection.execute(delete(tables.reactions).where(tables.reactions.c.tip_id.in_(chunk)))
        await connection.execute(delete(tables.tip_scores).where(tables.tip_scores.c.tip_id.in_(chunk)))
