"""Ridge regression of the reward on additive statistics: the model that ranks candidates.

The expected reward of a candidate a in a context c is linear in the features (1, c) ⊗ (1, a): a constant, each column
of the context, each column of the candidate, and the product of each of the one with each of the other. Everything that
a fit needs is in X'X, X'y, y'y and n, which are sums over decisions.

The sums are exact. Columns are clipped to [-1, 1] and rounded to multiples of 2^-8 (context) and 2^-6 (candidate),
rewards to multiples of 2^-14. Each term is then a multiple of 2^-28 of magnitude at most 1, and up to 2^25 (33 million)
of them add up in 53 bits without rounding. Rows can come in any order, in chunks of any size, from any number of
machines, and the statistics are equal to the last bit.

The fit uses the decisions that were made, without weights: inverse gap weighting (`exploration.SquareCB`), which makes
probabilities of the predictions, asks for a regression of the reward (Foster & Rakhlin 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np

from ml.experiments.arrays import Floats, check

CONTEXT_STEPS, CANDIDATE_STEPS, REWARD_STEPS = 2.0**8, 2.0**6, 2.0**14
"""Steps of the rounded columns and rewards, per unit."""
MAX_ROWS = 2**25
"""With more rows the sums could be rounded."""
CHUNK_ROWS = 1_024
"""Rows whose features are in memory at a time."""

STRENGTHS = 10.0 ** np.linspace(-2, 6, 17)
"""Ridge strengths that `fit` compares: ratios of the variance of the noise to the prior variance of a weight."""
MIN_DEVIATION = 0.02
"""Context columns that vary less than this are scaled as if they varied that much."""
CONTEXT_EFFECT = 1 / 3
"""Prior standard deviation of a context column's own effect, relative to candidates' effects and to interactions."""
PRIOR_VARIANCE, PRIOR_ROWS = 0.25, 1.0
"""Inverse gamma prior of the noise variance: as if that many rewards had shown this variance, the largest possible."""


@dataclass(frozen=True, slots=True, eq=False)
class RegressionStatistics:
    """Sufficient statistics of a linear regression on the features (1, c) ⊗ (1, a): sums over `n` decisions.

    `context`, `candidate`: the names of the k and m columns, each once. `n`: from 0 to `MAX_ROWS`. `xx`: X'X, shape
    (d, d), symmetric, with d = (1 + k)(1 + m); feature (i, j) is at i (1 + m) + j. `xy`: X'y, shape (d,). `yy`: y'y.
    Statistics of different decisions add up, and those of a part can be subtracted. Raises ValueError if a shape or a
    range is another.
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
        check("xx", self.xx, (d, d), -self.n, self.n)
        check("diagonal of xx", self.xx.diagonal(), (d,), 0, self.n)
        check("xy", self.xy, (d,), -self.n, self.n)
        check("yy", np.array(self.yy), (), 0, self.n)
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
        """Sum up n decisions.

        `context`, `candidate`: the names of the columns. `contexts`: shape (n, k); `candidates`: shape (n, m), the ones
        that were shown; in both NaN is missing, and counts as 0. `rewards`: shape (n,), in [0, 1]. Takes memory for
        `CHUNK_ROWS` rows of features. Raises ValueError if a shape or a range is another.
        """
        n = rewards.size
        check("rewards", rewards, (n,), 0, 1)
        if contexts.shape != (n, len(context)) or candidates.shape != (n, len(candidate)):
            raise ValueError(
                f"contexts and candidates must have the shapes {(n, len(context))} and {(n, len(candidate))}, "
                f"not {contexts.shape} and {candidates.shape}"
            )
        d = (1 + len(context)) * (1 + len(candidate))
        xx, xy, yy = np.zeros((d, d)), np.zeros(d), 0.0
        for start in range(0, n, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            x = features(contexts[rows], candidates[rows])
            y = np.rint(rewards[rows] * REWARD_STEPS) / REWARD_STEPS
            xx += x.T @ x
            xy += x.T @ y
            yy += float(y @ y)
        return cls(tuple(context), tuple(candidate), n, xx, xy, yy)

    def __add__(self, other: "RegressionStatistics") -> "RegressionStatistics":
        """Merge with statistics of other decisions. Raises ValueError for other columns: see `with_columns`."""
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
        """Remove statistics of decisions that are among these. Raises ValueError for other columns, or for more."""
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
        """Return the same statistics by more columns, or by the same in another order; a new one was always missing.

        So days on which different prompt versions were shown can be added. Raises ValueError if a column is left out.
        """
        if missing := ({*self.context} - {*context}) | ({*self.candidate} - {*candidate}):
            raise ValueError(f"columns cannot be left out: {', '.join(sorted(missing))}")
        wider = RegressionStatistics.empty(context, candidate)
        rows = np.array([0, *(1 + wider.context.index(column) for column in self.context)])
        columns = np.array([0, *(1 + wider.candidate.index(column) for column in self.candidate)])
        places = (rows[:, None] * (1 + len(wider.candidate)) + columns).ravel()
        wider.xx[np.ix_(places, places)] = self.xx
        wider.xy[places] = self.xy
        return RegressionStatistics(wider.context, wider.candidate, self.n, wider.xx, wider.xy, self.yy)

    def _check_columns(self, other: "RegressionStatistics") -> None:
        if (self.context, self.candidate) != (other.context, other.candidate):
            raise ValueError("only statistics of the same columns can be added or subtracted")


@dataclass(frozen=True, slots=True, eq=False)
class LinearModel:
    """A linear model of the expected reward, with the posterior distribution of its weights.

    `weights`: the posterior mean, shape (1 + k, 1 + m), row 0 for the candidate's own columns, column 0 for the
    context's own, [0, 0] for the constant. `covariance`: of the weights in row-major order, shape (d, d) with
    d = (1 + k)(1 + m), symmetric, given `noise_variance`, that of a reward around its expectation, at least 0. Raises
    ValueError if a shape is another, or a number is not finite.
    """

    weights: Floats
    covariance: Floats
    noise_variance: float

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or 0 in self.weights.shape:  # noqa: PLR2004 - a matrix
            raise ValueError("weights must have the shape (1 + k, 1 + m)")
        d, largest = self.weights.size, np.finfo(np.float64).max
        check("weights", self.weights, self.weights.shape, -largest, largest)
        check("covariance", self.covariance, (d, d), -largest, largest)
        check("variances", self.covariance.diagonal(), (d,), 0, largest)
        check("noise_variance", np.array(self.noise_variance), (), 0, largest)
        if not (self.covariance == self.covariance.T).all():
            raise ValueError("covariance must be symmetric")

    def predict(self, context: Floats, candidates: Floats) -> Floats:
        """Return the expected reward of each candidate, shape (n,); a linear model can leave [0, 1].

        `context`: shape (k,). `candidates`: shape (n, m). NaN is missing. Raises ValueError for another shape.
        """
        self._check(context, candidates)
        of_context = self.weights[0] + _rounded(context, CONTEXT_STEPS) @ self.weights[1:]
        rewards: Floats = of_context[0] + _rounded(candidates, CANDIDATE_STEPS) @ of_context[1:]
        return rewards

    def predict_interval(self, context: Floats, candidates: Floats, *, level: float = 0.95) -> tuple[Floats, Floats]:
        """Return the limits of a credible interval of each expected reward, low and high, each of shape (n,).

        `level`, in (0, 1): the posterior probability of the interval, if the model is right and the ridge strength is
        known; that it was estimated makes intervals a little too narrow (those of 90 % hold 88 % of rewards that are
        drawn from the prior). A single reward varies by `noise_variance` more. Arguments are otherwise as in `predict`.
        Raises ValueError for another shape or level. Source: Bishop, "Pattern recognition and machine learning", 2006,
        equations 3.58 and 3.59.
        """
        if not 0 < level < 1:
            raise ValueError("level must be in (0, 1)")
        expected = self.predict(context, candidates)
        # The variance of x'w for x = c ⊗ a, first as a quadratic form in a.
        c = np.concatenate(([1.0], _rounded(context, CONTEXT_STEPS)))
        a = np.ones((len(candidates), self.weights.shape[1]))
        a[:, 1:] = _rounded(candidates, CANDIDATE_STEPS)
        half = (c @ self.covariance.reshape(c.size, -1)).reshape(a.shape[1], c.size, a.shape[1])
        variances = ((a @ np.einsum("jkl,k->jl", half, c)) * a).sum(axis=1)
        # Rounding can make the variance of what is known very well negative.
        deviation = np.sqrt(np.maximum(variances, 0))
        margin = NormalDist().inv_cdf((1 + level) / 2) * deviation
        return expected - margin, expected + margin

    def _check(self, context: Floats, candidates: Floats) -> None:
        k, m = self.weights.shape[0] - 1, self.weights.shape[1] - 1
        if context.shape != (k,) or candidates.ndim != 2 or candidates.shape[1] != m:  # noqa: PLR2004 - rows
            raise ValueError(f"columns must be {k} and {m}, not of the shapes {context.shape} and {candidates.shape}")


def features(contexts: Floats, candidates: Floats) -> Floats:
    """Return the rounded features (1, c) ⊗ (1, a) of n rows, shape (n, (1 + k)(1 + m)).

    `contexts`: shape (n, k). `candidates`: shape (n, m). NaN is missing, and counts as 0.
    """
    n, k = contexts.shape
    m = candidates.shape[1]
    c, a = np.ones((n, 1 + k)), np.ones((n, 1 + m))
    c[:, 1:], a[:, 1:] = _rounded(contexts, CONTEXT_STEPS), _rounded(candidates, CANDIDATE_STEPS)
    return (c[:, :, None] * a[:, None, :]).reshape(n, -1)


def fit(statistics: RegressionStatistics) -> LinearModel:
    """Fit a ridge regression; the same statistics give the same model, to the last bit.

    The prior of the weights is normal around 0, independent, for columns that are scaled: a context column is centred,
    and divided by the root of its standard deviation, half-way between leaving it as it is and standardising it; the
    effect of a context column itself, which moves all candidates alike, is expected to be `CONTEXT_EFFECT` times as
    large as that of a candidate's column, or of a product. The constant has a flat prior, and the noise variance an
    inverse gamma prior. The prior variance of the weights, relative to the noise, is the one of `STRENGTHS` with the
    highest evidence (marginal likelihood). A single eigendecomposition of X'X serves all of them. Columns that were
    always missing keep their prior.

    Raises ValueError for statistics of no decisions. Takes time proportional to d^3 for d features that were seen.

    Sources: Hoerl & Kennard, "Ridge regression", Technometrics 1970; MacKay, "Bayesian interpolation", Neural
    Computation 1992 (evidence); Bishop, "Pattern recognition and machine learning", 2006, sections 3.3 and 3.5, and
    exercise 3.23 (evidence with an unknown noise variance); Golub, Heath & Wahba, "Generalized cross-validation as a
    method for choosing a good ridge parameter", Technometrics 1979 (what else could choose).
    """
    n = statistics.n
    if n == 0:
        raise ValueError("there are no decisions to fit")
    scaling = _Scaling.of(statistics)
    gram = scaling.features(scaling.features(statistics.xx).T)
    moments = scaling.features(statistics.xy)
    # A flat prior of the constant: the other weights explain what is left around the means.
    means = gram[0, 1:] / n
    mean = moments[0] / n
    gram = gram[1:, 1:] - n * np.outer(means, means)
    moments = moments[1:] - n * mean * means
    spread = statistics.yy - n * mean**2

    seen = gram.diagonal() > 0
    eigenvalues, vectors = np.linalg.eigh(gram[np.ix_(seen, seen)])
    eigenvalues = np.maximum(eigenvalues, 0)
    rotated = vectors.T @ moments[seen]
    # The posterior of the noise variance has the shape (n - 1 + PRIOR_ROWS) / 2 and these scales, one a strength.
    explained = (rotated**2 / (eigenvalues + STRENGTHS[:, None])).sum(axis=1)
    scales = np.maximum(spread - explained, 0) + PRIOR_ROWS * PRIOR_VARIANCE
    rows = n - 1 + PRIOR_ROWS
    evidence = -0.5 * (rows * np.log(scales) + np.log1p(eigenvalues / STRENGTHS[:, None]).sum(axis=1))
    best = int(evidence.argmax())
    strength, noise = float(STRENGTHS[best]), float(scales[best] / rows)

    weights = np.zeros(means.size)
    weights[seen] = vectors @ (rotated / (eigenvalues + strength))
    posterior = np.diag(np.full(means.size, 1 / strength))
    posterior[np.ix_(seen, seen)] = (vectors / (eigenvalues + strength)) @ vectors.T
    # Back to a constant that is not the mean, and to columns that are not scaled.
    cross = -posterior @ means
    covariance = np.empty((1 + means.size, 1 + means.size))
    covariance[0, 0] = 1 / n - means @ cross
    covariance[0, 1:] = covariance[1:, 0] = cross
    covariance[1:, 1:] = posterior
    covariance = scaling.weights(scaling.weights(covariance).T) * noise
    weights = scaling.weights(np.concatenate(([mean - means @ weights], weights)))
    weights, covariance = _round_by_deviation(weights, (covariance + covariance.T) / 2)
    return LinearModel(weights.reshape(scaling.relative.shape), covariance, float(np.float32(noise)))


def _round_by_deviation(weights: Floats, covariance: Floats) -> tuple[Floats, Floats]:
    """Round to a millionth of a standard deviation, and to a billionth of two of them multiplied.

    The last digits of an eigendecomposition depend on the processor and on the number of threads. After this, machines
    differ only where a number is within about 1e-6 steps of the middle between two steps.
    """
    _, exponents = np.frexp(covariance.diagonal())
    deviations = np.ldexp(1.0, exponents // 2)  # powers of two, so that only the rounding rounds
    steps, of_both = deviations * 2.0**-20, np.outer(deviations, deviations) * 2.0**-30
    return np.rint(weights / steps) * steps, np.rint(covariance / of_both) * of_both


def _rounded(columns: Floats, steps: float) -> Floats:
    """Clip to [-1, 1], and round to multiples of 1 / `steps`; NaN becomes 0."""
    rounded: Floats = np.maximum(columns, -1.0)
    np.minimum(rounded, 1.0, out=rounded)
    rounded *= steps
    np.rint(rounded, out=rounded)
    rounded *= 1 / steps
    rounded[np.isnan(rounded)] = 0.0
    return rounded


@dataclass(frozen=True, slots=True, eq=False)
class _Scaling:
    """The features that weights of equal prior variance belong to: ((1, c) `centring`) ⊗ (1, a), times `relative`.

    `centring`: shape (1 + k, 1 + k). `relative`: shape (1 + k, 1 + m).
    """

    centring: Floats
    relative: Floats

    @classmethod
    def of(cls, statistics: RegressionStatistics) -> Self:
        rows, columns = 1 + len(statistics.context), 1 + len(statistics.candidate)
        of_context = statistics.xx[::columns, ::columns]
        means = of_context[0, 1:] / statistics.n
        deviations = np.sqrt(np.maximum(of_context.diagonal()[1:] / statistics.n - means**2, 0))
        scales = np.where(deviations > 0, np.maximum(deviations, MIN_DEVIATION) ** -0.5, 1.0)
        centring = np.diag(np.concatenate(([1.0], scales)))
        centring[0, 1:] = -means * scales
        relative = np.ones((rows, columns))
        relative[1:, 0] = CONTEXT_EFFECT
        return cls(centring, relative)

    def features(self, sums: Floats) -> Floats:
        """Return sums over the scaled features from sums over the features, along the first axis."""
        scaled: Floats = self._times(self.centring.T, sums)
        return (self.relative.ravel() * scaled.T).T

    def weights(self, weights: Floats) -> Floats:
        """Return the weights of the features from those of the scaled features, along the first axis."""
        return self._times(self.centring, (self.relative.ravel() * weights.T).T)

    def _times(self, matrix: Floats, values: Floats) -> Floats:
        """Return (`matrix` ⊗ identity) `values`."""
        product: Floats = matrix @ values.reshape(len(matrix), -1)
        return product.reshape(values.shape)
