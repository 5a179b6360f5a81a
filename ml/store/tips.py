"""The store of tips and reactions, on SQLite or PostgreSQL: what is answered with success is on disk.

Writes go through one writer with group commit. The counts change in the same transaction as the rows that they count;
`purge` and `forget` take people's data off both.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.experiments.decisions import LoggedDecision
from ml.platform.background import run_in_background
from ml.store import decision_log
from ml.store import tables as schema
from ml.store.counts import Counts
from ml.store.database import Database
from ml.store.group_commit import GroupCommit
from ml.store.reactions import EffectiveReaction, Outcome, Reaction, resolve_reaction
from ml.store.rollup import CounterDelta, Row, TipDimensions, hour_of, start_of

Clock = Callable[[], datetime]
"""Tells the time, in UTC."""

_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class TipRecord:
    """One tip that was written for somebody, why it was this version, and what it cost; `ms` is how long it took.

    `shadow`: it was not shown, since another candidate was. From `decision_id` on: the candidates of its decision, and
    what they were ranked by; `candidates` are their ids, None where there was one only.
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
    shadow: bool = False
    simulated: bool = False
    decision_id: UUID | None = None
    score: float | None = None
    score_probability: float | None = None
    score_policy: str | None = None
    score_policy_version: str | None = None
    candidates: Sequence[str] | None = None
    aggregates: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class _Tips:
    """Tips to store together, or not at all."""

    rows: Sequence[TipRecord]


class UnknownTipsError(Exception):
    """Some of several reactions are to tips that are not stored: `indexes` says which ones."""

    def __init__(self, indexes: Sequence[int]) -> None:
        super().__init__(f"no such tips: {len(indexes)}")
        self.indexes = tuple(indexes)


@dataclass(frozen=True, slots=True)
class ReactionResult:
    """What became of a reaction, and which one counts for its tip now."""

    tip_id: UUID
    outcome: Outcome
    reaction: str
    reward: float


@asynccontextmanager
async def open_tip_store(url: str, clock: Clock) -> AsyncIterator["TipScores"]:
    """Open the store that `url` names, with its writer, until the block ends.

    An SQLite database is made or migrated; another one must be at the newest schema already (ConfigurationError).
    Raises StorageUnavailable when it cannot be reached.
    """
    database = Database(url)
    store = TipStore(database, clock)
    try:
        await database.prepare()
        async with run_in_background(store.writer.run()):
            yield store
    finally:
        await database.close()


class TipStore:
    """The rows of `tip_scores` and `reactions`, and what is counted of them."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self.counts = Counts(database)
        self._clock = clock
        # Made once: SQLAlchemy then knows them again, and need not look at all their parts each time.
        self._add_reactions = database.upsert(schema.reactions).on_conflict_do_nothing()
        self.writer: GroupCommit[_Tips | Sequence[Reaction]] = GroupCommit(self._commit)

    async def add(self, *tips: TipRecord) -> None:
        """Store all tips of one decision; returns when they are durable.

        Raises StorageUnavailable or Busy; then there is no row.
        """
        await self.writer.do(_Tips(tips))

    async def react(self, reactions: Sequence[Reaction]) -> list[ReactionResult]:
        """Store reactions, all or none; returns, in their order, when they are durable.

        Raises NoSuchTips, StorageUnavailable or Busy.
        """
        counted: list[ReactionResult] = await self.writer.do(reactions)
        return counted

    async def holds_real_tips(self) -> bool:
        """Tell whether there are tips that were not simulated."""
        table = schema.tip_scores
        async with self.database.reading() as connection:
            found = await connection.execute(select(table.c.tip_id).where(~table.c.simulated).limit(1))
            return found.first() is not None

    def decisions(self, before: datetime, since: datetime | None = None) -> AsyncIterator[LoggedDecision]:
        """Yield the decisions that can be learned from, from `since` to `before`, in the order of time.

        Those of the playground are left out, and tips of another model than the first one. Raises StorageUnavailable.
        """
        return decision_log.decisions(self.database, before, since)

    def user_aggregates(
        self, now: datetime, reaction_window: timedelta
    ) -> AsyncIterator[tuple[str, Mapping[str, float]]]:
        """Yield what is known beforehand of each person with tips in the last 30 days; see `decision_log`."""
        return decision_log.user_aggregates(self.database, now, reaction_window)

    async def purge(self, before: datetime) -> int:
        """Remove the tips of all full hours before `before`, with their reactions and counts; return how many tips."""
        tips, hour = schema.tip_scores, hour_of(before)
        # Locked: a reaction that is stored meanwhile would be to a tip that is about to go.
        old = select(tips.c.tip_id).where(tips.c.created_at < start_of(hour)).order_by(tips.c.tip_id).limit(_AT_ONCE)
        old = old.with_for_update()
        purged = 0
        while True:  # a writer that serves people meanwhile does not wait for all of it
            async with self.database.writing() as connection:
                found = (await connection.execute(old)).scalars().all()
                if not found:
                    await self.counts.remove(connection, hour)
                    break
                await _delete(connection, found)
                purged += len(found)
        await self.database.wipe()
        return purged

    async def forget(self, user_id: str) -> int:
        """Remove everything of one person, the counts of their tips included; return how many tips."""
        tips = schema.tip_scores
        # The rows do not change until we are done; SQLite has one writer at a time anyway, and ignores this.
        query = select(tips).where(tips.c.user_id == user_id).order_by(tips.c.tip_id).with_for_update()
        async with self.database.writing() as connection:
            rows = (await connection.execute(query)).mappings().all()
            changes = CounterDelta()
            for row in rows:
                changes.tip(facts := TipDimensions.of(row), -1)
                if standing := _standing(row):
                    changes.reaction(facts, standing, -1)
            await _delete(connection, [row["tip_id"] for row in rows])
            await self.counts.add(connection, changes)
            await self.counts.remove_empty(connection)
        await self.database.wipe()
        return len(rows)

    async def _commit(self, operations: Sequence[_Tips | Sequence[Reaction]]) -> Sequence[Any]:
        async with self.database.writing() as connection:
            changes = CounterDelta()
            tips = [tip for one in operations if isinstance(one, _Tips) for tip in one.rows]
            await self._add(connection, tips, changes)
            given = [one for one in operations if not isinstance(one, _Tips)]
            answers = iter(await self._react(connection, given, changes) if given else ())
            await self.counts.add(connection, changes)
        return [None if isinstance(one, _Tips) else next(answers) for one in operations]

    async def _add(self, connection: AsyncConnection, tips: Sequence[TipRecord], changes: CounterDelta) -> None:
        if tips:
            rows = [schema.as_row(tip) for tip in tips]
            await connection.execute(insert(schema.tip_scores), rows)
            for row in rows:
                changes.tip(TipDimensions.of(row))

    async def _react(
        self, connection: AsyncConnection, batches: Sequence[Sequence[Reaction]], changes: CounterDelta
    ) -> list[list[ReactionResult] | UnknownTipsError]:
        ids = sorted({reaction.tip_id for batch in batches for reaction in batch})
        rows: dict[UUID, RowMapping] = {}
        for start in range(0, len(ids), _AT_ONCE):  # all of them may be more parameters than a statement can have
            some = {"ids": ids[start : start + _AT_ONCE]}
            rows |= {row["tip_id"]: row for row in (await connection.execute(_TIPS_REACTED_TO, some)).mappings()}
        before = {tip_id: _standing(row) for tip_id, row in rows.items()}
        counted = dict(before)
        history: list[dict[str, Any]] = []
        answers: list[list[ReactionResult] | UnknownTipsError] = []
        now = self._clock()
        for batch in batches:
            unknown = [index for index, reaction in enumerate(batch) if reaction.tip_id not in rows]
            if unknown:
                answers.append(UnknownTipsError(unknown))
                continue
            answer = []
            for reaction in batch:
                tip_id = reaction.tip_id
                placed, counts, outcome = resolve_reaction(reaction, counted[tip_id], now)
                counted[tip_id] = counts
                if outcome != "repeated":
                    history.append(_history(tip_id, placed, now))
                answer.append(ReactionResult(tip_id, outcome, counts.kind, counts.reward))
            answers.append(answer)
        changed = {tip_id: new for tip_id, new in counted.items() if new and new != before[tip_id]}
        for tip_id, new in changed.items():
            facts = TipDimensions.of(rows[tip_id])
            if old := before[tip_id]:
                changes.reaction(facts, old, -1)
            changes.reaction(facts, new)
        if history:
            await connection.execute(self._add_reactions, history)
        if changed:
            await connection.execute(
                _LET_COUNT,
                [
                    {"of_tip": tip_id, "kind": new.kind, "worth": new.reward, "when": new.at}
                    for tip_id, new in changed.items()
                ],
            )
        return answers


_STANDING = ("reaction", "reward", "reacted_at")
_FACTS = [schema.tip_scores.c[name] for name in ("tip_id", *TipDimensions.__slots__, *_STANDING)]

# In one order everywhere, and locked: two writers wait for each other, never each for the other.
_TIPS_REACTED_TO = (
    select(*_FACTS)
    .where(schema.tip_scores.c.tip_id.in_(bindparam("ids", expanding=True)))
    .order_by(schema.tip_scores.c.tip_id)
    .with_for_update()
)
_LET_COUNT = (
    update(schema.tip_scores)
    .where(schema.tip_scores.c.tip_id == bindparam("of_tip"))
    .values(reaction=bindparam("kind"), reward=bindparam("worth"), reacted_at=bindparam("when"))
)


def _standing(row: Row) -> EffectiveReaction | None:
    return EffectiveReaction(row["reacted_at"], row["reaction"], row["reward"]) if row["reaction"] else None


def _history(tip_id: UUID, placed: EffectiveReaction, now: datetime) -> dict[str, Any]:
    return {"tip_id": tip_id, "at": placed.at, "reaction": placed.kind, "reward": placed.reward, "received_at": now}


async def _delete(connection: AsyncConnection, tip_ids: Sequence[UUID]) -> None:
    for start in range(0, len(tip_ids), _AT_ONCE):
        ids = tip_ids[start : start + _AT_ONCE]
        await connection.execute(delete(schema.reactions).where(schema.reactions.c.tip_id.in_(ids)))
        await connection.execute(delete(schema.tip_scores).where(schema.tip_scores.c.tip_id.in_(ids)))
