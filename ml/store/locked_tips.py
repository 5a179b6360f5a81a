"""The storage of reactions and exposures: the rows of their tips are locked, changed in memory, and written."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.store import tables
from ml.store.database import MAX_PARAMETERS, Database
from ml.store.exposures import Exposure, ExposureResult
from ml.store.hours import day_of
from ml.store.reactions import (
    EffectiveReaction,
    Reaction,
    ReactionResult,
    UnknownTipsError,
    effective_in_window,
    effective_reaction,
    resolve_reaction,
)
from ml.store.rollup import CounterDelta
from ml.store.tip_dimensions import TipDimensions

_TIPS = tables.tip_scores.c
_CHANGING = ("reaction", "reward", "reacted_at", "reward_in_window", "seen")
_COLUMNS = [_TIPS[name] for name in dict.fromkeys(("tip_id", *TipDimensions.__slots__, *_CHANGING))]

# Locked, and in the same order everywhere, so that two writers cannot deadlock.
_SELECT_TIPS = (
    select(*_COLUMNS).where(_TIPS.tip_id.in_(bindparam("ids", expanding=True))).order_by(_TIPS.tip_id).with_for_update()
)
_UPDATE_TIPS = (
    update(tables.tip_scores)
    .where(_TIPS.tip_id == bindparam("of_tip"))
    .values({name: bindparam(f"new_{name}") for name in _CHANGING})
)
_SELECT_EXPOSURES = select(tables.exposures).where(tables.exposures.c.tip_id.in_(bindparam("ids", expanding=True)))
_SELECT_REACTIONS = select(tables.reactions).where(tables.reactions.c.tip_id.in_(bindparam("ids", expanding=True)))


class LockedTips:
    """The rows of tips that a transaction has locked, for reactions and exposures. `TipLocks.save` writes the changes.

    `exposed`: the time of the exposure of each tip that has one.
    """

    def __init__(
        self, rows: Mapping[UUID, RowMapping], exposed: Mapping[UUID, datetime], now: datetime, window: timedelta
    ) -> None:
        self.rows = rows
        self.now = now
        self.reactions: list[dict[str, Any]] = []
        self.exposures: list[dict[str, Any]] = []
        self.effective = {tip_id: effective_reaction(row) for tip_id, row in rows.items()}
        self._exposed = dict(exposed)
        self._window = window

    def react(self, reactions: Sequence[Reaction]) -> list[ReactionResult]:
        """Return the results of reactions; raises UnknownTipsError, and then none of them takes effect."""
        self._check([reaction.tip_id for reaction in reactions])
        results = []
        for reaction in reactions:
            tip_id = reaction.tip_id
            resolved, effective, outcome = resolve_reaction(reaction, self.effective[tip_id], self.now)
            self.effective[tip_id] = effective
            if outcome != "repeated":
                self.reactions.append(
                    {
                        "tip_id": tip_id,
                        "at": resolved.at,
                        "reaction": resolved.kind,
                        "reward": resolved.reward,
                        "received_at": self.now,
                    }
                )
            results.append(ReactionResult(tip_id, outcome, effective.kind, effective.reward))
        return results

    def expose(self, exposures: Sequence[Exposure]) -> list[ExposureResult]:
        """Return the results of exposures; raises UnknownTipsError, and then none of them takes effect."""
        self._check([exposure.tip_id for exposure in exposures])
        results = []
        for exposure in exposures:
            tip_id = exposure.tip_id
            if tip_id in self._exposed:
                results.append(ExposureResult(tip_id, "repeated", self._exposed[tip_id]))
                continue
            at = self._exposed[tip_id] = exposure.at or self.now
            self.exposures.append({"tip_id": tip_id, "at": at, "received_at": self.now})
            results.append(ExposureResult(tip_id, "recorded" if self.in_window(tip_id) else "late", at))
        return results

    def changed_days(self) -> set[int]:
        """Return the days of the tips with a new reaction or exposure."""
        return {day_of(self.rows[row["tip_id"]]["created_at"]) for row in (*self.reactions, *self.exposures)}

    def in_window(self, tip_id: UUID) -> bool:
        """Return whether the reaction window of a tip has not ended."""
        created_at: datetime = self.rows[tip_id]["created_at"]
        return self.now <= created_at + self._window

    def _check(self, tip_ids: Sequence[UUID]) -> None:
        unknown = [index for index, tip_id in enumerate(tip_ids) if tip_id not in self.rows]
        if unknown:
            raise UnknownTipsError(unknown)


class TipLocks:
    """Stores reactions and exposures in the caller's transaction."""

    def __init__(self, database: Database, window: timedelta) -> None:
        """`window`: the reaction window."""
        self._window = window
        # Built once, so that SQLAlchemy's statement cache finds them by identity.
        self._insert_reactions = database.upsert(tables.reactions).on_conflict_do_nothing()
        self._insert_exposures = database.upsert(tables.exposures)

    async def lock(
        self, connection: AsyncConnection, reacted: Iterable[UUID], exposed: Iterable[UUID], now: datetime
    ) -> LockedTips:
        """Lock the tips with these ids that are stored. `exposed`: the ids of the tips with a report of an exposure."""
        exposed = {*exposed}
        rows = {row["tip_id"]: row for row in await _select(connection, _SELECT_TIPS, {*reacted} | exposed)}
        exposures = await _select(connection, _SELECT_EXPOSURES, exposed)
        return LockedTips(rows, {row["tip_id"]: row["at"] for row in exposures}, now, self._window)

    async def save(self, connection: AsyncConnection, locked: LockedTips, delta: CounterDelta) -> None:
        """Write the reactions and exposures of locked tips, and add the change of the counters to `delta`."""
        if locked.reactions:
            await connection.execute(self._insert_reactions, locked.reactions)
        if locked.exposures:
            await connection.execute(self._insert_exposures, locked.exposures)
        rewards = await self._rewards_in_window(connection, locked)
        seen = {row["tip_id"] for row in locked.exposures if locked.in_window(row["tip_id"])}
        updates = []
        for tip_id, row in locked.rows.items():
            old, new = effective_reaction(row), locked.effective[tip_id]
            reward = rewards.get(tip_id, row["reward_in_window"])
            changed = {
                "reaction": new and new.kind,
                "reward": new and new.reward,
                "reacted_at": new and new.at,
                "reward_in_window": reward,
                "seen": row["seen"] or tip_id in seen,
            }
            if changed["seen"] != row["seen"]:  # all counters of the tip change
                delta.add_row(row, -1)
                delta.add_row({**row, **changed})
            elif new != old or reward != row["reward_in_window"]:
                _count_reaction(delta, row, old, new, reward)
            else:
                continue
            updates.append({"of_tip": tip_id, **{f"new_{name}": value for name, value in changed.items()}})
        if updates:
            await connection.execute(_UPDATE_TIPS, updates)

    async def _rewards_in_window(self, connection: AsyncConnection, locked: LockedTips) -> dict[UUID, float]:
        """Return the reward in the window of each tip that has been reacted to and whose window has not ended."""
        reacted = [tip_id for tip_id in {row["tip_id"] for row in locked.reactions} if locked.in_window(tip_id)]
        rewards = {tip_id: effective.reward for tip_id in reacted if (effective := locked.effective[tip_id])}
        # If the clock went back, the effective one of several reactions may have been received after the window.
        again = [tip_id for tip_id in reacted if locked.rows[tip_id]["reaction"]]
        window_ends = {tip_id: locked.rows[tip_id]["created_at"] + self._window for tip_id in again}
        latest = effective_in_window(await _select(connection, _SELECT_REACTIONS, again), window_ends)
        return rewards | {tip_id: reaction.reward for tip_id, reaction in latest.items()}


async def _select(connection: AsyncConnection, query: Any, tip_ids: Iterable[UUID]) -> list[RowMapping]:
    ids = sorted(tip_ids)
    rows: list[RowMapping] = []
    for start in range(0, len(ids), MAX_PARAMETERS):
        rows += (await connection.execute(query, {"ids": ids[start : start + MAX_PARAMETERS]})).mappings()
    return rows


def _count_reaction(
    delta: CounterDelta,
    row: RowMapping,
    old: EffectiveReaction | None,
    new: EffectiveReaction | None,
    reward_in_window: float | None,
) -> None:
    """Count the change of the effective reaction to a tip, and of its reward in the window."""
    tip = TipDimensions.of(row)
    if old:
        delta.add_reaction(tip, old.kind, old.reward, -1)
    if new:
        delta.add_reaction(tip, new.kind, new.reward)
    if reward_in_window != row["reward_in_window"]:
        if row["reward_in_window"]:
            delta.add_reward_in_window(tip, row["reward_in_window"], -1)
        if reward_in_window:
            delta.add_reward_in_window(tip, reward_in_window)
