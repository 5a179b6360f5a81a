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
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple, Protocol
from uuid import UUID

from ml.store.hours import hour_of
from ml.store.tip_dimensions import DrawOutcome, Row, TipDimensions, is_drawn_per_decision

EVERYONE = ""
"""The segment that every user belongs to."""

ALL_TIPS = ""
"""The value of `reaction` under which tips are counted, with or without a reaction."""


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
