"""What a policy would have earned, from decisions that another policy took: off-policy evaluation.

The *target* is the policy that is judged; the *log* holds decisions of the policy that was live, with the propensity of
each. `ips` and `snips` need only these. `dm`, `dr` and `sndr` need a model of the reward as well: see `reward_model`.
`sndr` and `dr` are the ones to look at first: they stay right if the model is wrong, and are narrow if it is good.

Every interval is that of a mean of per-decision terms, with propensities that are known, not fitted, and holds for one
look. Where the log says whose each decision was, what one person makes of several may be as alike as it wants: the
terms of each are summed, and people count as independent of each other. Otherwise decisions do.

Sources: Owen, "Monte Carlo theory, methods and examples", 2013, chapter 9 (weights, effective sample size, the delta
method); Swaminathan & Joachims, "The self-normalized estimator for counterfactual learning", NeurIPS 2015; Dudik,
Erhan, Langford & Li, "Doubly robust policy evaluation and optimization", Statistical Science 2014; Cameron & Miller, "A
practitioner's guide to cluster-robust inference", Journal of Human Resources 2015; Carter, Schnepel & Steigerwald,
"Asymptotic behavior of a t-test robust to cluster heterogeneity", Review of Economics and Statistics 2017 (the
effective number of clusters).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from ml.experiments.arrays import ROUNDING, Floats, Integers, check, check_labels, check_options, check_policy
from ml.experiments.reward_model import RewardModel
from ml.experiments.statistics import Interval

# An effective sample size below this is refused: normal approximations of fewer are not to be trusted. At this size no
# single decision can hold more than a tenth of all the weight, since its share is at most 1 / sqrt(size).
MIN_EFFECTIVE_SAMPLE_SIZE = 100.0
# Likewise of people, whose decisions depend on each other.
MIN_CLUSTERS = 20.0
# The mean weight is refused if it is off 1 by more than this, and by more standard errors than chance explains. Weights
# are skewed, hence four.
MEAN_WEIGHT_TOLERANCE = 0.1
MEAN_WEIGHT_ERRORS = 4.0
# A smaller propensity could only be a mistake, and the square of its weight overflows.
MIN_PROPENSITY = 1e-100


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """`n` decisions of a policy that was live, n >= 1.

    `rewards`: shape (n,), in [0, 1]. `propensities`: shape (n,), in (0, 1], the probability with which the live policy
    took the option that it took. `targets`: shape (n,), in [0, 1], the target's probability of that same option.
    `unreachable`: in [0, 1], the target's mean probability of options that the live policy could not take; see
    `from_policies`. `people`: shape (n,), whole numbers, whose each decision was; None: each was somebody else's.
    Raises ValueError if a shape or a range is another.
    """

    rewards: Floats
    propensities: Floats
    targets: Floats
    unreachable: float = 0.0
    people: Integers | None = None

    def __post_init__(self) -> None:
        n = self.rewards.size
        if n == 0:
            raise ValueError("a log without decisions says nothing")
        check("rewards", self.rewards, (n,), 0, 1)
        check("propensities", self.propensities, (n,), MIN_PROPENSITY, 1)
        check("targets", self.targets, (n,), 0, 1)
        check("unreachable", np.array(self.unreachable), (), 0, 1)
        if self.people is not None:
            check_labels("people", self.people, n)

    @classmethod
    def from_policies(
        cls, rewards: Floats, options: Integers, logging: Floats, target: Floats, people: Integers | None = None
    ) -> "Log":
        """The log where both policies are known in full: only this one can tell what the live policy could not take.

        `rewards`: shape (n,), in [0, 1]. `options`: shape (n,), the one taken, from 0 to k - 1. `logging`, `target`:
        shape (n, k), the distribution of the live policy and of the target at each decision; 0 for what was not on
        offer. `people`: as in `Log`. Raises ValueError if a shape or a range is another, or a row does not sum to 1.
        """
        shape = (rewards.size, logging.shape[-1])
        check_options(options, *shape)
        check_policy("logging", logging, shape)
        check_policy("target", target, shape)
        rows = np.arange(rewards.size)
        unreachable = float(np.where(logging > 0, 0.0, target).sum(axis=1).mean()) if rewards.size else 0.0
        return cls(rewards, logging[rows, options], target[rows, options], min(unreachable, 1.0), people)

    @property
    def weights(self) -> Floats:
        """How many decisions of the target each one stands for, shape (n,): the importance weights."""
        return self.targets / self.propensities

    @property
    def effective_sample_size(self) -> float:
        """Of how many decisions of its own the target would have told as much, in [0, n] (Owen 2013, chapter 9)."""
        return _effective(self.weights)

    @property
    def effective_clusters(self) -> float:
        """Of how many people, each with as much weight, the target would have told as much (Carter et al. 2017)."""
        return _effective(_by_person(_scaled(self.weights), self.people))


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean reward of the target: `value`, between the limits `low` and `high`, and how far to trust it.

    The limits are cut to [0, 1], where the truth lies, but always enclose `value`, which `ips`, `dr` and `sndr` can
    place outside. `gain`: how much more that is than the log earned, from differences decision by decision: what both
    owe to the luck of the same decisions is not in its interval. `effective_sample_size`: as in `Log`. `mean_weight`: 1
    but for chance, if the propensities are right and the log covers the target. `refusal`: a sentence, if the estimate
    is worthless whatever its interval; None otherwise.
    """

    value: float
    low: float
    high: float
    gain: Interval
    effective_sample_size: float
    mean_weight: float
    largest_weight: float
    refusal: str | None

    @property
    def is_significant(self) -> bool:
        """Whether the target is known to earn another reward than the log did, and so whether more, or less."""
        return self.refusal is None and (self.gain.low > ROUNDING or self.gain.high < -ROUNDING)


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


def _doubly_robust(log: Log, model: RewardModel) -> Floats:
    """The prediction for the target, corrected by the weighted error of that for the option taken, shape (n,)."""
    _check_pair(log, model)
    return model.of_target + log.weights * (log.rewards - model.of_taken)


def _scaled(weights: Floats) -> Floats:
    """The weights, the largest of them about 1, so that squares do not vanish: by a power of two, thus exactly."""
    return np.ldexp(weights, -math.frexp(weights.max())[1])


def _effective(weights: Floats) -> float:
    """How many equal weights tell as much (Kish 1965)."""
    shares = _scaled(weights)
    return float(shares.sum()) ** 2 / float((shares**2).sum()) if shares.any() else 0.0


def _by_person(values: Floats, people: Integers | None) -> Floats:
    """The sum of each person's values."""
    if people is None:
        return values
    _, places = np.unique(people, return_inverse=True)
    return np.bincount(places, weights=values).astype(np.float64)


def _ratio(weights: Floats, values: Floats) -> tuple[float, Floats]:
    """The weighted mean of `values`, and what each decision adds to its error, shape (n,); 0 for no weight."""
    shares = _scaled(weights)
    total = float(shares.sum()) or 1.0
    mean = float((shares * values).sum()) / total
    return mean, shares * (values - mean) / (total / shares.size)


def _estimate(log: Log, value: float, terms: Floats, alpha: float) -> Estimate:
    """The estimate whose error is that of the mean of `terms`, shape (n,)."""
    weights = log.weights
    half = _half(log, terms, alpha)
    gain, half_gain = value - float(log.rewards.mean()), _half(log, terms - log.rewards, alpha)
    return Estimate(
        value,
        max(value - half, min(value, 0.0)),
        min(value + half, max(value, 1.0)),
        Interval(gain, max(gain - half_gain, min(gain, -1.0)), min(gain + half_gain, max(gain, 1.0))),
        log.effective_sample_size,
        float(weights.mean()),
        float(weights.max()),
        _refusal(log),
    )


def _half(log: Log, terms: Floats, alpha: float) -> float:
    """Half the width of the interval of the mean of `terms`, shape (n,).

    With people, of Student's distribution for as many as there are effectively: the variance among few is itself not
    well known (Carter et al. 2017).
    """
    error = _standard_error(terms, log.people)
    if math.isinf(error) or not log.weights.any():
        return math.inf  # of one decision, or of none that counts, nothing is known
    if log.people is None:
        return -float(special.ndtri(alpha / 2)) * error
    return -float(special.stdtrit(max(log.effective_clusters - 1, 1.0), alpha / 2)) * error


def _standard_error(terms: Floats, people: Integers | None) -> float:
    """That of the mean of `terms`, shape (n,); infinite for one person.

    Source: Liang & Zeger, "Longitudinal data analysis using generalized linear models", Biometrika 1986, with the
    correction for few people of Cameron & Miller 2015; without people, it is the usual one.
    """
    sums = _by_person(terms - terms.mean(), people)
    m = sums.size
    return math.sqrt(float((sums**2).sum()) * m / (m - 1)) / terms.size if m > 1 else math.inf


def _refusal(log: Log) -> str | None:
    if log.unreachable > ROUNDING:
        share = f"{log.unreachable:.2g}"
        return f"The target takes options that the log could not take, with a mean probability of {share}."
    if not log.weights.any():
        return "The target never takes an option that the log took."
    return _too_few(log) or _wrong_weights(log) or _no_variation(log)


def _too_few(log: Log) -> str | None:
    decisions, people = log.effective_sample_size, log.effective_clusters
    if decisions < MIN_EFFECTIVE_SAMPLE_SIZE:
        counted = f"{math.floor(decisions)} decisions of the target"
        return f"The log tells no more than {counted} would, and {MIN_EFFECTIVE_SAMPLE_SIZE:.0f} are the least."
    if log.people is not None and people < MIN_CLUSTERS:
        counted = f"the target would for {math.floor(people)} people"
        return f"The log tells no more than {counted}, and {MIN_CLUSTERS:.0f} are the least."
    return None


def _wrong_weights(log: Log) -> str | None:
    mean, error = float(log.weights.mean()), _standard_error(log.weights, log.people)
    if abs(mean - 1) <= max(MEAN_WEIGHT_TOLERANCE, MEAN_WEIGHT_ERRORS * error):
        return None
    return f"The mean weight is {mean:.2f} instead of 1: propensities are wrong, or options are missing in the log."


def _no_variation(log: Log) -> str | None:
    if log.rewards.min() < log.rewards.max():
        return None
    return "Every decision earned the same reward, so that nothing is known of how rewards vary."


def _check_pair(log: Log, model: RewardModel) -> None:
    if model.options.size != log.rewards.size:
        raise ValueError(f"the model predicts {model.options.size} decisions, and the log has {log.rewards.size}")
    if not (abs(model.targets - log.targets) <= ROUNDING).all():
        raise ValueError("the log and the model differ in the target's probability of the option taken")
