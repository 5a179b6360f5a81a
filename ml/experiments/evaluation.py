"""What a policy would have earned, from decisions that another policy took: off-policy evaluation.

The *target* is the policy that is judged; the *log* holds decisions of the policy that was live, with the propensity of
each. `ips` and `snips` need only these. `dm`, `dr` and `sndr` need a model of the reward as well, such as that of
`cross_fitted_means`. `sndr` and `dr` are the ones to look at first: they stay right if the model is wrong, and are
narrow if it is good.

Every interval is the normal approximation: the standard deviation of the per-decision terms over the square root of
their number. Decisions count as independent of each other, and propensities as known, not fitted.

Sources: Owen, "Monte Carlo theory, methods and examples", 2013, chapter 9 (weights, effective sample size, the delta
method); Swaminathan & Joachims, "The self-normalized estimator for counterfactual learning", NeurIPS 2015; Dudik,
Erhan, Langford & Li, "Doubly robust policy evaluation and optimization", Statistical Science 2014; Chernozhukov et al.,
"Double/debiased machine learning for treatment and structural parameters", Econometrics Journal 2018 (cross-fitting).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

# An effective sample size below this is refused: normal approximations of fewer are not to be trusted. At this size no
# single decision can hold more than a tenth of all the weight, since its share is at most 1 / sqrt(size).
LEAST_EFFECTIVE = 100.0
# The mean weight is refused if it is off 1 by more than this, and by more standard errors than chance explains. Weights
# are skewed, hence four.
MEAN_WEIGHT_TOLERANCE = 0.1
MEAN_WEIGHT_ERRORS = 4.0
# How far probabilities may be off through rounding: those of single-precision policies are.
ROUNDING = 1e-6
# A smaller propensity could only be a mistake, and the square of its weight overflows.
LEAST_PROPENSITY = 1e-100


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """`n` decisions of a policy that was live, n >= 1.

    `rewards`: shape (n,), in [0, 1]. `propensities`: shape (n,), in (0, 1], the probability with which the live policy
    took the option that it took. `targets`: shape (n,), in [0, 1], the target's probability of that same option.
    `unreachable`: in [0, 1], the target's mean probability of options that the live policy could not take; see
    `from_policies`. Raises ValueError if a shape or a range is another.
    """

    rewards: Floats
    propensities: Floats
    targets: Floats
    unreachable: float = 0.0

    def __post_init__(self) -> None:
        n = self.rewards.size
        if n == 0:
            raise ValueError("a log without decisions says nothing")
        _check("rewards", self.rewards, (n,), 0, 1)
        _check("propensities", self.propensities, (n,), LEAST_PROPENSITY, 1)
        _check("targets", self.targets, (n,), 0, 1)
        _check("unreachable", np.array(self.unreachable), (), 0, 1)

    @classmethod
    def from_policies(cls, rewards: Floats, options: Integers, logging: Floats, target: Floats) -> "Log":
        """The log where both policies are known in full: only this one can tell what the live policy could not take.

        `rewards`: shape (n,), in [0, 1]. `options`: shape (n,), the one taken, from 0 to k - 1. `logging`, `target`:
        shape (n, k), the distribution of the live policy and of the target at each decision; 0 for what was not on
        offer. Raises ValueError if a shape or a range is another, or a row does not sum to 1.
        """
        shape = (rewards.size, logging.shape[-1])
        _check_options(options, *shape)
        _check_policy("logging", logging, shape)
        _check_policy("target", target, shape)
        rows = np.arange(rewards.size)
        unreachable = float(np.where(logging > 0, 0.0, target).sum(axis=1).mean()) if rewards.size else 0.0
        return cls(rewards, logging[rows, options], target[rows, options], min(unreachable, 1.0))

    @property
    def weights(self) -> Floats:
        """How many decisions of the target each one stands for, shape (n,): the importance weights."""
        return self.targets / self.propensities

    @property
    def effective_sample_size(self) -> float:
        """Of how many decisions of its own the target would have told as much, in [0, n] (Owen 2013, chapter 9)."""
        shares = _over_largest(self.weights)
        return float(shares.sum()) ** 2 / float((shares**2).sum()) if shares.any() else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class RewardModel:
    """What a model predicts for the decisions of a log, on which it was not fitted.

    `options`: shape (n,), the one taken, from 0 to k - 1. `means`: shape (n, k), in [0, 1], the predicted mean reward
    of each option. `target`: shape (n, k), the target's distribution, 0 for what was not on offer. Raises ValueError if
    a shape or a range is another, or a row of `target` does not sum to 1.
    """

    options: Integers
    means: Floats
    target: Floats

    def __post_init__(self) -> None:
        shape = (self.options.size, self.means.shape[-1])
        _check_options(self.options, *shape)
        _check("means", self.means, shape, 0, 1)
        _check_policy("target", self.target, shape)

    @property
    def of_taken(self) -> Floats:
        """The prediction for the option that was taken, shape (n,)."""
        return self.means[np.arange(self.options.size), self.options]

    @property
    def of_target(self) -> Floats:
        """The mean prediction for what the target would take, shape (n,)."""
        expected: Floats = (self.target * self.means).sum(axis=1)
        return expected

    @property
    def targets(self) -> Floats:
        """The target's probability of the option that was taken, shape (n,)."""
        return self.target[np.arange(self.options.size), self.options]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean reward of the target: `value`, between the limits `low` and `high`, and how far to trust it.

    The limits are cut to [0, 1], where the truth lies, but always enclose `value`, which `ips`, `dr` and `sndr` can
    place outside. `effective_sample_size`: as in `Log`. `mean_weight`: 1 but for chance, if the propensities are right
    and the log covers the target. `refusal`: a sentence, if the estimate is worthless whatever its interval; None
    otherwise.
    """

    value: float
    low: float
    high: float
    effective_sample_size: float
    mean_weight: float
    largest_weight: float
    refusal: str | None


def ips(log: Log, *, alpha: float = 0.05) -> Estimate:
    """Inverse propensity scoring: the mean of the weighted rewards. Unbiased, and the least precise.

    `alpha`, in (0, 1): the chance that the interval misses. Source: Horvitz & Thompson 1952; Dudik et al. 2014.
    """
    terms = log.weights * log.rewards
    return _estimate(log, float(terms.mean()), terms, alpha)


def snips(log: Log, *, alpha: float = 0.05) -> Estimate:
    """Self-normalised inverse propensity scoring: the weighted mean of the rewards, hence in [0, 1]; 0 for no weight.

    `alpha`, in (0, 1): the chance that the interval misses. It is that of a ratio of means, by the delta method (Owen
    2013, chapter 9). Source: Swaminathan & Joachims 2015.
    """
    value, terms = _ratio(log.weights, log.rewards)
    return _estimate(log, value, terms, alpha)


def dm(log: Log, model: RewardModel, *, alpha: float = 0.05) -> Estimate:
    """The direct method: the mean of what the model predicts for the target. As biased as the model.

    `alpha`, in (0, 1): the chance that the interval misses, if the model is right, or is the mean reward of each option
    in each group of contexts. The spread of predictions alone would leave out what fitting them adds; that of the terms
    of `dr` does not (Hahn, "On the role of the propensity score in efficient semiparametric estimation of average
    treatment effects", Econometrica 1998). The bias of a wrong model is in neither.
    Raises ValueError if `log` and `model` are not of the same decisions. Source: Dudik et al. 2014.
    """
    return _estimate(log, float(model.of_target.mean()), _doubly_robust(log, model), alpha)


def dr(log: Log, model: RewardModel, *, alpha: float = 0.05) -> Estimate:
    """Doubly robust: the direct method, corrected by the weighted error of the model. Unbiased whatever the model.

    `alpha`, in (0, 1): the chance that the interval misses. Raises ValueError if `log` and `model` are not of the same
    decisions. Source: Dudik et al. 2014.
    """
    terms = _doubly_robust(log, model)
    return _estimate(log, float(terms.mean()), terms, alpha)


def sndr(log: Log, model: RewardModel, *, alpha: float = 0.05) -> Estimate:
    """Self-normalised doubly robust: `dr` with the correction of `snips`, for weights that do not average 1 by chance.

    `alpha`, in (0, 1): the chance that the interval misses, by the delta method. Without any weight it is `dm`. Raises
    ValueError if `log` and `model` are not of the same decisions. Source: Thomas & Brunskill, "Data-efficient
    off-policy policy evaluation for reinforcement learning", ICML 2016 (weighted doubly robust, with one step).
    """
    _check_pair(log, model)
    correction, terms = _ratio(log.weights, log.rewards - model.of_taken)
    return _estimate(log, float(model.of_target.mean()) + correction, model.of_target + terms, alpha)


def cross_fitted_means(
    rewards: Floats,
    options: Integers,
    folds: Integers,
    *,
    n_options: int,
    groups: Integers | None = None,
    strength: float = 1.0,
) -> Floats:
    """The mean reward of each option at each decision, in [0, 1], from the other folds: shape (n, n_options).

    A model fitted on the very decisions that it predicts has seen their luck, and the estimates would repeat it.

    `rewards`: shape (n,), in [0, 1]. `options`: shape (n,), the one taken, from 0 to n_options - 1. `folds`: shape
    (n,), at least two whole numbers, such as a hash of the user modulo 5: decisions that depend on each other belong in
    one. `groups`: shape (n,), whole numbers; where given, a mean is of the option in that group of contexts only.
    `strength`, above 0: how many imagined decisions, all of the overall mean, each mean starts from; one that no
    decision joins stays there. Raises ValueError if a shape or a range is another. Takes time proportional to n times
    the number of folds.
    """
    n = rewards.size
    _check("rewards", rewards, (n,), 0, 1)
    _check_options(options, n, n_options)
    _check_labels("folds", folds, n)
    if groups is None:
        groups = np.zeros(n, np.intp)
    _check_labels("groups", groups, n)
    if not 0 < strength < math.inf:
        raise ValueError("strength must be a number above 0")
    labels = np.unique(folds)
    if labels.size <= 1:
        raise ValueError("cross-fitting needs decisions in at least two folds")
    kinds, group = np.unique(groups, return_inverse=True)
    cells = group * n_options + options
    predicted = np.empty((n, n_options))
    for label in labels:
        held_out = folds == label
        seen, earned = cells[~held_out], rewards[~held_out]
        counts = np.bincount(seen, minlength=kinds.size * n_options)
        totals = np.bincount(seen, weights=earned, minlength=kinds.size * n_options)
        means = (totals + strength * earned.mean()) / (counts + strength)
        predicted[held_out] = means.reshape(kinds.size, n_options)[group[held_out]]
    return predicted


def _doubly_robust(log: Log, model: RewardModel) -> Floats:
    """The prediction for the target, corrected by the weighted error of that for the option taken, shape (n,)."""
    _check_pair(log, model)
    return model.of_target + log.weights * (log.rewards - model.of_taken)


def _over_largest(weights: Floats) -> Floats:
    """The weights over the largest of them, so that squares of the smallest do not vanish; zeros stay."""
    return weights / (float(weights.max()) or 1.0)


def _ratio(weights: Floats, values: Floats) -> tuple[float, Floats]:
    """The weighted mean of `values`, and what each decision adds to its error, shape (n,); 0 for no weight."""
    shares = _over_largest(weights)
    total = float(shares.sum()) or 1.0
    mean = float((shares * values).sum()) / total
    return mean, shares * (values - mean) / (total / shares.size)


def _estimate(log: Log, value: float, terms: Floats, alpha: float) -> Estimate:
    """The estimate whose error is that of the mean of `terms`, shape (n,)."""
    weights, n = log.weights, terms.size
    half = math.inf  # of one decision, or of none that counts, nothing is known
    if n > 1 and weights.any():
        half = -float(special.ndtri(alpha / 2)) * float(terms.std(ddof=1)) / math.sqrt(n)
    return Estimate(
        value,
        max(value - half, min(value, 0.0)),
        min(value + half, max(value, 1.0)),
        log.effective_sample_size,
        float(weights.mean()),
        float(weights.max()),
        _refusal(log),
    )


def _refusal(log: Log) -> str | None:
    if log.unreachable > ROUNDING:
        share = f"{log.unreachable:.2g}"
        return f"The target takes options that the log could not take, with a mean probability of {share}."
    weights, effective = log.weights, log.effective_sample_size
    if not weights.any():
        return "The target never takes an option that the log took."
    if effective < LEAST_EFFECTIVE:
        counted = f"{math.floor(effective)} decisions of the target"
        return f"The log tells no more than {counted} would, and {LEAST_EFFECTIVE:.0f} are the least."
    mean, error = float(weights.mean()), float(weights.std(ddof=1)) / math.sqrt(weights.size)
    if abs(mean - 1) > max(MEAN_WEIGHT_TOLERANCE, MEAN_WEIGHT_ERRORS * error):
        return f"The mean weight is {mean:.2f} instead of 1: propensities are wrong, or options are missing in the log."
    if log.rewards.min() == log.rewards.max():
        return "Every decision earned the same reward, so that nothing is known of how rewards vary."
    return None


def _check(name: str, values: Floats, shape: tuple[int, ...], low: float, high: float) -> None:
    if values.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, not {values.shape}")
    # Written so that NaN fails.
    if values.size and not (low <= values.min() and values.max() <= high):
        raise ValueError(f"{name} must be numbers from {low:g} to {high:g}")


def _check_policy(name: str, policy: Floats, shape: tuple[int, int]) -> None:
    _check(name, policy, shape, 0, 1)
    if not (abs(policy.sum(axis=1) - 1) <= ROUNDING).all():
        raise ValueError(f"{name} must sum to 1 at each decision")


def _check_options(options: Integers, n: int, n_options: int) -> None:
    _check_labels("options", options, n)
    if n and not (options.min() >= 0 and options.max() < n_options):
        raise ValueError(f"options must be from 0 to {n_options - 1}")


def _check_labels(name: str, labels: Integers, n: int) -> None:
    if labels.shape != (n,):
        raise ValueError(f"{name} must have the shape {(n,)}, not {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} must be whole numbers")


def _check_pair(log: Log, model: RewardModel) -> None:
    if model.options.size != log.rewards.size:
        raise ValueError(f"the model predicts {model.options.size} decisions, and the log has {log.rewards.size}")
    if not (abs(model.targets - log.targets) <= ROUNDING).all():
        raise ValueError("the log and the model differ in the target's probability of the option taken")
