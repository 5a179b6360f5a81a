"""The hourly counts of tips and reactions: which counters a tip or a reaction changes, and by how much. Pure.

A tip is counted in the hour (UTC) in which it was stored, under its prompt version and digest: once for all users and
once for each segment of its user. The effective reaction to it is counted in the hour of the *tip*. All counts are
additive, so they can be updated as rows change, and a deleted row can be subtracted.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from ml.experiments.policies import POLICIES

EVERYONE = ""
"""The segment that every user belongs to."""

ALL_TIPS = ""
"""The value of `reaction` under which tips are counted, with or without a reaction."""

UNAVAILABLE = "unavailable"
"""The score policy of a decision whose candidates could not be ranked, so that the first one was shown."""

_INDEPENDENT_SCORE_POLICIES = frozenset({None, "uniform", UNAVAILABLE})
"""Score policies under which the choice of a candidate does not depend on its features."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)


def hour_of(at: datetime) -> int:
    """Return the number of whole hours from 1970 (UTC) to a time."""
    return (at - _EPOCH) // _HOUR


def start_of(hour: int) -> datetime:
    """Return the time at which an hour begins."""
    return _EPOCH + hour * _HOUR


class Row(Protocol):
    """Values by column name."""

    def __getitem__(self, name: str, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class TipDimensions:
    """The columns of `tip_scores` that decide where and how a tip is counted."""

    created_at: datetime
    prompt_version: str
    prompt_digest: str
    fallback: bool
    shown: bool
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
    def of(cls, row: Row) -> "TipDimensions":
        """Take the columns from a row of `tip_scores`."""
        return cls(**{name: row[name] for name in cls.__slots__})

    @property
    def drawn_per_user(self) -> bool:
        """Whether the prompt version was drawn for the user, not for this tip."""
        return self.policy in POLICIES and POLICIES[self.policy].per_user

    @property
    def dependent(self) -> bool:
        """Whether the tip is not an independent sample of its prompt version's tips.

        A learned policy chose it among candidates, so that it is the best of several; or its version was drawn per
        user, so that it is correlated with the user's other tips.
        """
        return self.drawn_per_user or self.score_policy not in _INDEPENDENT_SCORE_POLICIES


@dataclass(frozen=True, slots=True, order=True)
class RewardKey:
    """The counter of a tip, or of the reaction to it."""

    segment: str
    hour: int
    prompt_version: str
    prompt_digest: str
    fallback: bool
    shown: bool
    dependent: bool
    reaction: str


@dataclass(frozen=True, slots=True)
class RewardCounts:
    """Sums over tips: the rewards under each reaction, the other sums under `ALL_TIPS`.

    `simulated`: tips written for simulated users.
    """

    tips: int = 0
    reward: float = 0.0
    reward_squared: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    ms: int = 0
    simulated: int = 0

    def __add__(self, other: "RewardCounts") -> "RewardCounts":
        return RewardCounts(
            self.tips + other.tips,
            self.reward + other.reward,
            self.reward_squared + other.reward_squared,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.ms + other.ms,
            self.simulated + other.simulated,
        )


@dataclass(frozen=True, slots=True, order=True)
class AssignmentKey:
    """The counter of a draw among several prompt versions, one for each version that could have been drawn."""

    segment: str
    hour: int
    prompt_version: str


@dataclass(frozen=True, slots=True)
class AssignmentCounts:
    """How often a version was drawn, and the expected number: the sum of its logged propensities."""

    taken: int = 0
    expected: float = 0.0

    def __add__(self, other: "AssignmentCounts") -> "AssignmentCounts":
        return AssignmentCounts(self.taken + other.taken, self.expected + other.expected)


@dataclass(slots=True)
class CounterDelta:
    """The change that tips and reactions make to the counters. `sign`: 1 to add, -1 to subtract."""

    rewards: dict[RewardKey, RewardCounts] = field(default_factory=lambda: defaultdict(RewardCounts))
    assignments: dict[AssignmentKey, AssignmentCounts] = field(default_factory=lambda: defaultdict(AssignmentCounts))

    def add_tip(self, tip: TipDimensions, sign: int = 1) -> None:
        """Count a tip, and the draw of its prompt version."""
        counts = RewardCounts(
            tips=sign,
            input_tokens=sign * tip.input_tokens,
            output_tokens=sign * tip.output_tokens,
            ms=sign * tip.ms,
            simulated=sign * tip.simulated,
        )
        for key in _reward_keys(tip, ALL_TIPS):
            self.rewards[key] += counts
        # A draw with one option says nothing about the shares, and a fallback model's tip may be missing for another
        # reason than the draw. Candidates that were not shown count: without them, versions that are shown more often
        # would seem to be drawn more often.
        if len(tip.options) > 1 and not tip.drawn_per_user and not tip.fallback:
            for segment in (EVERYONE, *tip.segments):
                for prompt_version, probability in tip.options.items():
                    assignment_key = AssignmentKey(segment, hour_of(tip.created_at), prompt_version)
                    drawn = prompt_version == tip.prompt_version_asked
                    self.assignments[assignment_key] += AssignmentCounts(sign * drawn, sign * probability)

    def add_reaction(self, tip: TipDimensions, kind: str, reward: float, sign: int = 1) -> None:
        """Count the effective reaction to a tip."""
        counts = RewardCounts(sign, sign * reward, sign * reward**2)
        for key in _reward_keys(tip, kind):
            self.rewards[key] += counts


@dataclass(frozen=True, slots=True)
class DayCounts:
    """The counts of one day (since 1970); `mature`: of tips whose reaction window has ended, else of younger tips."""

    day: int
    prompt_version: str
    prompt_digest: str
    fallback: bool
    shown: bool
    dependent: bool
    reaction: str
    mature: bool
    tips: int
    reward: float
    reward_squared: float
    input_tokens: int
    output_tokens: int
    ms: int
    simulated: int


def _reward_keys(tip: TipDimensions, reaction: str) -> Iterable[RewardKey]:
    hour = hour_of(tip.created_at)
    variant = (tip.prompt_version, tip.prompt_digest, tip.fallback, tip.shown, tip.dependent)
    for segment in (EVERYONE, *tip.segments):
        yield RewardKey(segment, hour, *variant, reaction)
