"""Reactions to tips: their rewards, and the rule for which of several is effective."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Literal
from uuid import UUID

from ml.store.tip_dimensions import Row

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
    """Some of several reactions or exposures are of tips that are not stored; `indexes` are their positions."""

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


def effective_in_window(history: Iterable[Row], window_ends: Mapping[UUID, datetime]) -> dict[UUID, EffectiveReaction]:
    """Return the effective reaction of each tip among those that were received by the end of its reaction window.

    `history`: rows of `reactions`. `window_ends`: of their tips, by id.
    """
    effective: dict[UUID, EffectiveReaction] = {}
    for row in history:
        if row["received_at"] <= window_ends[row["tip_id"]]:
            reaction = EffectiveReaction(row["at"], row["reaction"], row["reward"])
            effective[row["tip_id"]] = max(reaction, effective.get(row["tip_id"], reaction))
    return effective


def effective_reaction(row: Row) -> EffectiveReaction | None:
    """Return the effective reaction in a row of `tip_scores`; None without a reaction."""
    return EffectiveReaction(row["reacted_at"], row["reaction"], row["reward"]) if row["reaction"] else None
