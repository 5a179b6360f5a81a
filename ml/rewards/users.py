"""The comparison per user: each user counts once, however many tips they got. It is for a single look, no verdict."""

import math
from collections import defaultdict
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import special

from ml.experiments.comparison import pair_weights
from ml.experiments.statistics import Interval
from ml.rewards.report import RewardReport
from ml.rewards.variants import Variant
from ml.store.user_draws import UserDraws

MIN_USERS = 20
"""The number of users of a pair below which there is no figure: the error is estimated from their differences."""


@dataclass(frozen=True, slots=True)
class UserComparison:
    """A variant compared with the baseline, with each user counting once.

    `difference`: of the mean rewards, with a 95 % interval for one look; None if there is none, for the reason in
    `words`. `users`: those with a tip for which both could have been drawn. `differs`: the interval misses the
    difference of this traffic. `words`: the comparison as a sentence.
    """

    label: str
    difference: Interval | None
    users: int
    differs: bool
    words: str


@dataclass(slots=True)
class _PairSums:
    """Sums by user over the tips of a pair of versions: with `weight` as in `ml.experiments.comparison`.

    `rewards`: of weight times reward. `weights`: of weight. `overlap`: of q (1 - q). `tips`: their number. `total`: the
    rewards of all users.
    """

    rewards: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    weights: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    overlap: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    tips: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    total: float = 0.0

    def add(self, draws: UserDraws, baseline: str, other: str) -> None:
        """Add draws of one of both versions."""
        weights = pair_weights(draws.options, draws.prompt_version, baseline, other)
        if weights is None:
            return
        weight, overlap = weights
        user, n = draws.user, draws.rewards.n
        self.rewards[user] += weight * draws.rewards.total
        self.weights[user] += weight * n
        self.overlap[user] += overlap * n
        self.tips[user] += n
        self.total += draws.rewards.total

    def difference(self, *, alpha: float) -> Interval:
        """Return the difference and its interval for one look, from at least two users.

        It is the ratio of the users' mean weighted rewards to their mean overlap, centred on the mean reward of the
        pair, with the standard error of the linearised ratio over users (Cochran, "Sampling techniques", 1977, (6.13),
        with users as clusters: Liang & Zeger, Biometrika 1986) and Student's t distribution.
        """
        tips = np.array([*self.tips.values()], np.float64)
        rewards, weights, overlap = (
            np.array([*sums.values()]) / tips for sums in (self.rewards, self.weights, self.overlap)
        )
        terms = rewards - weights * (self.total / tips.sum())
        estimate = terms.sum() / overlap.sum()
        residuals = terms - estimate * overlap
        users = len(tips)
        error = math.sqrt(users / (users - 1) * float(residuals @ residuals)) / overlap.sum()
        half_width = special.stdtrit(users - 1, 1 - alpha / 2) * error
        values = np.array([estimate, estimate - half_width, estimate + half_width])
        return Interval(*np.clip(values, -1, 1).tolist())


async def compare_users(
    report: RewardReport, user_draws: AsyncIterable[UserDraws], *, alpha: float = 0.05
) -> list[UserComparison]:
    """Return the comparison per user of each variant of a report with its baseline, in their order.

    `user_draws`: those of the report's window. A version with several digests has no comparison, because distributions
    name versions only and `user_draws` have no days.
    """
    baseline, others = report.variants[:1], report.variants[1:]
    if not baseline:
        return []
    name = baseline[0].prompt_version
    sums = {variant.prompt_version: _PairSums() for variant in others if variant.prompt_version != name}
    async for draws in user_draws:
        if draws.seen or not report.exposure_reported:
            for version, pair in sums.items():
                if draws.prompt_version in (name, version):
                    pair.add(draws, name, version)
    return [_comparison(report.variants, variant, sums.get(variant.prompt_version), alpha) for variant in others]


def _comparison(variants: Sequence[Variant], variant: Variant, sums: _PairSums | None, alpha: float) -> UserComparison:
    baseline = variants[0]
    versions = [other.prompt_version for other in variants]
    users = len(sums.tips) if sums else 0
    start = f"{variant.label} compared with {baseline.label} per user"
    if versions.count(baseline.prompt_version) > 1 or versions.count(variant.prompt_version) > 1:
        reason = "not computed, because a version had several digests; choose a window with one of each"
        return UserComparison(variant.label, None, users, False, f"{start}: {reason}.")
    if sums is None or users < MIN_USERS:
        reason = f"{users:,} users with a mature tip for which both could have been drawn; {MIN_USERS} are needed"
        return UserComparison(variant.label, None, users, False, f"{start}: {reason}.")
    interval = sums.difference(alpha=alpha)
    estimate, low, high = (f"{100 * value:+.1f}" for value in (interval.estimate, interval.low, interval.high))
    words = f"{start}: {estimate} points, between {low} and {high}, over {users:,} users."
    traffic = variant.comparison.difference if variant.comparison else None
    differs = traffic is not None and not interval.low <= traffic.estimate <= interval.high
    if differs:
        words += " This differs from the comparison of all tips: users with many tips react in another way."
    return UserComparison(variant.label, interval, users, differs, words)
