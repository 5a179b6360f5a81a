"""What reactions say about versions: intervals that may be looked at every day, and the checks around them."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

# The number of observations at which a confidence sequence is narrowest, for its level. A constant, chosen beforehand.
TUNED_AT = 5_000
# A wait for more observations than these is no answer.
MAX_OBSERVATIONS = 1_000_000
# The p-value below which traffic was not split as logged: small, because it is looked at every day.
SAMPLE_RATIO_ALARM = 0.001

# Gauss-Legendre quadrature, used between neighbouring quantiles of all the posteriors: however narrow one of them is
# next to another, its rise has pieces of its own.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_TAILS = np.array([1e-13, 1e-9, 1e-6, 1e-4, 0.01, 0.1, 0.5])


@dataclass(frozen=True, slots=True)
class Sample:
    """The rewards of one arm, in [0, 1]: their number, their sum and the sum of their squares. Samples add up."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """The mean reward; 0 when there is none."""
        return self.total / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """The variance of a reward, after one imagined reward of 0 and one of 1; in (0, 0.25].

        Without these two an arm to which nobody reacted yet would get an interval of no width. They vanish as `n` grows
        (in the spirit of Agresti & Coull 1998, "Approximate is better than exact").
        """
        n = self.n + 2
        return (self.squares + 1) / n - ((self.total + 1) / n) ** 2


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate between its two limits."""

    estimate: float
    low: float
    high: float


def confidence_sequence(
    estimate: float, variance: float, n: int, *, alpha: float = 0.05, tuned_at: int = TUNED_AT
) -> Interval:
    """The interval of a mean that holds at all times at once, so that it may be looked at after every observation.

    `variance`: of one of the `n` observations. `alpha`, in (0, 1): the chance that it ever misses, asymptotically.
    Infinite for `n` = 0. Source: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and
    asymptotic confidence sequences", Annals of Statistics 2024, Theorem 2.2; its rho is the one best for `tuned_at`.
    """
    if n == 0:
        return Interval(estimate, -math.inf, math.inf)
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tuned_at
    spread = n * rho2 + 1
    half = math.sqrt(variance * 2 * spread / (n * n * rho2) * math.log(math.sqrt(spread) / alpha))
    return Interval(estimate, estimate - half, estimate + half)


def rate(sample: Sample, *, alpha: float = 0.05, tuned_at: int = TUNED_AT) -> Interval:
    """The confidence sequence of the mean reward, within [0, 1]; all of [0, 1] for an empty sample."""
    interval = confidence_sequence(sample.mean, sample.variance, sample.n, alpha=alpha, tuned_at=tuned_at)
    return Interval(interval.estimate, max(interval.low, 0.0), min(interval.high, 1.0))


def difference(a: Sample, b: Sample, *, alpha: float = 0.05, tuned_at: int = TUNED_AT) -> Interval:
    """The confidence sequence of `b.mean - a.mean`, within [-1, 1]; all of [-1, 1] while either sample is empty."""
    estimate = b.mean - a.mean
    if not (a.n and b.n):
        return Interval(estimate, -1.0, 1.0)
    n = a.n + b.n
    variance = n * (a.variance / a.n + b.variance / b.n)
    interval = confidence_sequence(estimate, variance, n, alpha=alpha, tuned_at=tuned_at)
    return Interval(estimate, max(interval.low, -1.0), min(interval.high, 1.0))


def observations_needed(a: Sample, b: Sample, *, alpha: float = 0.05, tuned_at: int = TUNED_AT) -> int | None:
    """How many more observations, of both arms together, until their `difference` excludes 0, if all goes on as it did.

    That is: at the present split, with the present mean rewards and mean squares. 0 if it excludes 0 already; None if
    either sample is empty, the means are equal, or it takes more than `MOST_NEEDED`.
    """
    if not (a.n and b.n) or a.mean == b.mean:
        return None

    def settled(more: int) -> bool:
        growth = 1 + more / (a.n + b.n)
        interval = difference(_grown(a, growth), _grown(b, growth), alpha=alpha, tuned_at=tuned_at)
        return interval.low > 0 or interval.high < 0

    # Bisection is sound: both the width for a given variance and the variance itself only fall as a sample grows.
    needed = bisect_left(range(MAX_OBSERVATIONS + 1), True, key=settled)
    return needed if needed <= MAX_OBSERVATIONS else None


def _grown(sample: Sample, growth: float) -> Sample:
    n = round(sample.n * growth)
    return Sample(n, sample.mean * n, sample.squares / sample.n * n)


def probability_best(samples: Sequence[Sample]) -> tuple[float, ...]:
    """The posterior probability of each arm that its mean is the highest; they sum to 1. Empty for no arms.

    The posteriors are independent, Beta(1 + total, 1 + n - total): rewards within [0, 1] count as fractions of a
    success (Agrawal & Goyal 2012). By quadrature, not by sampling, and good to 1e-6 from no to ten million rewards.
    """
    if not samples:
        return ()
    a = np.array([[1 + sample.total] for sample in samples])
    b = np.array([[1 + sample.n - sample.total] for sample in samples])
    quantiles = special.betaincinv(a, b, _TAILS), special.betainccinv(a, b, _TAILS)
    edges = np.unique(np.concatenate([[0.0, 1.0], *(each.ravel() for each in quantiles)]))
    widths = np.diff(edges)[:, None]
    x = (edges[:-1, None] + widths * (_NODES + 1) / 2).ravel()
    densities = np.exp(special.xlogy(a - 1, x) + special.xlog1py(b - 1, -x) - special.betaln(a, b))
    below = special.betainc(a, b, x)
    others = np.array([np.delete(below, arm, axis=0).prod(axis=0) for arm in range(len(samples))])
    best = (densities * others) @ (widths * _WEIGHTS / 2).ravel()
    return tuple((best / best.sum()).tolist())


def sample_ratio_p_value(observed: Sequence[float], expected: Sequence[float]) -> float:
    """How likely traffic splits at least this far from what was meant: the p-value of Pearson's chi-square test.

    `observed`: decisions per option. `expected`: the sums of their logged propensities. Where propensities vary from
    decision to decision the test is conservative: a sum of unequal Bernoullis varies less than one of equal ones. An
    option that could not be chosen is left out; 0 if it was chosen all the same. 1 for fewer than two options. Alarm
    below `SAMPLE_RATIO_ALARM`. Raises ValueError if the lengths differ.
    """
    options = [(seen, meant) for seen, meant in zip(observed, expected, strict=True) if seen or meant]
    if any(meant == 0 for _, meant in options):
        return 0.0
    freedom = len(options) - 1
    if freedom < 1:
        return 1.0
    statistic = sum((seen - meant) ** 2 / meant for seen, meant in options)
    return float(special.chdtrc(freedom, statistic))
