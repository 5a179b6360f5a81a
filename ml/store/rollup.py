"""What is counted of tips and reactions, by the hour: small additive counts, so that they can be kept as they happen.

A tip is counted under its version, its digest and the hour (UTC) in which it was stored, once for everyone and once for
each segment that its person belongs to. A reaction that counts is counted beside it, in the hour of the *tip*.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from ml.store.reactions import EffectiveReaction

EVERYONE = ""
ALL_TIPS = ""
"""In the place of a reaction: all tips, whether they are reacted to or not."""

UNAVAILABLE = "unavailable"
"""In the place of a policy that ranks candidates: none answered, so the first candidate was shown."""

_NOT_RANKED = frozenset({None, "uniform", UNAVAILABLE})
"""Policies under which it does not depend on a candidate whether it is shown."""

_DRAWN_ONCE = "sticky"
"""The policy that draws a version for a person, not for a tip: its tips come in heaps, however fairly it draws."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)


def hour_of(at: datetime) -> int:
    """Return the full hours since 1970 (UTC) at a time."""
    return (at - _EPOCH) // _HOUR


def start_of(hour: int) -> datetime:
    """Return the time at which an hour begins."""
    return _EPOCH + hour * _HOUR


class Row(Protocol):
    """Values by the names of their columns."""

    def __getitem__(self, name: str, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class TipDimensions:
    """What matters of a tip for counting it: columns of `tip_scores`."""

    created_at: datetime
    prompt_version: str
    prompt_digest: str
    fallback: bool
    shadow: bool
    simulated: bool
    segments: Sequence[str]
    policy: str
    score_policy: str | None
    prompt_version_asked: str | None
    options: Mapping[str, float]
    input_tokens: int
    output_tokens: int
    ms: int

    @classmethod
    def of(cls, row: Row) -> "Facts":
        """Take them from a row of `tip_scores`."""
        return cls(**{name: row[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True, order=True)
class RewardKey:
    """Where a tip, or the reaction to it, is counted."""

    segment: str
    hour: int
    prompt_version: str
    prompt_digest: str
    fallback: bool
    shadow: bool
    reaction: str


@dataclass(frozen=True, slots=True)
class RewardCounts:
    """Sums over tips; rewards only over reactions, all that comes after them only over `SHOWN`.

    `simulated`: how many were written for people who do not exist. `dependent`: how many are no sample of their
    version's tips from which an interval follows, because a policy that learned ranked them above others, or because
    their version was drawn for a person and not for a tip.
    """

    tips: int = 0
    reward: float = 0.0
    reward_squared: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    ms: int = 0
    simulated: int = 0
    dependent: int = 0

    def __add__(self, other: "RewardCounts") -> "RewardCounts":
        return RewardCounts(
            self.tips + other.tips,
            self.reward + other.reward,
            self.reward_squared + other.reward_squared,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.ms + other.ms,
            self.simulated + other.simulated,
            self.dependent + other.dependent,
        )


@dataclass(frozen=True, slots=True, order=True)
class AssignmentKey:
    """Where a choice among several versions is counted, for each version that it could have taken."""

    segment: str
    hour: int
    prompt_version: str


@dataclass(frozen=True, slots=True)
class AssignmentCounts:
    """How often a version was taken, and how often it should have been: the sum of its logged propensities."""

    taken: int = 0
    expected: float = 0.0

    def __add__(self, other: "AssignmentCounts") -> "AssignmentCounts":
        return AssignmentCounts(self.taken + other.taken, self.expected + other.expected)


@dataclass(slots=True)
class CounterDelta:
    """What tips and reactions add to the counts, or take off them."""

    rewards: dict[RewardKey, RewardCounts] = field(default_factory=lambda: defaultdict(RewardCounts))
    assignments: dict[AssignmentKey, AssignmentCounts] = field(default_factory=lambda: defaultdict(AssignmentCounts))

    def tip(self, tip: TipDimensions, times: int = 1) -> None:
        """Count a tip; `times` is -1 to take it off."""
        counts = RewardCounts(
            tips=times,
            input_tokens=times * tip.input_tokens,
            output_tokens=times * tip.output_tokens,
            ms=times * tip.ms,
            simulated=times * tip.simulated,
            dependent=times * (tip.score_policy not in _NOT_RANKED or tip.policy == _DRAWN_ONCE),
        )
        for key in _keys(tip, ALL_TIPS):
            self.rewards[key] += counts
        # A choice with one option, and a tip of another model, say nothing about how versions were drawn. A candidate
        # that was not shown does: without it, the versions that are shown more often would seem to be drawn more often.
        if len(tip.options) > 1 and tip.policy != _DRAWN_ONCE and not tip.fallback:
            for segment in (EVERYONE, *tip.segments):
                for version, probability in tip.options.items():
                    key_ = AssignmentKey(segment, hour_of(tip.created_at), version)
                    taken = version == tip.prompt_version_asked
                    self.assignments[key_] += AssignmentCounts(times * taken, times * probability)

    def reaction(self, tip: TipDimensions, counted: EffectiveReaction, times: int = 1) -> None:
        """Count the reaction that counts for a tip; `times` is -1 to take it off."""
        counts = RewardCounts(times, times * counted.reward, times * counted.reward**2)
        for key in _keys(tip, counted.kind):
            self.rewards[key] += counts


@dataclass(frozen=True, slots=True)
class DayCounts:
    """The counts over one day, for the tips that are old enough to count without a reaction, or are not."""

    day: int
    """Since 1970."""
    prompt_version: str
    prompt_digest: str
    fallback: bool
    shadow: bool
    reaction: str
    mature: bool
    tips: int
    reward: float
    reward_squared: float
    input_tokens: int
    output_tokens: int
    ms: int
    simulated: int
    dependent: int


def _keys(tip: TipDimensions, reaction: str) -> Iterable[RewardKey]:
    hour = hour_of(tip.created_at)
    for segment in (EVERYONE, *tip.segments):
        yield RewardKey(segment, hour, tip.prompt_version, tip.prompt_digest, tip.fallback, tip.shadow, reaction)
