"""The store of tips and what is reported about them, on SQLite or PostgreSQL. An operation that returns is durable.

New tips, failures, exposures and reactions go through one writer with group commit. The counters change in the same
transaction as the rows that they count; `purge` and `forget` delete rows together with their counts.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.platform.background import BackgroundTasks
from ml.platform.clock import Clock
from ml.platform.errors import IdempotencyKeyReused, RequestInProgress, TipsError
from ml.platform.idempotency_key import IdempotencyKey
from ml.store import deletion, tables
from ml.store.counts import Counts
from ml.store.database import Database
from ml.store.day_revisions import DayRevisions
from ml.store.exposures import Exposure, ExposureResult
from ml.store.failures import FailureWriter, GenerationFailure
from ml.store.group_commit import GroupCommit
from ml.store.hours import day_of
from ml.store.idempotency import IdempotencyKeys, KeyClaim, LockedKeys
from ml.store.locked_tips import LockedTips, TipLocks
from ml.store.reactions import Reaction, ReactionResult, UnknownTipsError
from ml.store.recount import prepare
from ml.store.rollup import CounterDelta, window_seconds
from ml.store.tip_dimensions import TipDimensions
from ml.store.tip_records import TipRecord, select_tips
from ml.store.user_draws import UserDraws, user_draws
from ml.store.visits import Visits


@dataclass(frozen=True, slots=True, eq=False)
class _AddDecision:
    """Store tips and failures, all or none. `claim`: of the request, if it has an idempotency key."""

    tips: Sequence[TipRecord]
    failures: Sequence[GenerationFailure]
    claim: KeyClaim | None


@dataclass(frozen=True, slots=True, eq=False)
class _StoreReactions:
    """Store reactions, all or none. `claim`: of the request, if it has an idempotency key."""

    reactions: Sequence[Reaction]
    claim: KeyClaim | None


@dataclass(frozen=True, slots=True, eq=False)
class _StoreExposures:
    """Store exposures, all or none."""

    exposures: Sequence[Exposure]


@dataclass(frozen=True, slots=True, eq=False)
class _ReserveKey:
    """Claim the idempotency key of a request for a tip."""

    claim: KeyClaim


@dataclass(frozen=True, slots=True, eq=False)
class _ReleaseKey:
    """End the lease of a claim."""

    claim: KeyClaim


_Operation = _AddDecision | _StoreReactions | _StoreExposures | _ReserveKey | _ReleaseKey


@dataclass(frozen=True, slots=True)
class Reservation:
    """The claim of a request for a tip, whose answer is not stored yet, and what was drawn for it (JSON)."""

    claim: KeyClaim
    draw: Any


@asynccontextmanager
async def open_tip_store(
    url: str, clock: Clock, background: BackgroundTasks | None = None, *, reaction_window: timedelta
) -> AsyncIterator["TipStore"]:
    """Open the store at `url`, with its writer, until the block ends.

    `background`: the tasks of the service, of which the writer becomes one. `reaction_window`: how long after a tip its
    reactions and its exposure count. An SQLite database is created or migrated. Raises ConfigurationError when a
    PostgreSQL database does not have the newest schema, or when stored hours were counted with another reaction window;
    and StorageUnavailable when the database cannot be reached.
    """
    database = Database(url)
    store = TipStore(database, clock, reaction_window)
    try:
        await prepare(database, reaction_window)
        async with (background or BackgroundTasks()).run("writer", store.writer.run()):
            yield store
    finally:
        await database.close()


class TipStore:
    """The tables of tips, failures, exposures and reactions, and their counters."""

    def __init__(self, database: Database, clock: Clock, reaction_window: timedelta) -> None:
        self.database = database
        self.reaction_window = reaction_window
        self.counts = Counts(database)
        self._clock = clock
        self._locks = TipLocks(database, reaction_window)
        self._failures = FailureWriter(database)
        self._keys = IdempotencyKeys(database)
        self._visits = Visits(database)
        self._revisions = DayRevisions(database)
        self.writer: GroupCommit[_Operation] = GroupCommit(self._commit)

    async def add(
        self, *tips: TipRecord, failures: Sequence[GenerationFailure] = (), claim: KeyClaim | None = None
    ) -> None:
        """Store all tips of one decision, and its failures; returns when they are durable.

        `claim`: of the request that the shown tip answers, if it has an idempotency key; the failures of its earlier
        attempts are replaced. Raises StorageUnavailable, Busy, or RequestInProgress when the claim has lost its lease;
        then no row is stored.
        """
        await self.writer.submit(_AddDecision(tips, failures, claim))

    async def add_failures(self, failures: Sequence[GenerationFailure], claim: KeyClaim | None = None) -> None:
        """Store the failures of a decision without a tip; returns when they are durable.

        A failure is left out if there is a tip or a failure with its id. `claim`: of the request, if it has an
        idempotency key. Raises the errors of `add`.
        """
        await self.writer.submit(_AddDecision((), failures, claim))

    async def expose(self, exposures: Sequence[Exposure]) -> list[ExposureResult]:
        """Store exposures, all or none; returns their results, in order, when they are durable.

        The first report of a tip counts. Raises UnknownTipsError, StorageUnavailable or Busy.
        """
        results: list[ExposureResult] = await self.writer.submit(_StoreExposures(exposures))
        return results

    async def react(self, reactions: Sequence[Reaction], key: IdempotencyKey | None = None) -> list[ReactionResult]:
        """Store reactions, all or none; returns their results, in order, when they are durable.

        `key`: the idempotency key of a request with a single reaction. Raises UnknownTipsError, StorageUnavailable,
        Busy, or IdempotencyKeyReused.
        """
        claim = KeyClaim(key, tip_id=reactions[0].tip_id) if key else None
        results: list[ReactionResult] = await self.writer.submit(_StoreReactions(reactions, claim))
        return results

    @asynccontextmanager
    async def reserve(
        self, key: IdempotencyKey, user_id: str, draw: Any, lease: timedelta
    ) -> AsyncIterator[Reservation | TipRecord]:
        """Yield the stored answer to a request for a tip, or a reservation to write it.

        The reservation is durable before the block begins, and `add` answers the request. If the block fails or is
        cancelled, the reservation is released; if the process dies, another attempt may take over after `lease`.
        `draw`: JSON; an earlier attempt's draw is used instead. Raises RequestInProgress, IdempotencyKeyReused,
        StorageUnavailable or Busy.
        """
        claim = KeyClaim(key, user_id, draw, lease)
        try:
            yield await self.writer.submit(_ReserveKey(claim))
        except (IdempotencyKeyReused, RequestInProgress):
            raise
        except BaseException:
            with suppress(TipsError):
                await self.writer.submit(_ReleaseKey(claim))
            raise

    async def holds_real_tips(self) -> bool:
        """Return whether there are tips that were not simulated."""
        table = tables.tip_scores
        async with self.database.reading() as connection:
            found = await connection.execute(select(table.c.tip_id).where(~table.c.simulated).limit(1))
            return found.first() is not None

    def user_draws(self, segment: str, hours: range, mature_before: int) -> AsyncIterator[UserDraws]:
        """Yield the comparable draws of each user in the mature ones of these hours; see `user_draws`."""
        return user_draws(self.database, segment, range(hours.start, min(hours.stop, mature_before)))

    async def purge(self, before: datetime) -> int:
        """Delete the tips of all full hours before `before`; returns their number. See `deletion`."""
        return await deletion.purge(self.database, self.counts, self._keys, before, self._clock())

    async def forget(self, user_id: str) -> int:
        """Delete all data of one user; returns the number of tips. See `deletion`."""
        return await deletion.forget(self.database, self.counts, self._keys, user_id, self._delta())

    async def _commit(self, operations: Sequence[_Operation]) -> Sequence[Any]:
        """Execute the operations in one transaction; return each one's result, or the error to raise for it.

        Rows are locked first, then all operations are executed in memory, in their order, and then written.
        """
        batches = [operation for operation in operations if isinstance(operation, _StoreReactions)]
        reacted = [reaction.tip_id for batch in batches for reaction in batch.reactions]
        exposed = [exposure.tip_id for op in operations if isinstance(op, _StoreExposures) for exposure in op.exposures]
        held = [op.claim for op in operations if isinstance(op, _AddDecision | _ReleaseKey) and op.claim]
        async with self.database.writing() as connection:
            now, delta = self._clock(), self._delta()
            tips = await self._locks.lock(connection, reacted, exposed, now)
            new = [op.claim for op in operations if isinstance(op, _ReserveKey)]
            # A reaction to an unknown tip is an error, so it claims no key.
            new += [batch.claim for batch in batches if batch.claim and batch.claim.tip_id in tips.rows]
            keys = await self._keys.lock(connection, new, held, now)
            added: list[_AddDecision] = []
            results = [_execute(operation, tips, keys, added) for operation in operations]
            await self._insert(connection, added, delta)
            await self._locks.save(connection, tips, delta)
            await self._keys.save(connection, keys)
            await self.counts.add(connection, delta)
            days = [day_of(tip.created_at) for decision in added for tip in decision.tips]
            await self._revisions.replace(connection, [*days, *tips.changed_days()])
            stored = await select_tips(connection, [result for result in results if isinstance(result, UUID)])
        self.counts.remember(delta)
        return [stored[result] if isinstance(result, UUID) else result for result in results]

    async def _insert(self, connection: AsyncConnection, added: Sequence[_AddDecision], delta: CounterDelta) -> None:
        users = {tip.user_id for decision in added for tip in decision.tips}
        users |= {failure.user_id for decision in added for failure in decision.failures}
        visits = await self._visits.of_users(connection, users)
        rows = [
            {**tables.as_row(tip), "seen": False, "segments": (*tip.segments, visits[tip.user_id])}
            for decision in added
            for tip in decision.tips
        ]
        if rows:
            await connection.execute(insert(tables.tip_scores), rows)
        for row in rows:
            delta.add_tip(TipDimensions.of(row))
        # Only a retry with an idempotency key writes a tip that has failed before. Of candidates that fail again, the
        # failures are stored anew, since they belong to a decision with a tip now.
        retries = [decision for decision in added if decision.claim and decision.tips]
        retried = [tip.tip_id for decision in retries for tip in decision.tips]
        retried += [failure.tip_id for decision in retries for failure in decision.failures]
        await self._failures.remove(connection, retried, delta)
        failures = [
            replace(failure, segments=(*failure.segments, visits[failure.user_id]))
            for decision in added
            for failure in decision.failures
        ]
        await self._failures.add(connection, failures, delta)

    def _delta(self) -> CounterDelta:
        return CounterDelta(window_seconds(self.reaction_window))


def _execute(operation: _Operation, tips: LockedTips, keys: LockedKeys, added: list[_AddDecision]) -> Any:
    """Return the result of an operation, or its error; for an answered request, the id of its tip.

    Decisions to store are added to `added`.
    """
    try:
        match operation:
            case _AddDecision(records, _, claim):
                if claim and records:
                    (shown,) = [record.tip_id for record in records if record.shown]
                    keys.complete(claim, shown)
                elif claim:
                    keys.check(claim)
                added.append(operation)
            case _StoreReactions(reactions, claim):
                return _react(reactions, claim, tips, keys)
            case _StoreExposures(exposures):
                return tips.expose(exposures)
            case _ReserveKey(claim):
                row = keys.reserve(claim)
                return row["tip_id"] or Reservation(claim, row["draw"])
            case _ReleaseKey(claim):
                keys.release(claim)
    except (TipsError, UnknownTipsError) as error:
        return error
    return None


def _react(
    reactions: Sequence[Reaction], claim: KeyClaim | None, tips: LockedTips, keys: LockedKeys
) -> list[ReactionResult]:
    if claim is None or claim.tip_id not in tips.rows:
        return tips.react(reactions)
    row = keys.claim(claim)
    if row["claim_id"] != claim.id:
        return [ReactionResult(row["tip_id"], **row["reaction_result"], replayed=True)]
    (result,) = tips.react(reactions)
    keys.answer_reaction(claim, {"outcome": result.outcome, "reaction": result.reaction, "reward": result.reward})
    return [result]
