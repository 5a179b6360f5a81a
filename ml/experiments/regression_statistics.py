"""Additive statistics of a regression of the reward on contexts, candidates and their interactions.

The features of a candidate a in a context c are (1, c) ⊗ (1, a): a constant, each column of the context, each column of
the candidate, and the product of each context column with each candidate column. A fit needs X'X, X'y, y'y and n, which
are sums over decisions.

The sums are exact. Columns are clipped to [-1, 1] and rounded to multiples of 2^-8 (context) and 2^-6 (candidate),
rewards to multiples of 2^-14. Each term is then a multiple of 2^-28 of magnitude at most 1, and up to 2^25 (33 million)
of them are added in 53 bits without rounding. Rows can be added in any order, in chunks of any size, on any number of
machines: the statistics are equal to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ml.experiments.arrays import Floats, Integers, check_range

CONTEXT_STEPS, CANDIDATE_STEPS, REWARD_STEPS = 2.0**8, 2.0**6, 2.0**14
"""Steps of the rounded columns and rewards, per unit."""
MAX_ROWS = 2**25
"""With more rows the sums could be rounded."""
CHUNK_ROWS = 1_024
"""Rows whose features are in memory at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class RegressionStatistics:
    """Sufficient statistics of a linear regression on the features (1, c) ⊗ (1, a): sums over `n` decisions.

    `context`, `candidate`: the names of the k and m columns, each once. `n`: from 0 to `MAX_ROWS`. `xx`: X'X, shape
    (d, d), symmetric, with d = (1 + k)(1 + m); feature (i, j) is at i (1 + m) + j. `xy`: X'y, shape (d,). `yy`: y'y.
    Statistics of different decisions can be added, and those of a part can be subtracted. Raises ValueError for another
    shape or range.
    """

    context: tuple[str, ...]
    candidate: tuple[str, ...]
    n: int
    xx: Floats
    xy: Floats
    yy: float

    def __post_init__(self) -> None:
        for name, columns in (("context", self.context), ("candidate", self.candidate)):
            if len({*columns}) < len(columns):
                raise ValueError(f"{name} columns must have different names")
        if not 0 <= self.n <= MAX_ROWS:
            raise ValueError(f"statistics must be of 0 to {MAX_ROWS:,} rows")
        d = (1 + len(self.context)) * (1 + len(self.candidate))
        check_range("xx", self.xx, (d, d), -self.n, self.n)
        check_range("diagonal of xx", self.xx.diagonal(), (d,), 0, self.n)
        check_range("xy", self.xy, (d,), -self.n, self.n)
        check_range("yy", np.array(self.yy), (), 0, self.n)
        if self.xx[0, 0] != self.n:
            raise ValueError("the constant's entry of xx must be the number of rows")
        if not (self.xx == self.xx.T).all():
            raise ValueError("xx must be symmetric")

    @classmethod
    def empty(cls, context: Sequence[str], candidate: Sequence[str]) -> Self:
        """Return the statistics of no decisions."""
        d = (1 + len(context)) * (1 + len(candidate))
        return cls(tuple(context), tuple(candidate), 0, np.zeros((d, d)), np.zeros(d), 0.0)

    @classmethod
    def from_rows(
        cls, context: Sequence[str], candidate: Sequence[str], contexts: Floats, candidates: Floats, rewards: Floats
    ) -> Self:
        """Return the statistics of n decisions.

        `context`, `candidate`: the names of the columns. `contexts`: shape (n, k). `candidates`: shape (n, m), the
        candidates that were shown. In both, NaN is missing and counts as 0. `rewards`: shape (n,), in [0, 1]. Takes
        memory for `CHUNK_ROWS` rows of features. Raises ValueError for another shape or range.
        """
        n = rewards.size
        check_range("rewards", rewards, (n,), 0, 1)
        if contexts.shape != (n, len(context)) or candidates.shape != (n, len(candidate)):
            raise ValueError(
                f"contexts and candidates must have the shapes {(n, len(context))} and {(n, len(candidate))}, "
                f"not {contexts.shape} and {candidates.shape}"
            )
        d = (1 + len(context)) * (1 + len(candidate))
        xx, xy, yy = np.zeros((d, d)), np.zeros(d), 0.0
        for start in range(0, n, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            x = interaction_features(contexts[rows], candidates[rows])
            y = np.rint(rewards[rows] * REWARD_STEPS) / REWARD_STEPS
            xx += x.T @ x
            xy += x.T @ y
            yy += float(y @ y)
        return cls(tuple(context), tuple(candidate), n, xx, xy, yy)

    def __add__(self, other: "RegressionStatistics") -> "RegressionStatistics":
        """Add the statistics of other decisions. Raises ValueError for other columns, see `with_columns`."""
        self._check_columns(other)
        return RegressionStatistics(
            self.context,
            self.candidate,
            self.n + other.n,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def __sub__(self, other: "RegressionStatistics") -> "RegressionStatistics":
        """Subtract the statistics of a part of the decisions. Raises ValueError for other columns or more decisions."""
        self._check_columns(other)
        return RegressionStatistics(
            self.context,
            self.candidate,
            self.n - other.n,
            self.xx - other.xx,
            self.xy - other.xy,
            self.yy - other.yy,
        )

    def with_columns(self, context: Sequence[str], candidate: Sequence[str]) -> "RegressionStatistics":
        """Return the statistics with further columns, which were always missing, or with the columns in another order.

        Statistics of days on which different prompt versions were shown can then be added. Raises ValueError if a
        column is left out.
        """
        indices = self.feature_indices(context, candidate)
        wider = RegressionStatistics.empty(context, candidate)
        wider.xx[np.ix_(indices, indices)] = self.xx
        wider.xy[indices] = self.xy
        return RegressionStatistics(wider.context, wider.candidate, self.n, wider.xx, wider.xy, self.yy)

    def feature_indices(self, context: Sequence[str], candidate: Sequence[str]) -> Integers:
        """Return the index of each feature among those of more columns, shape (d,). Raises ValueError as above."""
        if missing := ({*self.context} - {*context}) | ({*self.candidate} - {*candidate}):
            raise ValueError(f"columns cannot be left out: {', '.join(sorted(missing))}")
        rows = np.array([0, *(1 + [*context].index(column) for column in self.context)])
        columns = np.array([0, *(1 + [*candidate].index(column) for column in self.candidate)])
        indices: Integers = (rows[:, None] * (1 + len(candidate)) + columns).ravel()
        return indices

    def _check_columns(self, other: "RegressionStatistics") -> None:
        if (self.context, self.candidate) != (other.context, other.candidate):
            raise ValueError("only statistics of the same columns can be added or subtracted")


def interaction_features(contexts: Floats, candidates: Floats) -> Floats:
    """Return the features (1, c) ⊗ (1, a) of n rows with rounded columns, shape (n, (1 + k)(1 + m)).

    `contexts`: shape (n, k). `candidates`: shape (n, m). NaN is missing, and counts as 0.
    """
    n, k = contexts.shape
    m = candidates.shape[1]
    c, a = np.ones((n, 1 + k)), np.ones((n, 1 + m))
    c[:, 1:], a[:, 1:] = round_columns(contexts, CONTEXT_STEPS), round_columns(candidates, CANDIDATE_STEPS)
    return (c[:, :, None] * a[:, None, :]).reshape(n, -1)


def round_columns(columns: Floats, steps: float) -> Floats:
    """Clip columns to [-1, 1], and round to multiples of 1 / `steps`; NaN becomes 0."""
    rounded: Floats = np.maximum(columns, -1.0)
    np.minimum(rounded, 1.0, out=rounded)
    rounded *= steps
    np.rint(rounded, out=rounded)
    rounded *= 1 / steps
    rounded[np.isnan(rounded)] = 0.0
    return rounded
