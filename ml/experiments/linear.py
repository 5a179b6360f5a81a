"""Ridge regression of the reward on additive statistics: the model that ranks candidates.

The expected reward of a candidate in a context is linear in the features of `regression_statistics`.

Each day has an effect of its own on all rewards, such as a season's, so that a candidate that was only shown on good
days does not seem good.

The fit uses the logged decisions without weights: inverse gap weighting (`exploration.SquareCB`), which turns the
predictions into probabilities, requires a regression of the reward (Foster & Rakhlin, "Beyond UCB", ICML 2020).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np

from ml.experiments.arrays import Floats, check_range
from ml.experiments.regression_statistics import CANDIDATE_STEPS, CONTEXT_STEPS, RegressionStatistics, round_columns

STRENGTHS = 10.0 ** np.linspace(-2, 6, 17)
"""Ridge strengths that `fit` compares: ratios of the variance of the noise to the prior variance of a weight."""
MIN_DEVIATION = 0.02
"""Context columns with a smaller standard deviation are scaled as if it were this."""
CONTEXT_EFFECT = 1 / 3
"""Prior standard deviation of a context column's main effect, relative to candidate effects and to interactions."""
DAY_EFFECT_ROWS = 80.0
"""The variance of a reward, relative to the prior variance of a day's effect: about 0.2 to 0.05 squared."""
PRIOR_VARIANCE, PRIOR_ROWS = 0.25, 1.0
"""Inverse gamma prior of the noise variance, equivalent to `PRIOR_ROWS` rewards with the largest possible variance."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearModel:
    """A linear model of the expected reward, with the posterior distribution of its weights.

    `weights`: the posterior mean, shape (1 + k, 1 + m), row 0 for the candidate's own columns, column 0 for the
    context's own, [0, 0] for the constant. `covariance`: of the weights in row-major order, shape (d, d) with
    d = (1 + k)(1 + m), symmetric, given `noise_variance`, that of a reward around its expectation, at least 0. Raises
    ValueError for another shape, or if a number is not finite.
    """

    weights: Floats
    covariance: Floats
    noise_variance: float

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or 0 in self.weights.shape:  # noqa: PLR2004 - a matrix
            raise ValueError("weights must have the shape (1 + k, 1 + m)")
        d, max_float = self.weights.size, np.finfo(np.float64).max
        check_range("weights", self.weights, self.weights.shape, -max_float, max_float)
        check_range("covariance", self.covariance, (d, d), -max_float, max_float)
        check_range("variances", self.covariance.diagonal(), (d,), 0, max_float)
        check_range("noise_variance", np.array(self.noise_variance), (), 0, max_float)
        if not (self.covariance == self.covariance.T).all():
            raise ValueError("covariance must be symmetric")

    def predict(self, context: Floats, candidates: Floats) -> Floats:
        """Return the expected reward of each candidate, shape (n,); a linear model can leave [0, 1].

        `context`: shape (k,). `candidates`: shape (n, m). NaN is missing. Raises ValueError for another shape.
        """
        self._check_shapes(context, candidates)
        candidate_weights = self.weights[0] + round_columns(context, CONTEXT_STEPS) @ self.weights[1:]
        rewards: Floats = candidate_weights[0] + round_columns(candidates, CANDIDATE_STEPS) @ candidate_weights[1:]
        return rewards

    def predict_each(self, contexts: Floats, candidates: Floats) -> Floats:
        """Return the predictions of `predict` for each of n contexts with j candidates each, shape (n, j).

        They are equal to the last bit: each context has products of its own, of the same shapes as in `predict`.
        `contexts`: shape (n, k). `candidates`: shape (n, j, m). Raises ValueError for another shape.
        """
        n, k, m = len(contexts), self.weights.shape[0] - 1, self.weights.shape[1] - 1
        if contexts.shape != (n, k) or candidates.shape != (n, *candidates.shape[1:2], m):
            raise ValueError(f"columns must be {k} and {m}, not of the shapes {contexts.shape} and {candidates.shape}")
        rounded = round_columns(contexts, CONTEXT_STEPS)[:, None, :]
        candidate_weights = self.weights[0] + (rounded @ self.weights[1:])[:, 0, :]
        products = round_columns(candidates, CANDIDATE_STEPS) @ candidate_weights[:, 1:, None]
        rewards: Floats = candidate_weights[:, :1] + products[:, :, 0]
        return rewards

    def predict_interval(self, context: Floats, candidates: Floats, *, level: float = 0.95) -> tuple[Floats, Floats]:
        """Return the limits of a credible interval of each expected reward, low and high, each of shape (n,).

        `level`, in (0, 1): the posterior probability of the interval, if the model is right and the ridge strength is
        known. Since the strength is estimated, intervals are slightly too narrow: those of 90 % contain 88 % of the
        expected rewards that are drawn from the prior. The variance of a single reward is larger by `noise_variance`.
        Other arguments as in `predict`. Raises ValueError for another shape or level. Source: Bishop, "Pattern
        recognition and machine learning", 2006, equations 3.58 and 3.59.
        """
        if not 0 < level < 1:
            raise ValueError("level must be in (0, 1)")
        expected = self.predict(context, candidates)
        # The variance of x'w for x = c ⊗ a, first as a quadratic form in a.
        c = np.concatenate(([1.0], round_columns(context, CONTEXT_STEPS)))
        a = np.ones((len(candidates), self.weights.shape[1]))
        a[:, 1:] = round_columns(candidates, CANDIDATE_STEPS)
        left_product = (c @ self.covariance.reshape(c.size, -1)).reshape(a.shape[1], c.size, a.shape[1])
        variances = ((a @ np.einsum("jkl,k->jl", left_product, c)) * a).sum(axis=1)
        # Rounding can make a very small variance negative.
        deviation = np.sqrt(np.maximum(variances, 0))
        margin = NormalDist().inv_cdf((1 + level) / 2) * deviation
        return expected - margin, expected + margin

    def _check_shapes(self, context: Floats, candidates: Floats) -> None:
        k, m = self.weights.shape[0] - 1, self.weights.shape[1] - 1
        if context.shape != (k,) or candidates.ndim != 2 or candidates.shape[1] != m:  # noqa: PLR2004 - rows
            raise ValueError(f"columns must be {k} and {m}, not of the shapes {context.shape} and {candidates.shape}")


@dataclass(frozen=True, slots=True, eq=False)
class DayAdjustedStatistics:
    """Statistics of days from which the effect of each day is eliminated; they are additive over days.

    `total`: the sums over all decisions. `xx`, `xy`, `yy`: the sums weighted by the inverse covariance of the rewards,
    relative to the variance of one: decisions of one day share its effect, so a day of n decisions contributes
    X'X - s s' / (n + `DAY_EFFECT_ROWS`), where s is the sum of its rows, and X'y and y'y accordingly. A day with many
    decisions contributes little more than contrasts within the day; days with very few are pooled. Source: Searle,
    Casella & McCulloch, "Variance components", 1992, chapter 7 (a random effect per group).
    """

    total: RegressionStatistics
    xx: Floats
    xy: Floats
    yy: float

    @classmethod
    def of_day(cls, day: RegressionStatistics) -> Self:
        """Return the statistics of one day."""
        rows = day.n + DAY_EFFECT_ROWS
        sums, rewards = day.xx[0], float(day.xy[0])  # the first feature is the constant
        return cls(
            day, day.xx - np.outer(sums, sums) / rows, day.xy - sums * (rewards / rows), day.yy - rewards**2 / rows
        )

    def __add__(self, other: "DayAdjustedStatistics") -> "DayAdjustedStatistics":
        """Add the statistics of other days. Raises ValueError for other columns."""
        return DayAdjustedStatistics(
            self.total + other.total, self.xx + other.xx, self.xy + other.xy, self.yy + other.yy
        )

    def with_columns(self, context: Sequence[str], candidate: Sequence[str]) -> "DayAdjustedStatistics":
        """Return the statistics with further columns, which were always missing; see `RegressionStatistics`."""
        if (self.total.context, self.total.candidate) == (tuple(context), tuple(candidate)):
            return self
        total = self.total.with_columns(context, candidate)
        indices = self.total.feature_indices(context, candidate)
        xx, xy = np.zeros_like(total.xx), np.zeros_like(total.xy)
        xx[np.ix_(indices, indices)], xy[indices] = self.xx, self.xy
        return DayAdjustedStatistics(total, xx, xy, self.yy)

    def contrast_error(self, model: "LinearModel") -> float:
        """Return the mean squared error of a model at these decisions, apart from the level of each day."""
        weights = self._with_fitted_level(model.weights)
        error = self.yy - 2 * float(weights @ self.xy) + float(weights @ self.xx @ weights)
        return max(error, 0.0) / max(self.total.n, 1)

    def error_deviation(self, one: "LinearModel", other: "LinearModel") -> float:
        """Return the standard deviation of the difference of two models' `contrast_error`, given their predictions."""
        weights = self._with_fitted_level(one.weights) - self._with_fitted_level(other.weights)
        squares = max(float(weights @ self.xx @ weights), 0.0)
        return 2 * math.sqrt(self.contrast_error(other) * squares) / max(self.total.n, 1)

    def _with_fitted_level(self, weights: Floats) -> Floats:
        """Return the weights of all features, with the constant that is best for these decisions."""
        flat = weights.ravel().copy()
        flat[0] = 0.0
        flat[0] = (self.xy[0] - self.xx[0] @ flat) / self.xx[0, 0] if self.total.n else 0.0
        return flat


def fit(statistics: DayAdjustedStatistics) -> LinearModel:
    """Fit a ridge regression; the same statistics give the same model, up to rare ties in rounding between machines.

    The weights have independent normal priors with mean 0, for scaled columns: a context column is centred, and divided
    by the root of its standard deviation, half-way between no scaling and standardisation. The main effect of a context
    column, which is the same for all candidates, has `CONTEXT_EFFECT` times the prior standard deviation of a candidate
    column's effect or an interaction. The constant has a flat prior, and the noise variance an inverse gamma prior. The
    ratio of the noise variance to the prior variance of the weights is the one of `STRENGTHS` with the highest evidence
    (marginal likelihood); one eigendecomposition of X'X is enough for all of them. Columns that were always missing
    keep their prior. The constant is the mean over days; its variance excludes that of the effect of a further day.

    Raises ValueError for statistics of no decisions. The time grows with the cube of the number of observed features.

    Sources: Hoerl & Kennard, "Ridge regression", Technometrics 1970; MacKay, "Bayesian interpolation", Neural
    Computation 1992 (evidence); Bishop, "Pattern recognition and machine learning", 2006, sections 3.3 and 3.5, and
    exercise 3.23 (evidence with an unknown noise variance); Golub, Heath & Wahba, "Generalized cross-validation as a
    method for choosing a good ridge parameter", Technometrics 1979 (an alternative to the evidence).
    """
    n = statistics.total.n
    if n == 0:
        raise ValueError("there are no decisions to fit")
    scaling = _Scaling.from_statistics(statistics.total)
    gram = scaling.features(scaling.features(statistics.xx).T)
    moments = scaling.features(statistics.xy)
    # The constant has a flat prior, so the other weights are fitted to deviations from the means.
    effective = gram[0, 0]
    means = gram[0, 1:] / effective
    mean = moments[0] / effective
    gram = gram[1:, 1:] - effective * np.outer(means, means)
    moments = moments[1:] - effective * mean * means
    spread = statistics.yy - effective * mean**2

    observed = gram.diagonal() > 0
    eigenvalues, vectors = np.linalg.eigh(gram[np.ix_(observed, observed)])
    eigenvalues = np.maximum(eigenvalues, 0)
    rotated = vectors.T @ moments[observed]
    # The posterior of the noise variance has the shape (n - 1 + PRIOR_ROWS) / 2, and one of these scales per strength.
    explained = (rotated**2 / (eigenvalues + STRENGTHS[:, None])).sum(axis=1)
    scales = np.maximum(spread - explained, 0) + PRIOR_ROWS * PRIOR_VARIANCE
    rows = n - 1 + PRIOR_ROWS
    evidence = -0.5 * (rows * np.log(scales) + np.log1p(eigenvalues / STRENGTHS[:, None]).sum(axis=1))
    best = int(evidence.argmax())
    strength, noise = float(STRENGTHS[best]), float(scales[best] / rows)

    weights = np.zeros(means.size)
    weights[observed] = vectors @ (rotated / (eigenvalues + strength))
    posterior = np.diag(np.full(means.size, 1 / strength))
    posterior[np.ix_(observed, observed)] = (vectors / (eigenvalues + strength)) @ vectors.T
    # Transform back to the constant of columns that are not centred, and to columns that are not scaled.
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
    """Round weights to a millionth of their standard deviation, and covariances to a billionth of the product of two.

    The last digits of an eigendecomposition depend on the processor and on the number of threads. After rounding, a
    number differs between machines only if it is within about 1e-6 steps of the middle between two steps.
    """
    _, exponents = np.frexp(covariance.diagonal())
    deviations = np.ldexp(1.0, exponents // 2)  # powers of two, so that only the rounding rounds
    weight_steps, covariance_steps = deviations * 2.0**-20, np.outer(deviations, deviations) * 2.0**-30
    return np.rint(weights / weight_steps) * weight_steps, np.rint(covariance / covariance_steps) * covariance_steps


@dataclass(frozen=True, slots=True, eq=False)
class _Scaling:
    """The transformation to features whose weights have equal prior variance: ((1, c) `centring`) ⊗ (1, a) `relative`.

    `centring`: shape (1 + k, 1 + k). `relative`: shape (1 + k, 1 + m).
    """

    centring: Floats
    relative: Floats

    @classmethod
    def from_statistics(cls, statistics: RegressionStatistics) -> Self:
        rows, columns = 1 + len(statistics.context), 1 + len(statistics.candidate)
        context_xx = statistics.xx[::columns, ::columns]
        means = context_xx[0, 1:] / statistics.n
        deviations = np.sqrt(np.maximum(context_xx.diagonal()[1:] / statistics.n - means**2, 0))
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
