"""The hourly counts of tips, reactions and draws: which counters a row changes, and by how much. Pure.

A tip is counted in the hour (UTC) in which it was stored: once for all users and once for each segment of its user.
The reaction to it is counted in the hour of the *tip*. There are two kinds of counters. Those of rewards are kept by
the prompt version that wrote the tip, with the present reward. Those of draws are kept by the version that was drawn
and by the distribution that it was drawn from, with the reward that was known at the end of the reaction window: within
such a counter all weights of a comparison are constant, so the sums of every pair of versions follow from it. A
generation that failed is counted as a draw only. All counts are additive, so they can be updated as rows change, and a
deleted row can be subtracted.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal, NamedTuple, Protocol
from uuid import UUID

from ml.experiments.policies import POLICIES

EVERYONE = ""
"""The segment that every user belongs to."""

ALL_TIPS = ""
"""The value of `reaction` under which tips are counted, with or without a reaction."""

UNAVAILABLE = "unavailable"
"""The score policy of a decision whose candidates could not be ranked, so that the first one was shown."""

INDEPENDENT_SCORE_POLICIES = frozenset({None, "uniform", UNAVAILABLE})
"""Score policies under which the choice of a candidate does not depend on its features."""

DrawOutcome = Literal["comparable", "ranked", "not_shown", "per_user", "fallback", "failed"]
"""The outcome of a draw; if several apply, the last one of them.

`comparable`: an independent draw, whose tip was shown. `ranked`: a learned policy chose the tip among candidates.
`not_shown`: another candidate was chosen. `per_user`: the version was drawn for the user, not for this tip. `fallback`:
a fallback model wrote the tip. `failed`: no tip was written.
"""

MIN_OPTIONS = 2
"""A draw from fewer options says nothing about their shares."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)


def hour_of(at: datetime) -> int:
    """Return the number of whole hours from 1970 (UTC) to a time."""
    return (at - _EPOCH) // _HOUR


def day_of(at: datetime) -> int:
    """Return the number of whole days from 1970 (UTC) to a time."""
    return (at - _EPOCH) // _DAY


def start_of(hour: int) -> datetime:
    """Return the time at which an hour begins."""
    return _EPOCH + hour * _HOUR


def window_seconds(reaction_window: timedelta) -> int:
    """Return the reaction window in whole seconds, at least 1, as the counters store it."""
    return math.ceil(reaction_window.total_seconds())


def distribution_id(options: Mapping[str, float]) -> str:
    """Return the SHA-256 of a distribution as canonical JSON."""
    return _distribution_id(tuple(sorted(options.items())))


# Most tips of an hour are drawn from the same distribution.
@lru_cache(maxsize=1024)
def _distribution_id(options: tuple[tuple[str, float], ...]) -> str:
    return sha256(json.dumps(dict(options), separators=(",", ":")).encode()).hexdigest()


def is_drawn_per_user(policy: str) -> bool:
    """Return whether a prompt policy, by its logged name, draws a version for each user, not for each tip."""
    return policy in POLICIES and POLICIES[policy].per_user


def is_drawn_per_decision(policy: str) -> bool:
    """Return whether a prompt policy, by its logged name, gives all candidates of a decision the same version."""
    return policy in POLICIES and POLICIES[policy].per_decision


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
    seen: bool
    simulated: bool
    segments: Sequence[str]
    policy: str
    score_policy: str | None
    prompt_version_asked: str | None
    options: Mapping[str, float]
    policy_asked: str | None
    policy_options: Mapping[str, float] | None
    input_tokens: int
    output_tokens: int
    ms: int

    @classmethod
    def of(cls, row: Row) -> "TipDimensions":
        """Take the columns from a row of `tip_scores`."""
        return cls(**{name: row[name] for name in cls.__slots__})

    @property
    def drawn_version(self) -> str:
        """The prompt version that was drawn; without a draw, the one that serving chose."""
        return self.prompt_version_asked or self.prompt_version

    @property
    def dependent(self) -> bool:
        """Whether the tip is not an independent sample of its prompt version's tips.

        A learned policy chose it among candidates of several versions, so that it is the best of several; or its
        version was drawn per user, so that it is correlated with the user's other tips.
        """
        return is_drawn_per_user(self.policy) or self._is_selected

    @property
    def outcome(self) -> DrawOutcome:
        """The outcome of the draw of the prompt version."""
        if self.fallback:
            return "fallback"
        if is_drawn_per_user(self.policy):
            return "per_user"
        if not self.shown:
            return "not_shown"
        return "ranked" if self._is_selected else "comparable"

    @property
    def is_draw(self) -> bool:
        """Whether the tip counts as a draw of its version: of candidates that were drawn together, the shown one."""
        return self.shown or not is_drawn_per_decision(self.policy)

    @property
    def ranking_outcome(self) -> DrawOutcome | None:
        """The outcome of the draw of the ranking policy; None if it was not drawn from several, and if not shown."""
        if not self.shown or not self.policy_options or len(self.policy_options) < MIN_OPTIONS:
            return None
        if self.fallback:
            return "fallback"
        return "failed" if self.score_policy == UNAVAILABLE else "comparable"

    @property
    def _is_selected(self) -> bool:
        independent = self.score_policy in INDEPENDENT_SCORE_POLICIES or is_drawn_per_decision(self.policy)
        return not independent


class RewardKey(NamedTuple):
    """The counter of a tip, or of the reaction to it."""

    segment: str
    hour: int
    window_seconds: int
    prompt_version: str
    prompt_digest: str
    fallback: bool
    shown: bool
    dependent: bool
    seen: bool
    reaction: str


@dataclass(slots=True)
class RewardCounts:
    """Sums over tips, to which others are added: the rewards under each reaction, the other sums under `ALL_TIPS`.

    `simulated`: tips written for simulated users.
    """

    tips: int = 0
    reward: float = 0.0
    reward_squared: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    ms: int = 0
    simulated: int = 0

    def add(self, other: "RewardCounts") -> None:
        """Add in place, which takes half as long as a new value: a tip is added to the counters of all its segments."""
        self.tips += other.tips
        self.reward += other.reward
        self.reward_squared += other.reward_squared
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.ms += other.ms
        self.simulated += other.simulated


class DrawKey(NamedTuple):
    """The counter of a draw. `distribution`: its id. `prompt_version`: the version that was drawn."""

    segment: str
    hour: int
    window_seconds: int
    distribution: str
    prompt_version: str
    prompt_digest: str
    outcome: DrawOutcome
    seen: bool


class RankingKey(NamedTuple):
    """The counter of a draw of a ranking policy. `policy_version`: the one that was drawn."""

    segment: str
    hour: int
    window_seconds: int
    distribution: str
    policy_version: str
    outcome: DrawOutcome
    seen: bool


@dataclass(slots=True)
class DrawSums:
    """The number of draws, and the sums over the rewards of their tips at the end of the reaction window."""

    tips: int = 0
    reward: float = 0.0
    reward_squared: float = 0.0

    def add(self, other: "DrawSums") -> None:
        """Add in place."""
        self.tips += other.tips
        self.reward += other.reward
        self.reward_squared += other.reward_squared


class Failure(Protocol):
    """The values of a generation that failed which decide where it is counted."""

    @property
    def tip_id(self) -> UUID: ...
    @property
    def decision_id(self) -> UUID: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def policy(self) -> str: ...
    @property
    def prompt_version_asked(self) -> str | None: ...
    @property
    def options(self) -> Mapping[str, float]: ...
    @property
    def segments(self) -> Sequence[str]: ...


@dataclass(slots=True)
class CounterDelta:
    """The change that rows make to the counters. `sign`: 1 to add, -1 to subtract.

    `window_seconds`: the reaction window. `distributions`: those of the draws, by their id.
    """

    window_seconds: int
    rewards: dict[RewardKey, RewardCounts] = field(default_factory=lambda: defaultdict(RewardCounts))
    draws: dict[DrawKey, DrawSums] = field(default_factory=lambda: defaultdict(DrawSums))
    rankings: dict[RankingKey, DrawSums] = field(default_factory=lambda: defaultdict(DrawSums))
    distributions: dict[str, Mapping[str, float]] = field(default_factory=dict)

    def add_row(self, row: Row, sign: int = 1) -> None:
        """Count everything in a row of `tip_scores`: the tip, its effective reaction, and its reward in the window."""
        tip = TipDimensions.of(row)
        self.add_tip(tip, sign)
        if row["reaction"]:
            self.add_reaction(tip, row["reaction"], row["reward"], sign)
        if row["reward_in_window"]:
            self.add_reward_in_window(tip, row["reward_in_window"], sign)

    def add_tip(self, tip: TipDimensions, sign: int = 1) -> None:
        """Count a tip, and the draw of its prompt version."""
        counts = RewardCounts(
            tips=sign,
            input_tokens=sign * tip.input_tokens,
            output_tokens=sign * tip.output_tokens,
            ms=sign * tip.ms,
            simulated=sign * tip.simulated,
        )
        for key in self._reward_keys(tip, ALL_TIPS):
            self.rewards[key].add(counts)
        self._add_draws(tip, DrawSums(sign))

    def add_reaction(self, tip: TipDimensions, kind: str, reward: float, sign: int = 1) -> None:
        """Count the effective reaction to a tip."""
        counts = RewardCounts(sign, sign * reward, sign * reward**2)
        for key in self._reward_keys(tip, kind):
            self.rewards[key].add(counts)

    def add_reward_in_window(self, tip: TipDimensions, reward: float, sign: int = 1) -> None:
        """Count the reward of a tip at the end of the reaction window."""
        self._add_draws(tip, DrawSums(0, sign * reward, sign * reward**2))

    def add_failure(self, failure: Failure, sign: int = 1) -> None:
        """Count the draw of a generation that failed; of candidates that were drawn together, if all failed, once."""
        if is_drawn_per_decision(failure.policy) and failure.tip_id != failure.decision_id:
            return
        hour, distribution = hour_of(failure.created_at), self._distribution(failure.options)
        version = failure.prompt_version_asked or ""
        for segment in (EVERYONE, *failure.segments):
            key = DrawKey(segment, hour, self.window_seconds, distribution, version, "", "failed", seen=False)
            self.draws[key].add(DrawSums(sign))

    def _add_draws(self, tip: TipDimensions, sums: DrawSums) -> None:
        """Add to the counters of the draw of the prompt version, and of the ranking policy if one was drawn."""
        hour, window, segments = hour_of(tip.created_at), self.window_seconds, (EVERYONE, *tip.segments)
        if tip.is_draw:
            draw = (self._distribution(tip.options), tip.drawn_version, tip.prompt_digest, tip.outcome, tip.seen)
            for segment in segments:
                self.draws[DrawKey(segment, hour, window, *draw)].add(sums)
        outcome = tip.ranking_outcome
        if outcome and tip.policy_options:
            ranking = (self._distribution(tip.policy_options), tip.policy_asked or "", outcome, tip.seen)
            for segment in segments:
                self.rankings[RankingKey(segment, hour, window, *ranking)].add(sums)

    def _reward_keys(self, tip: TipDimensions, reaction: str) -> Iterable[RewardKey]:
        hour = hour_of(tip.created_at)
        variant = (tip.prompt_version, tip.prompt_digest, tip.fallback, tip.shown, tip.dependent, tip.seen, reaction)
        for segment in (EVERYONE, *tip.segments):
            yield RewardKey(segment, hour, self.window_seconds, *variant)

    def _distribution(self, options: Mapping[str, float]) -> str:
        key = distribution_id(options)
        self.distributions[key] = options
        return key


@dataclass(frozen=True, slots=True)
class DayCounts:
    """The counts of one day (since 1970); `mature`: of tips whose reaction window has ended, else of younger tips.

    `seen`: of tips whose exposure was received within the reaction window.
    """

    day: int
    prompt_version: str
    prompt_digest: str
    fallback: bool
    shown: bool
    dependent: bool
    seen: bool
    reaction: str
    mature: bool
    tips: int
    reward: float
    reward_squared: float
    input_tokens: int
    output_tokens: int
    ms: int
    simulated: int


@dataclass(frozen=True, slots=True)
class DrawCounts:
    """The draws of one day (since 1970) from one distribution, with one drawn version and digest, and one outcome.

    `options`: the distribution, the probability of each version. `prompt_version`: the version that was drawn; "" for a
    failure without one. `prompt_digest`: of the version that wrote the tip; "" for a failure. `seen`: the exposures
    were received within the reaction window. `mature`: the reaction windows of all tips have ended. `tips`: the number
    of draws. `reward` and `reward_squared`: sums over the rewards at the end of the reaction window; 0 for failures.
    """

    day: int
    options: Mapping[str, float]
    prompt_version: str
    prompt_digest: str
    outcome: DrawOutcome
    seen: bool
    mature: bool
    tips: int
    reward: float
    reward_squared: float


@dataclass(frozen=True, slots=True)
class RankingCounts:
    """The draws of one day (since 1970) of one ranking policy from one distribution over policies, with one outcome.

    As `DrawCounts`, of shown tips. `outcome`: `failed` if the policy did not answer.
    """

    day: int
    options: Mapping[str, float]
    policy_version: str
    outcome: DrawOutcome
    seen: bool
    mature: bool
    tips: int
    reward: float
    reward_squared: float
