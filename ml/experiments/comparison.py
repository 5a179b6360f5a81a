"""Comparison of two versions by overlap-weighted martingale differences, with a confidence sequence of the difference.

For a tip whose distribution offered both versions of a pair and drew one of them, let q be the probability of the other
version given that one of both was drawn, Y its reward, and m a centre that was fixed before the tip. Its term is

    x = (1 - q) (Y - m)  for the other version,    x = -q (Y - m)  for the baseline,

with the conditional mean q (1 - q) (difference of the mean rewards), whatever q, m, the day and the policy are. So the
comparison holds when shares change, versions come and go, rewards drift, and a policy learns. The weights are those of
Li, Morgan & Zaslavsky, "Balancing covariates via propensity score weighting", JASA 2018.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ml.experiments.confidence_sequence import boundary, previous_means
from ml.experiments.statistics import Interval, Sample

MAX_TIPS_NEEDED = 1_000_000
"""`tips_needed` returns None above this number."""

_FURTHER_TIPS = np.unique(np.geomspace(1, MAX_TIPS_NEEDED, 600).astype(np.int64))
"""The numbers that `tips_needed` chooses from: neighbours above 50 differ by about 2 %."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """The comparable mature tips of one day for which one version was drawn under one distribution.

    `day`: days since 1970. `options`: the probability of each version. `version`: the drawn one. `rewards`: as they
    were at the end of the reaction window, so that they no longer change.
    """

    day: int
    options: Mapping[str, float]
    version: str
    rewards: Sample


@dataclass(frozen=True, slots=True)
class PairSums:
    """Sums over the tips of a pair of versions. They are additive.

    `effect`: the sum of the terms x. `squares`: that of x^2. `overlap`: that of q (1 - q). `tips`: their number.
    """

    effect: float = 0.0
    squares: float = 0.0
    overlap: float = 0.0
    tips: int = 0

    def __add__(self, other: "PairSums") -> "PairSums":
        return PairSums(
            self.effect + other.effect,
            self.squares + other.squares,
            self.overlap + other.overlap,
            self.tips + other.tips,
        )


def sum_pair(strata: Iterable[Stratum], baseline: str, other: str, *, earlier: Iterable[Stratum] = ()) -> PairSums:
    """Return the sums of a pair of different versions.

    Strata of other versions, or whose options lack one of both, are left out. The centre m of a day is the mean reward
    of the tips of either version on the nearest earlier day that has any, whatever their options were; 0 without one.
    `earlier`: the tips before those that are compared, which only give the first days a centre.
    """
    before, of_pair = (
        [stratum for stratum in each if stratum.version in (baseline, other) and stratum.rewards.n]
        for each in (earlier, strata)
    )
    by_day: dict[int, Sample] = defaultdict(Sample)
    for stratum in before + of_pair:
        by_day[stratum.day] += stratum.rewards
    centres = previous_means(by_day)
    return sum((_sums(stratum, baseline, other, centres[stratum.day]) for stratum in of_pair), PairSums())


def pair_weights(options: Mapping[str, float], drawn: str, baseline: str, other: str) -> tuple[float, float] | None:
    """Return the weight of a tip's reward in a comparison, 1 - q or -q, and its overlap q (1 - q).

    None if its options lack one of both versions. `drawn`: the version that was drawn, one of both.
    """
    p_baseline, p_other = options.get(baseline, 0.0), options.get(other, 0.0)
    if not (p_baseline > 0 and p_other > 0):
        return None
    q = p_other / (p_baseline + p_other)
    return 1 - q if drawn == other else -q, q * (1 - q)


def _sums(stratum: Stratum, baseline: str, other: str, centre: float) -> PairSums:
    weights = pair_weights(stratum.options, stratum.version, baseline, other)
    if weights is None:
        return PairSums()
    weight, overlap = weights
    centred = stratum.rewards.centred(centre)
    return PairSums(weight * centred.total, weight**2 * centred.squares, centred.n * overlap, centred.n)


def difference(sums: PairSums, *, alpha: float) -> Interval | None:
    """Return the confidence sequence of the difference of the mean rewards, other minus baseline; None without tips.

    The difference is the average over the tips of the pair, weighted by overlap. `alpha`, in (0, 1): the probability
    that any interval of the sequence misses it, at any sample size. All values are within [-1, 1].
    """
    if not sums.overlap:
        return None
    half_width = float(boundary(np.array(sums.squares), alpha=alpha / 2))
    values = np.array([0, -half_width, half_width]) + sums.effect
    return Interval(*np.clip(values / sums.overlap, -1, 1).tolist())


def tips_needed(sums: PairSums, *, alpha: float) -> int | None:
    """Return the approximate number of further tips of the pair after which `difference` excludes 0.

    It assumes that all means stay as they are. 0 if the interval excludes 0 already; None if there is no difference, or
    more than `MAX_TIPS_NEEDED` are needed.
    """
    if not sums.effect:
        return None
    further = np.concatenate([[0], _FURTHER_TIPS])
    factors = 1 + further / sums.tips
    excluded = abs(sums.effect) * factors > boundary(sums.squares * factors, alpha=alpha / 2)
    # The boundary grows more slowly than the sums, so the interval excludes 0 from one number on.
    first = bisect_left(excluded.tolist(), True)
    return int(further[first]) if first < len(further) else None
