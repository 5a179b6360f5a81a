"""Reactions to tips: their rewards, the rule for which of several is effective, and their storage."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import RowMapping, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.store import tables
from ml.store.database import MAX_PARAMETERS, Database
from ml.store.rollup import CounterDelta, Row, TipDimensions

REACTIONS: Mapping[str, float] = MappingProxyType(
    {"helpful": 1.0, "done": 1.0, "saved": 0.5, "dismissed": 0.0, "not_helpful": 0.0}
)
"""Each kind of reaction with its reward in [0, 1]; no reaction has a reward of 0. To add one, add an entry."""

Outcome = Literal["recorded", "repeated", "superseded"]
"""The reaction has become effective; it was effective already; or a later reaction is effective."""

_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Reaction:
    """A reaction to a tip, as a caller reports it. `at`: the time, in UTC, at which the user reacted; None for now."""

    tip_id: UUID
    kind: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True, order=True)
class EffectiveReaction:
    """A reaction with its time and its reward; the greatest one of a tip is effective."""

    at: datetime
    kind: str
    reward: float


@dataclass(frozen=True, slots=True)
class ReactionResult:
    """The outcome of storing a reaction, and the effective reaction of its tip.

    `replayed`: the result was stored before, under the same idempotency key.
    """

    tip_id: UUID
    outcome: Outcome
    reaction: str
    reward: float
    replayed: bool = False


class UnknownTipsError(Exception):
    """Some of several reactions are to tips that are not stored; `indexes` are their positions."""

    def __init__(self, indexes: Sequence[int]) -> None:
        super().__init__(f"unknown tips: {len(indexes)}")
        self.indexes = tuple(indexes)


def resolve_reaction(
    reaction: Reaction, effective: EffectiveReaction | None, now: datetime
) -> tuple[EffectiveReaction, EffectiveReaction, Outcome]:
    """Return the reaction with its time and reward, the reaction that is effective from now on, and the outcome.

    The latest reaction is effective, independent of the order of arrival; of two at the same instant, the one whose
    kind is later in the alphabet. A reaction without a time is later than the effective one, even if the clock went
    back, unless both are of the same kind: then it repeats it.
    """
    if reaction.at is None and effective and effective.kind == reaction.kind:
        return effective, effective, "repeated"
    at = reaction.at or (max(now, effective.at + _INSTANT) if effective else now)
    resolved = EffectiveReaction(at, reaction.kind, REACTIONS[reaction.kind])
    if effective is None or (resolved.at, resolved.kind) > (effective.at, effective.kind):
        return resolved, resolved, "recorded"
    is_same = (resolved.at, resolved.kind) == (effective.at, effective.kind)
    return resolved, effective, "repeated" if is_same else "superseded"


_EFFECTIVE_COLUMNS = ("reaction", "reward", "reacted_at")
_TIP_COLUMNS = [tables.tip_scores.c[name] for name in ("tip_id", *TipDimensions.__slots__, *_EFFECTIVE_COLUMNS)]

# Locked, and in the same order everywhere, so that two writers cannot deadlock.
_SELECT_TIPS = (
    select(*_TIP_COLUMNS)
    .where(tables.tip_scores.c.tip_id.in_(bindparam("ids", expanding=True)))
    .order_by(tables.tip_scores.c.tip_id)
    .with_for_update()
)
_UPDATE_EFFECTIVE = (
    update(tables.tip_scores)
    .where(tables.tip_scores.c.tip_id == bindparam("of_tip"))
    .values(reaction=bindparam("new_kind"), reward=bindparam("new_reward"), reacted_at=bindparam("new_at"))
)


def effective_reaction(row: Row) -> EffectiveReaction | None:
    """Return the effective reaction in a row of `tip_scores`; None without a reaction."""
    return EffectiveReaction(row["reacted_at"], row["reaction"], row["reward"]) if row["reaction"] else None


class LockedTips:
    """The rows of tips that a transaction has locked, for reactions to them. `ReactionWriter.save` writes them."""

    def __init__(self, rows: Mapping[UUID, RowMapping], now: datetime) -> None:
        self.rows = rows
        self.history: list[dict[str, Any]] = []
        self._now = now
        self._effective = {tip_id: effective_reaction(row) for tip_id, row in rows.items()}

    def react(self, reactions: Sequence[Reaction]) -> list[ReactionResult]:
        """Return the results of reactions; raises UnknownTipsError, and then none of them takes effect."""
        unknown = [index for index, reaction in enumerate(reactions) if reaction.tip_id not in self.rows]
        if unknown:
            raise UnknownTipsError(unknown)
        results = []
        for reaction in reactions:
            tip_id = reaction.tip_id
            resolved, effective, outcome = resolve_reaction(reaction, self._effective[tip_id], self._now)
            self._effective[tip_id] = effective
            if outcome != "repeated":
                self.history.append(_history_row(tip_id, resolved, self._now))
            results.append(ReactionResult(tip_id, outcome, effective.kind, effective.reward))
        return results

    def changes(self) -> Iterator[tuple[RowMapping, EffectiveReaction | None, EffectiveReaction]]:
        """Yield each row whose effective reaction has changed, with the old and the new one."""
        for tip_id, row in self.rows.items():
            old, new = effective_reaction(row), self._effective[tip_id]
            if new and new != old:
                yield row, old, new


class ReactionWriter:
    """Stores reactions in the caller's transaction."""

    def __init__(self, database: Database) -> None:
        # Built once, so that SQLAlchemy's statement cache finds it by identity.
        self._insert = database.upsert(tables.reactions).on_conflict_do_nothing()

    async def lock(self, connection: AsyncConnection, tip_ids: Iterable[UUID], now: datetime) -> LockedTips:
        """Lock the tips with these ids that are stored."""
        ids = sorted({*tip_ids})
        rows: dict[UUID, RowMapping] = {}
        for start in range(0, len(ids), MAX_PARAMETERS):
            chunk = {"ids": ids[start : start + MAX_PARAMETERS]}
            rows |= {row["tip_id"]: row for row in (await connection.execute(_SELECT_TIPS, chunk)).mappings()}
        return LockedTips(rows, now)

    async def save(self, connection: AsyncConnection, locked: LockedTips, delta: CounterDelta) -> None:
        """Write the reactions to locked tips, and add the change of the counters to `delta`."""
        updates = []
        for row, old, new in locked.changes():
            tip = TipDimensions.of(row)
            if old:
                delta.add_reaction(tip, old.kind, old.reward, -1)
            delta.add_reaction(tip, new.kind, new.reward)
            updates.append({"of_tip": row["tip_id"], "new_kind": new.kind, "new_reward": new.reward, "new_at": new.at})
        if locked.history:
            await connection.execute(self._insert, locked.history)
        if updates:
            await connection.execute(_UPDATE_EFFECTIVE, updates)


def _history_row(tip_id: UUID, resolved: EffectiveReaction, now: datetime) -> dict[str, Any]:
    return {
        "tip_id": tip_id,
        "at": resolved.at,
        "reaction": resolved.kind,
        "reward": resolved.reward,
        "received_at": now,
    }
