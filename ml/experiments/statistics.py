"""Statistics of rewards by arm: confidence sequences, required sample sizes, P(best), and the sample ratio test."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

# The number of observations at which a confidence sequence is narrowest for its level. It must not depend on the data.
TUNED_AT = 5_000
# `observations_needed` returns None above this number.
MAX_OBSERVATIONS = 1_000_000
# Below this p-value there is a sample ratio mismatch. It is small because the test is repeated every day.
SAMPLE_RATIO_ALARM = 0.001

# Gauss-Legendre quadrature between neighbouring quantiles of all posteriors, so that a posterior that is much narrower
# than the others still has several intervals where its density is high.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_TAILS = np.array([1e-13, 1e-9, 1e-6, 1e-4, 0.01, 0.1, 0.5])


@dataclass(frozen=True, slots=True)
class Sample:
    """The rewards of one arm, in [0, 1]: their number, their sum and the sum of their squares. Samples are additive."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(self.n + other.n, self.total + other.total, self.squares + other.squares)

    def centred(self, centre: float) -> "Sample":
        """Return the number, the sum and the sum of squares of the rewards minus `centre`."""
        squares = self.squares - 2 * centre * self.total + self.n * centre**2
        return Sample(self.n, self.total - self.n * centre, max(squares, 0.0))  # rounding can make it negative

    @property
    def mean(self) -> float:
        """The mean reward; 0 without rewards."""
        return self.total / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """The variance of a reward with two pseudo-observations, 0 and 1; in (0, 0.25].

        Without them, the interval of an arm without reactions would have the width 0. Their influence vanishes as `n`
        grows (similar to Agresti & Coull, "Approximate is better than exact", The American Statistician 1998).
        """
        n = self.n + 2
        return (self.squares + 1) / n - ((self.total + 1) / n) ** 2


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its lower and upper limit."""

    estimate: float
    low: float
    high: float


def confidence_sequence(
    estimate: float, variance: float, n: int, *, alpha: float = 0.05, tuned_at: int = TUNED_AT
) -> Interval:
    """Return the current interval of a confidence sequence of a mean, which holds at every look.

    `estimate`: the mean of the `n` observations. `variance`: that of one observation. `alpha`, in (0, 1): the
    probability that any interval of the sequence misses the true mean, asymptotically. `tuned_at`: the number of
    observations at which the interval is narrowest for its level. Infinite for `n` = 0. Source: Waudby-Smith, Arbour,
    Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences", Annals of
    Statistics 2024, Theorem 2.2, with the rho that is optimal for `tuned_at`.
    """
    if n == 0:
        return Interval(estimate, -math.inf, math.inf)
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tuned_at
    spread = n * rho2 + 1
    half_width = math.sqrt(variance * 2 * spread / (n * n * rho2) * math.log(math.sqrt(spread) / alpha))
    return Interval(estimate, estimate - half_width, estimate + half_width)


def rate(sample: Sample, *, alpha: float = 0.05, tuned_at: int = TUNED_AT) -> Interval:
    """Return the confidence sequence of the mean reward, within [0, 1]; [0, 1] for an empty sample."""
    interval = confidence_sequence(sample.mean, sample.variance, sample.n, alpha=alpha, tuned_at=tuned_at)
    return Interval(interval.estimate, max(interval.low, 0.0), min(interval.high, 1.0))


def difference(a: Sample, b: Sample, *, alpha: float = 0.05, tuned_at: int = TUNED_AT) -> Interval:
    """Return the confidence sequence of `b.mean - a.mean`, within [-1, 1]; [-1, 1] while either sample is empty."""
    estimate = b.mean - a.mean
    if not (a.n and b.n):
        return Interval(estimate, -1.0, 1.0)
    n = a.n + b.n
    variance = n * (a.variance / a.n + b.variance / b.n)
    interval = confidence_sequence(estimate, variance, n, alpha=alpha, tuned_at=tuned_at)
    return Interval(estimate, max(interval.low, -1.0), min(interval.high, 1.0))


def observations_needed(a: Sample, b: Sample, *, alpha: float = 0.05, tuned_at: int = TUNED_AT) -> int | None:
    """Return the number of further observations, of both arms together, after which `difference` excludes 0.

    It assumes that the split, the mean rewards and the mean squares stay as they are. 0 if the interval excludes 0
    already; None if a sample is empty, the means are equal, or more than `MAX_OBSERVATIONS` are needed.
    """
    if not (a.n and b.n) or a.mean == b.mean:
        return None

    def excludes_zero(further: int) -> bool:
        factor = 1 + further / (a.n + b.n)
        interval = difference(_scaled(a, factor), _scaled(b, factor), alpha=alpha, tuned_at=tuned_at)
        return interval.low > 0 or interval.high < 0

    # Bisection is valid: both the width for a given variance and the variance itself only fall as a sample grows.
    needed = bisect_left(range(MAX_OBSERVATIONS + 1), True, key=excludes_zero)
    return needed if needed <= MAX_OBSERVATIONS else None


def _scaled(sample: Sample, factor: float) -> Sample:
    """Return a sample of another size with the same mean and mean square."""
    n = round(sample.n * factor)
    return Sample(n, sample.mean * n, sample.squares / sample.n * n)


def probability_best(samples: Sequence[Sample]) -> tuple[float, ...]:
    """Return the posterior probability of each arm that its mean is the highest; the sum is 1. Empty for no arms.

    The posteriors are independent, Beta(1 + total, 1 + n - total): rewards within [0, 1] count as fractions of a
    success (Agrawal & Goyal, "Analysis of Thompson sampling for the multi-armed bandit problem", COLT 2012). Computed
    by quadrature, not by sampling, with an error below 1e-6 for up to ten million rewards.
    """
    if not samples:
        return ()
    a = np.array([[1 + sample.total] for sample in samples])
    b = np.array([[1 + sample.n - sample.total] for sample in samples])
    quantiles = special.betaincinv(a, b, _TAILS), special.betainccinv(a, b, _TAILS)
    edges = np.unique(np.concatenate([[0.0, 1.0], *(values.ravel() for values in quantiles)]))
    widths = np.diff(edges)[:, None]
    x = (edges[:-1, None] + widths * (_NODES + 1) / 2).ravel()
    densities = np.exp(special.xlogy(a - 1, x) + special.xlog1py(b - 1, -x) - special.betaln(a, b))
    cumulative = special.betainc(a, b, x)
    all_others_below = np.array([np.delete(cumulative, arm, axis=0).prod(axis=0) for arm in range(len(samples))])
    best = (densities * all_others_below) @ (widths * _WEIGHTS / 2).ravel()
    return tuple((best / best.sum()).tolist())


def sample_ratio_p_value(observed: Sequence[float], expected: Sequence[float]) -> float:
    """Return the p-value of Pearson's chi-square test that decisions are distributed as their propensities say.

    `observed`: the number of decisions by option. `expected`: the sum of the logged propensities by option. If
    propensities vary between decisions, the test is conservative: the variance of a sum of Bernoulli variables is
    largest if their probabilities are equal. An option with the expected value 0 is left out if it was never drawn;
    otherwise the p-value is 0. 1 for fewer than two options. There is a mismatch below `SAMPLE_RATIO_ALARM`. Raises
    ValueError if the lengths differ.
    """
    options = [pair for pair in zip(observed, expected, strict=True) if any(pair)]
    if any(expected_count == 0 for _, expected_count in options):
        return 0.0
    dof = len(options) - 1
    if dof < 1:
        return 1.0
    statistic = sum(
        (observed_count - expected_count) ** 2 / expected_count for observed_count, expected_count in options
    )
    return float(special.chdtrc(dof, statistic))
