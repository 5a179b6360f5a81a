"""Sums of a log by cluster, from which every estimate of off-policy evaluation follows.

Decisions are added in chunks. Each sum of a cluster is added up in the order of the decisions, and other sums are sums
over clusters, so the sizes of the chunks do not change a bit of them.
"""

import math
from enum import IntEnum, auto
from typing import Self

import numpy as np

from ml.experiments.arrays import PROBABILITY_TOLERANCE, Floats
from ml.experiments.off_policy_log import Log, effective_number
from ml.experiments.reward_model import RewardModel

_LOWEST_EXPONENT = -1_073
"""That of the smallest number above 0."""


class _Row(IntEnum):
    """The rows of the sums; w is the weight divided by a power of two, r the reward, m the model's prediction of r."""

    DECISIONS = 0
    REWARDS = auto()
    TARGET_PREDICTIONS = auto()
    CONTRASTS = auto()
    SQUARED_CONTRASTS = auto()
    WEIGHTS = auto()  # w
    WEIGHTED_REWARDS = auto()  # w r
    WEIGHTED_ERRORS = auto()  # w (r - m)
    SQUARED_WEIGHTS = auto()  # w^2
    SQUARED_WEIGHTED_REWARDS = auto()  # (w r)^2
    SQUARED_WEIGHTED_RESTS = auto()  # (w (1 - r))^2


class OffPolicySums:
    """The sums of the decisions of a log that have been added, for one target policy and one model of the reward.

    Weights are divided by a power of two, hence exactly, so that the largest is about 1: the squares of very small ones
    would be 0 otherwise. `are_independent`: every decision is a cluster of its own.
    """

    def __init__(self, n_clusters: int, *, are_independent: bool = False) -> None:
        """`n_clusters`: at least 1; the decisions to be added have clusters from 0 to `n_clusters` - 1."""
        self.are_independent = are_independent
        self.smallest_weight, self.largest_weight = math.inf, 0.0
        self.lowest_reward, self.highest_reward = math.inf, -math.inf
        self._sums = np.zeros((len(_Row), n_clusters))
        self._exponent = _LOWEST_EXPONENT
        self._unreachable = 0.0
        self._has_model = True

    @classmethod
    def of(cls, log: Log, model: RewardModel | None = None) -> Self:
        """Return the sums of one log, whose cluster ids may be any integers."""
        if log.clusters is None:
            sums, clusters = cls(log.rewards.size, are_independent=True), np.arange(log.rewards.size)
        else:
            ids, clusters = np.unique(log.clusters, return_inverse=True)
            sums = cls(ids.size)
        sums.add(Log(log.rewards, log.propensities, log.target_probabilities, log.unreachable, clusters), model)
        return sums

    def add(self, log: Log, model: RewardModel | None = None) -> None:
        """Add decisions. Raises ValueError if `log` and `model` differ in their decisions or their target.

        `log`: with clusters. `model`: predictions for the decisions of the log, for the same target; without it, these
        sums are for `ips` and `snips` only.
        """
        if log.clusters is None:
            raise ValueError("the decisions must have clusters")
        if model is None:
            self._has_model = False
        else:
            _check_same_decisions(log, model)
        n, weights, rewards = log.rewards.size, log.weights, log.rewards
        self.smallest_weight = min(self.smallest_weight, float(weights.min()))
        self.largest_weight = max(self.largest_weight, float(weights.max()))
        self.lowest_reward = min(self.lowest_reward, float(rewards.min()))
        self.highest_reward = max(self.highest_reward, float(rewards.max()))
        self._unreachable += log.unreachable * n
        self._rescale()
        scaled, contrasts = np.ldexp(weights, -self._exponent), np.abs(weights - 1)
        weighted, predicted = scaled * rewards, np.zeros(n) if model is None else model.logged_predictions
        for row, values in {
            _Row.DECISIONS: np.ones(n),
            _Row.REWARDS: rewards,
            _Row.TARGET_PREDICTIONS: np.zeros(n) if model is None else model.target_predictions,
            _Row.CONTRASTS: contrasts,
            _Row.SQUARED_CONTRASTS: contrasts**2,
            _Row.WEIGHTS: scaled,
            _Row.WEIGHTED_REWARDS: weighted,
            _Row.WEIGHTED_ERRORS: scaled * (rewards - predicted),
            _Row.SQUARED_WEIGHTS: scaled**2,
            _Row.SQUARED_WEIGHTED_REWARDS: weighted**2,
            _Row.SQUARED_WEIGHTED_RESTS: (scaled * (1 - rewards)) ** 2,
        }.items():
            np.add.at(self._sums[row], log.clusters, values)

    @property
    def n(self) -> int:
        """The number of decisions."""
        return int(self._sums[_Row.DECISIONS].sum())

    @property
    def mean_reward(self) -> float:
        """The mean reward of the log."""
        return self.mean(self.rewards)

    @property
    def mean_weight(self) -> float:
        """The mean weight; its expectation is 1 if the propensities are right and the log covers the target."""
        return math.ldexp(self._total(_Row.WEIGHTS), self._exponent) / self.n

    @property
    def unreachable(self) -> float:
        """The target's mean probability of options that the live policy could not draw, in [0, 1]."""
        return min(self._unreachable / self.n, 1.0)

    @property
    def effective_sample_size(self) -> float:
        """The number of decisions of the target's own that would be as informative, in [0, n] (Owen 2013)."""
        return _effective(self._total(_Row.WEIGHTS), self._total(_Row.SQUARED_WEIGHTS))

    @property
    def effective_contrast(self) -> float:
        """The effective number of decisions that the difference between both policies rests on: that of |weight - 1|.

        0 if all weights are 1.
        """
        return _effective(self._total(_Row.CONTRASTS), self._total(_Row.SQUARED_CONTRASTS))

    @property
    def effective_rewarded(self) -> float:
        """The effective number of the weighted rewards."""
        return _effective(self._total(_Row.WEIGHTED_REWARDS), self._total(_Row.SQUARED_WEIGHTED_REWARDS))

    @property
    def effective_unrewarded(self) -> float:
        """The effective number of the weighted rest of the rewards up to 1."""
        rest = self._total(_Row.WEIGHTS) - self._total(_Row.WEIGHTED_REWARDS)
        return _effective(rest, self._total(_Row.SQUARED_WEIGHTED_RESTS))

    @property
    def effective_clusters(self) -> float:
        """The number of clusters of equal weight that would be as informative (Carter et al. 2017)."""
        return effective_number(self._sums[_Row.WEIGHTS])

    # Sums by cluster, shape (n_clusters,).

    @property
    def rewards(self) -> Floats:
        """The rewards."""
        return self._by_cluster(_Row.REWARDS)

    @property
    def weights(self) -> Floats:
        """The weights."""
        return self._unscaled(_Row.WEIGHTS)

    @property
    def weighted_rewards(self) -> Floats:
        """The weighted rewards."""
        return self._unscaled(_Row.WEIGHTED_REWARDS)

    @property
    def target_predictions(self) -> Floats:
        """The model's expected reward under the target. Raises ValueError without a model."""
        self._check_has_model()
        return self._by_cluster(_Row.TARGET_PREDICTIONS)

    @property
    def weighted_errors(self) -> Floats:
        """The weighted errors of the model for the drawn options. Raises ValueError without a model."""
        self._check_has_model()
        return self._unscaled(_Row.WEIGHTED_ERRORS)

    def weighted_mean_of_rewards(self) -> tuple[float, Floats]:
        """Return the weighted mean of the rewards, and its linearised error by cluster; 0 without any weight."""
        return self._weighted_mean(_Row.WEIGHTED_REWARDS)

    def weighted_mean_of_errors(self) -> tuple[float, Floats]:
        """Return the same for the errors of the model. Raises ValueError without a model."""
        self._check_has_model()
        return self._weighted_mean(_Row.WEIGHTED_ERRORS)

    def mean(self, by_cluster: Floats) -> float:
        """Return the mean over decisions of terms that are given as sums by cluster."""
        return float(by_cluster.sum()) / self.n

    def standard_error(self, by_cluster: Floats) -> float:
        """Return the standard error of the mean of terms that are given as sums by cluster; infinite for one cluster.

        Source: Liang & Zeger, "Longitudinal data analysis using generalized linear models", Biometrika 1986, with the
        correction for few clusters of Cameron & Miller 2015; for independent decisions it is the usual standard error.
        """
        sizes = self._sums[_Row.DECISIONS]
        m = int(np.count_nonzero(sizes))
        squares = float(((by_cluster - sizes * self.mean(by_cluster)) ** 2).sum())
        return math.sqrt(squares * m / (m - 1)) / self.n if m > 1 else math.inf

    def _by_cluster(self, row: _Row) -> Floats:
        sums: Floats = self._sums[row]
        return sums

    def _unscaled(self, row: _Row) -> Floats:
        sums: Floats = np.ldexp(self._sums[row], self._exponent)
        return sums

    def _total(self, row: _Row) -> float:
        return float(self._sums[row].sum())

    def _weighted_mean(self, row: _Row) -> tuple[float, Floats]:
        total = self._total(_Row.WEIGHTS) or 1.0
        mean = self._total(row) / total
        return mean, (self._sums[row] - mean * self._sums[_Row.WEIGHTS]) / (total / self.n)

    def _check_has_model(self) -> None:
        if not self._has_model:
            raise ValueError("this estimate needs a model of the reward")

    def _rescale(self) -> None:
        """Divide the sums of weights by a power of two, if the largest weight has grown."""
        exponent = math.frexp(self.largest_weight)[1] if self.largest_weight else _LOWEST_EXPONENT
        if exponent > self._exponent:
            linear, squared = slice(_Row.WEIGHTS, _Row.SQUARED_WEIGHTS), slice(_Row.SQUARED_WEIGHTS, None)
            self._sums[linear] = np.ldexp(self._sums[linear], self._exponent - exponent)
            self._sums[squared] = np.ldexp(self._sums[squared], 2 * (self._exponent - exponent))
            self._exponent = exponent


def _check_same_decisions(log: Log, model: RewardModel) -> None:
    if model.options.size != log.rewards.size:
        raise ValueError(f"the model predicts {model.options.size} decisions, and the log has {log.rewards.size}")
    if not (abs(model.target_probabilities - log.target_probabilities) <= PROBABILITY_TOLERANCE).all():
        raise ValueError("the log and the model differ in the target's probability of the drawn option")


def _effective(total: float, squares: float) -> float:
    return total**2 / squares if squares else 0.0
