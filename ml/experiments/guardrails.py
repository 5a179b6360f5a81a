"""Guardrails and gates of rollouts: one-sided limits that hold at every look, and how soon they find a harm.

A guardrail rolls a version back when the upper limit of its difference is below 0; a gate lets it pass when a limit is
within a margin. Both ask about one direction, so every limit here has all of `alpha` on its own side. A limit holds at
any sample size and at every look, so looks can be as frequent as wanted (`ml.experiments.confidence_sequence`). What
needs several gates to pass at once keeps the error of a single one (Berger, "Multiparameter hypothesis testing and
acceptance sampling", Technometrics 1982); what acts on any of several guardrails has the sum of their errors.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from ml.experiments.arrays import Floats
from ml.experiments.comparison import MAX_TIPS_NEEDED, PairSums, Stratum, sum_pair
from ml.experiments.confidence_sequence import boundary, previous_means
from ml.experiments.statistics import Sample

HARM_ALPHA = 0.05
"""The probability that a limit is ever wrong."""

TUNED_AT = 50.0
"""The sum of squares at which limits are narrowest: that of about 3,500 tips with a share of 10 %."""

RARE_TUNED_AT = 5.0
"""The same for what is rare, as unusable tips: without any, limits of 5 points need half of the tips."""

RARE_HARM_ALPHA = 0.01
"""The probability that the test of failures, or that of slow tips, ever fails a version that is not worse: small, so
that all guardrails together are wrong about as rarely as the one of rewards alone."""

SLOW_FACTOR = 1.25
"""A tip is slow if it takes longer than this many times the 95th percentile of earlier live tips."""

MIN_DELAY_MS = 50
"""A tip that takes at most this much longer than that percentile is not slow: nobody notices the difference."""

MIN_LATENCIES = 20
"""The number of earlier live tips that the 95th percentile needs."""

_MAX_CENTRE = 0.25
"""The largest centre of `mean_limits`, relative to its scale. Gates ask about means near 0, where a wider range of
centres would only widen the limits."""

_MIN_VARIANCE = 1e-9
"""Instead of a variance of 0, if one version is always rewarded and the other one never."""

Status = Literal["harmed", "not harmed", "unknown"]


@dataclass(frozen=True, slots=True)
class OneSidedLimits:
    """An estimate, and a lower and an upper limit of which each holds alone with probability 1 - alpha, at every look.

    Both hold together with probability 1 - 2 alpha.
    """

    estimate: float
    low: float
    high: float


def difference_limits(
    sums: PairSums, *, alpha: float = HARM_ALPHA, tuned_at: float = TUNED_AT
) -> OneSidedLimits | None:
    """Return the limits of the difference of the mean rewards, other minus baseline; None without overlap.

    It is the difference of `ml.experiments.comparison.difference`. The other version is worse when `high` < 0. For a
    share of tips that should be low, count such a tip as the reward 1: the other version is worse when `low` > 0. For
    failures, `ml.experiments.failure_excess` needs fewer tips.

    Parameters
        `alpha`: in (0, 1), of each side.
        `tuned_at`: above 0, as in `boundary`.
    Returns
        Values in [-1, 1].
    """
    if not sums.overlap:
        return None
    return _limits(sums.effect, sums.squares, sums.overlap, alpha=alpha, tuned_at=tuned_at)


def mean_limits(
    days: Mapping[int, Sample], *, alpha: float = HARM_ALPHA, scale: float = 1.0, tuned_at: float = TUNED_AT
) -> OneSidedLimits | None:
    """Return the limits of the mean of terms in [-`scale`, `scale`]; None without terms.

    It is about the average, over these terms, of the mean of each given the terms before it. Each day is centred on the
    mean of the previous day, at most a quarter of the scale from 0: so terms differ from their centre by at most 1.25
    times the scale.

    Parameters
        `days`: the terms of each day since 1970, as their number, sum and sum of squares.
        `alpha`, `tuned_at`: as in `difference_limits`; `tuned_at` is relative to the square of the scale.
        `scale`: above 0.
    Returns
        Values in [-`scale`, `scale`].
    """
    with_terms = {day: sample for day, sample in days.items() if sample.n}
    total = sum(with_terms.values(), Sample())
    if not total.n:
        return None
    largest = _MAX_CENTRE * scale
    centres = {day: min(max(mean, -largest), largest) for day, mean in previous_means(with_terms).items()}
    squares = sum(sample.centred(centres[day]).squares for day, sample in with_terms.items())
    relative = _limits(
        total.total / scale, squares / scale**2, total.n, alpha=alpha, tuned_at=tuned_at, scale=1 + _MAX_CENTRE
    )
    return OneSidedLimits(relative.estimate * scale, relative.low * scale, relative.high * scale)


def _limits(
    total: float, squares: float, weight: float, *, alpha: float, tuned_at: float, scale: float = 1.0
) -> OneSidedLimits:
    """Return the limits of the mean of terms from their sum, centred squares and total weight, within [-1, 1]."""
    half_width = float(boundary(np.array(squares), alpha=alpha, scale=scale, tuned_at=tuned_at))
    values = np.array([0, -half_width, half_width]) + total
    return OneSidedLimits(*np.clip(values / weight, -1, 1).tolist())


def tips_to_detect(
    baseline: float,
    harmed: float,
    share: float,
    *,
    alpha: float = HARM_ALPHA,
    tuned_at: float = TUNED_AT,
    power: float = 0.9,
) -> int | None:
    """Return the approximate number of mature tips after which a harm has been found by `difference_limits`.

    It assumes a constant share and constant means, looks at every tip, and centres equal to the mean reward. If all
    tips are of a first day that is centred on 0, a sixth more is needed for rewards of about 20 %.

    Parameters
        `baseline`, `harmed`: in [0, 1], the mean rewards of both versions.
        `share`: in (0, 1), the probability of the harmed version.
        `alpha`, `tuned_at`: as in `difference_limits`.
        `power`: in (0, 1), the probability that the upper limit has been below 0 by then.
    Returns
        The number of tips of both versions; None if `harmed` is not below `baseline`, or above `MAX_TIPS_NEEDED`.
    """
    if harmed >= baseline:
        return None
    centre = (1 - share) * baseline + share * harmed
    deviations = np.array([1 - centre, -centre])
    terms = np.concatenate([(1 - share) * deviations, -share * deviations])
    probabilities = np.concatenate(
        [share * np.array([harmed, 1 - harmed]), (1 - share) * np.array([baseline, 1 - baseline])]
    )

    def detected(n: int) -> float:
        return _crossing_probability(terms, probabilities, n, alpha=alpha, tuned_at=tuned_at)

    needed = bisect_left(range(1, MAX_TIPS_NEEDED + 1), power, key=detected) + 1
    return needed if needed <= MAX_TIPS_NEEDED else None


def _crossing_probability(terms: Floats, probabilities: Floats, n: int, *, alpha: float, tuned_at: float) -> float:
    """Return the approximate probability that the sum of `n` random terms has ever been below minus the boundary.

    The boundary is concave, so its tangent at the expected sum of squares is above it, and close where a sum is likely
    to cross it. Below the tangent h + s (V - v), the sum of -x - s x^2 stays below h - s v: a random walk with drift,
    whose first passage is that of Brownian motion (Siegmund, "Sequential analysis", 1985, equation 3.13).
    """
    v = n * float(probabilities @ terms**2)
    width = 0.01 * v + 0.001  # not 0 for the rarest rewards
    below, above = boundary(np.array([v, v + width]), alpha=alpha, tuned_at=tuned_at).tolist()
    slope = (above - below) / width
    steps = -terms - slope * terms**2
    mean = float(probabilities @ steps)
    variance = max(float(probabilities @ steps**2) - mean**2, _MIN_VARIANCE)
    level, spread = below - slope * v, math.sqrt(n * variance)
    reflected = 2 * mean * level / variance + float(special.log_ndtr((-level - n * mean) / spread))
    return float(special.ndtr((n * mean - level) / spread)) + math.exp(min(0.0, reflected))


@dataclass(frozen=True, slots=True)
class SliceResult:
    """The comparison of two versions in one slice of the traffic.

    `tips`: those of both versions. `limits`: of the difference, simultaneous over all slices; None without tips.
    """

    name: str
    tips: int
    limits: OneSidedLimits | None
    status: Status


def slice_results(
    strata_by_slice: Mapping[str, Iterable[Stratum]], baseline: str, other: str, *, alpha: float, margin: float
) -> list[SliceResult]:
    """Compare two versions in each slice, with simultaneous limits (Bonferroni).

    With probability at least 1 - `alpha`, no slice without harm is ever "harmed"; the same for a slice with a loss of
    `margin` or more and "not harmed". Slices may overlap. Name all slices that can occur from the first look on, those
    without tips as well, since the limits depend on their number.

    Parameters
        `alpha`: in (0, 1), of each side, of all slices together.
        `margin`: at least 0, the largest loss of mean reward that is no harm.
    Returns
        Results in the order given. "harmed": the upper limit is below 0. "not harmed": the lower limit is above
        -`margin`. "unknown": neither, so the slice has too few tips.
    """
    results = []
    for name, strata in strata_by_slice.items():
        sums = sum_pair(strata, baseline, other)
        limits = difference_limits(sums, alpha=alpha / len(strata_by_slice))
        results.append(SliceResult(name, sums.tips, limits, _status(limits, margin)))
    return results


def _status(limits: OneSidedLimits | None, margin: float) -> Status:
    if limits is None:
        return "unknown"
    if limits.high < 0:
        return "harmed"
    return "not harmed" if limits.low > -margin else "unknown"


def slow_limit(percentile: float) -> int:
    """Return the time above which a tip is slow, from the 95th percentile of earlier live tips; both in ms."""
    return round(max(SLOW_FACTOR * percentile, percentile + MIN_DELAY_MS))
