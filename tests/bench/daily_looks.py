"""Looks at the end of every day: the verdicts of this project, and of pooled means, the usual method."""

import math
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt

from ml.experiments.arrays import Floats
from ml.experiments.comparison import PairSums, Stratum, difference, sum_pair
from ml.experiments.confidence_sequence import boundary
from ml.experiments.statistics import Sample
from tests.bench.daily_traffic import DailyCounts, received_by

LEVEL = 0.05
"""The probability that any verdict about one of the versions is ever wrong."""

_MIN_TIPS, _MAX_IMBALANCE, _TUNED_AT = 100, 20, 5_000
"""Of the pooled means: the tips that each version needs, and their maximum ratio, for a verdict."""


@dataclass(frozen=True, slots=True)
class Looks:
    """Confidence sequences of differences at the looks of many runs, each of the shape (looks, runs, pairs).

    `centres`, `half_widths`: of the intervals; the width is infinite without an interval. `truths`: shape (looks,
    runs, 1), the true difference of the first pair so far, weighted as the tips of the pair.
    """

    centres: Floats
    half_widths: Floats
    truths: Floats

    def verdicts(self) -> npt.NDArray[np.bool_]:
        """Return in which looks an interval excludes no difference, shape (looks, runs)."""
        excluded: npt.NDArray[np.bool_] = np.abs(self.centres) > self.half_widths
        return np.logical_or.reduce(excluded, axis=2)  # type: ignore[no-any-return]

    def misses(self, truths: Floats) -> npt.NDArray[np.bool_]:
        """Return in which looks the interval of the first pair does not contain its true difference."""
        missed: npt.NDArray[np.bool_] = np.abs(self.centres[:, :, 0] - truths) > self.half_widths[:, :, 0]
        return missed


def overlap_looks(counts: DailyCounts) -> Looks:
    """Look at `ml.experiments.comparison` at the end of each day: at the seen tips of the earlier days, all mature."""
    _, runs, versions = counts.tips.shape
    pairs = [_pair_sums(counts, run, version) for run in range(runs) for version in range(1, versions)]
    shape = len(counts.tips), runs, versions - 1
    effect, squares, overlap = (
        np.array([[getattr(sums, name) for sums in pair] for pair in pairs]).T.reshape(shape)
        for name in ("effect", "squares", "overlap")
    )
    alpha = LEVEL / (versions - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        centres = np.where(overlap > 0, effect / overlap, 0.0)
        half_widths = np.where(overlap > 0, boundary(squares, alpha=alpha / 2) / overlap, np.inf)
        daily = np.diff(overlap[:, :, 0], axis=0, prepend=0)
        earlier = np.vstack([np.zeros((1, runs)), counts.differences[:-1]])
        truths = np.nan_to_num((daily * earlier).cumsum(axis=0) / overlap[:, :, 0])
    _require_the_same_intervals(pairs, Looks(centres, half_widths, truths), alpha)
    return Looks(centres, half_widths, truths)


def _pair_sums(counts: DailyCounts, run: int, version: int) -> list[PairSums]:
    """Return the sums of the first version and another one at the end of each day.

    The sums of a day depend on the mean reward of the day before, so that each day is added to the sums so far.
    """
    running = [PairSums()]
    days: list[list[Stratum]] = [[]]
    for day in range(len(counts.tips) - 1):
        days.append(_strata(counts, day, run, version))
        both, before = (sum_pair(strata, "0", str(version)) for strata in (days[-2] + days[-1], days[-2]))
        added = PairSums(
            both.effect - before.effect,
            both.squares - before.squares,
            both.overlap - before.overlap,
            both.tips - before.tips,
        )
        running.append(running[-1] + added)
    at_once = sum_pair(reduce(add, days), "0", str(version))
    if not (math.isclose(at_once.effect, running[-1].effect, abs_tol=1e-6) and at_once.tips == running[-1].tips):
        raise AssertionError("the sums of all days differ from those added day by day")
    return running


def _strata(counts: DailyCounts, day: int, run: int, version: int) -> list[Stratum]:
    options = {str(option): p for option, p in enumerate(counts.propensities[day, run].tolist()) if p}
    strata = []
    for drawn in (0, version):
        rewarded = float(counts.rewarded[day, run, drawn])
        rewards = Sample(int(counts.seen[day, run, drawn]), rewarded, rewarded)
        strata.append(Stratum(day, options, str(drawn), rewards))
    return strata


def _require_the_same_intervals(pairs: list[list[PairSums]], looks: Looks, alpha: float) -> None:
    """Raise AssertionError if `difference` gives another interval for the last look of any pair."""
    last = zip(pairs, looks.centres[-1].ravel(), looks.half_widths[-1].ravel(), strict=True)
    for pair, centre, half_width in last:
        interval = difference(pair[-1], alpha=alpha)
        if interval is None:
            continue
        low, high = np.clip([centre - half_width, centre + half_width], -1, 1)
        if not (math.isclose(interval.low, low, abs_tol=1e-9) and math.isclose(interval.high, high, abs_tol=1e-9)):
            raise AssertionError("the interval of the report differs")


def pooled_looks(counts: DailyCounts) -> Looks:
    """Look at the difference of pooled means at the end of each day, with an asymptotic confidence sequence.

    All tips count, but those of the day itself only if they have a reaction. Source: Waudby-Smith, Arbour, Sinha,
    Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics
    2024, Theorem 2.2. A verdict needs `_MIN_TIPS` tips of each version, in a ratio of at most `_MAX_IMBALANCE`.
    """
    days, _, versions = counts.tips.shape
    n = np.array([counts.tips[:day].sum(axis=0) + counts.reacted[day] for day in range(days)])
    total = np.array([sum(received_by(counts, day, end) for day in range(end + 1)) for end in range(days)])
    variance = (total + 1) / (n + 2) * (1 - (total + 1) / (n + 2))
    few, many = np.minimum(n[:, :, :1], n[:, :, 1:]), np.maximum(n[:, :, :1], n[:, :, 1:])
    allowed = (few >= _MIN_TIPS) & (many <= _MAX_IMBALANCE * few)
    alpha = LEVEL / (versions - 1)
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / _TUNED_AT
    with np.errstate(divide="ignore", invalid="ignore"):
        means, variances = np.nan_to_num(total / n), variance / n
        both = n[:, :, :1] + n[:, :, 1:]
        spread = both * rho2 + 1
        of_one = both * (variances[:, :, :1] + variances[:, :, 1:])
        half_widths = np.sqrt(of_one * 2 * spread / (both**2 * rho2) * np.log(np.sqrt(spread) / alpha))
    centres = means[:, :, 1:] - means[:, :, :1]
    return Looks(centres, np.where(allowed, half_widths, np.inf), np.zeros(0))
