"""Samples of rewards, intervals, and the probability that an arm is the best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

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
