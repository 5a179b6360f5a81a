"""How people react to a tip, what that is worth, and which of several reactions counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Literal
from uuid import UUID

REACTIONS: Mapping[str, float] = MappingProxyType(
    {"helpful": 1.0, "done": 1.0, "saved": 0.5, "dismissed": 0.0, "not_helpful": 0.0}
)
"""Each kind of reaction with its reward in [0, 1]; no reaction is worth 0. To add one, add an entry."""

Outcome = Literal["recorded", "repeated", "superseded"]
"""The reaction counts now; it did already; or a later one counts."""

_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Reaction:
    """What somebody says about a tip; `at`, in UTC, is when they said it, None for just now."""

    tip_id: UUID
    kind: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True, order=True)
class EffectiveReaction:
    """A reaction that has its time and its reward; the greatest one of a tip is the one that counts."""

    at: datetime
    kind: str
    reward: float


def resolve_reaction(given: Reaction, counted: EffectiveReaction | None, now: datetime) -> tuple[EffectiveReaction, EffectiveReaction, Outcome]:
    """Return a reaction with its time and reward, the one that counts from now on, and what became of it.

    The later one counts, whatever order they arrive in; of two at the same instant, the one whose name comes later in
    the alphabet. One without a time is the latest, even if the clock went back; it repeats a counted one of its kind.
    """
    if given.at is None and counted and counted.kind == given.kind:
        return counted, counted, "repeated"
    at = given.at or (max(now, counted.at + _INSTANT) if counted else now)
    placed = EffectiveReaction(at, given.kind, REACTIONS[given.kind])
    if counted is None or (placed.at, placed.kind) > (counted.at, counted.kind):
        return placed, placed, "recorded"
    return placed, counted, "repeated" if (placed.at, placed.kind) == (counted.at, counted.kind) else "superseded"
