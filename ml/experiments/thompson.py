"""Thompson sampling over prompt versions, on contrasts within days, with a half-life."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ml.experiments.arrays import Floats
from ml.experiments.exploration import FLOOR
from ml.experiments.statistics import Sample

HALF_LIFE_DAYS = 28.0
"""The default half-life of a reward."""

PRIOR_SCALE = 0.15
"""The standard deviation of a version's effect on the reward before it has any rewards."""

DRAWS = 4096
_SEED = 20_240_601


@dataclass(frozen=True, slots=True)
class RewardHistory:
    """The rewards of each prompt version by day (days since 1970), as known on the day `today`.

    `half_life_days`, above 0: after so many days, a reward has half the weight. Raises ValueError for another value.
    """

    days: Mapping[int, Mapping[str, Sample]] = field(default_factory=dict)
    today: int = 0
    half_life_days: float = HALF_LIFE_DAYS

    def __post_init__(self) -> None:
        if not self.half_life_days > 0:
            raise ValueError("half_life_days must be above 0")


def thompson_distribution(versions: Sequence[str], history: RewardHistory) -> dict[str, float]:
    """Return the probability of drawing each version: f + (1 - k f) P(best), with f = min(0.02, 0.1 / k).

    `versions`: k >= 1 names; rewards of other versions do not count, and a version without rewards has the prior. The
    probabilities are computed with fixed draws, so that the same history gives the same probabilities, which are
    logged as propensities and used for many decisions. Raises ValueError without versions. Source: Chapelle & Li, "An
    empirical evaluation of Thompson sampling", NeurIPS 2011.
    """
    if not versions:
        raise ValueError("there must be at least one version")
    samples = [[of_day.get(version, Sample()) for version in versions] for of_day in history.days.values()]
    shape = len(samples), len(versions)
    best = probability_best(
        np.array([[sample.n for sample in row] for row in samples], float).reshape(shape),
        np.array([[sample.total for sample in row] for row in samples], float).reshape(shape),
        0.5 ** ((history.today - np.array([*history.days], float)) / history.half_life_days),
    )
    floor = min(FLOOR, 0.1 / len(versions))
    above_floor = 1 - len(versions) * floor
    return {version: floor + above_floor * share for version, share in zip(versions, best.tolist(), strict=True)}


def probability_best(n: Floats, totals: Floats, weights: Floats) -> Floats:
    """Return the posterior probability of each version that its effect on the reward is the highest, shape (k,).

    `n`, `totals`: the numbers of rewards and their sums by day and version, shape (days, k). `weights`: shape (days,),
    above 0.

    The reward of a tip is the effect of its day plus that of its version. Eliminating the effects of the days leaves
    the contrasts between versions within each day, so a day counts only for the versions that it has together, and
    neither a season nor the day on which a version was added counts for or against it. The effects of versions have
    independent normal priors; the variance of a reward is that of a binary reward with the pooled mean, and at least
    1 / (n + 2), so that it is not zero before the first reward. The sums are additive: late rewards are added to the
    day of their tip.
    """
    k = n.shape[1]
    n_day, totals_day = n.sum(axis=1), totals.sum(axis=1)
    # A day without any of these versions says nothing.
    weighted, per_tip = weights[:, None] * n, weights / np.maximum(n_day, 1)
    contrasts = np.diag(weighted.sum(axis=0)) - (n * per_tip[:, None]).T @ n
    differences = weights @ totals - (per_tip * totals_day) @ n
    size = float(weighted.sum())
    mean_reward = float(weights @ totals_day) / size if size else 0.0
    variance = max(mean_reward * (1 - mean_reward), 1 / (size + 2))
    precision = contrasts / variance + np.eye(k) / PRIOR_SCALE**2
    effects = np.linalg.solve(precision, differences / variance)
    inverse_root = np.linalg.inv(np.linalg.cholesky(precision))
    wins = np.zeros(k, np.int64)
    for shift in range(k):
        # Each draw in all k rotations: versions with equal posteriors get equal probabilities.
        drawn = effects + np.roll(_standard_normal(k), shift, axis=1) @ inverse_root
        wins += np.bincount(drawn.argmax(axis=1), minlength=k)
    best: Floats = wins / (DRAWS * k)
    return best


@cache
def _standard_normal(k: int) -> Floats:
    """Return fixed draws from the standard normal distribution, shape (DRAWS, k), the same in every process."""
    return np.random.default_rng(_SEED).standard_normal((DRAWS, k))
