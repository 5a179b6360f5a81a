"""Off-policy evaluation: estimates of a target policy's mean reward from decisions of the live policy.

`ips` and `snips` need a `Log` only. `dm`, `dr` and `sndr` need a model of the reward as well, see `reward_model`.
Prefer `sndr` or `dr`: they are consistent whatever the model, and precise if the model is good.

Every interval is that of a mean of per-decision terms, with known propensities, and is valid for a single look. If the
log has cluster ids, the terms of each cluster are summed, so that decisions of one cluster may depend on each other in
any way; clusters are independent. Otherwise decisions are.

Sources: Owen, "Monte Carlo theory, methods and examples", 2013, chapter 9 (weights, the delta method); Swaminathan &
Joachims, "The self-normalized estimator for counterfactual learning", NeurIPS 2015; Dudik, Erhan, Langford & Li,
"Doubly robust policy evaluation and optimization", Statistical Science 2014; Cameron & Miller, "A practitioner's guide
to cluster-robust inference", Journal of Human Resources 2015; Carter, Schnepel & Steigerwald, "Asymptotic behavior of a
t-test robust to cluster heterogeneity", Review of Economics and Statistics 2017.
"""

import math
from dataclasses import dataclass

from scipy import special

from ml.experiments.arrays import PROBABILITY_TOLERANCE, Floats, Integers
from ml.experiments.off_policy_log import Log, effective_number, scale_to_one, sum_by_cluster
from ml.experiments.reward_model import RewardModel
from ml.experiments.statistics import Interval

# An estimate with a smaller effective sample size is refused, since the normal approximation is not valid for it. At
# this size no single decision has more than a tenth of the total weight: its share is at most 1 / sqrt(size).
MIN_EFFECTIVE_SAMPLE_SIZE = 100.0
# The same for the effective number of clusters. With unequal activity (Zipf) and 12 to 40 effective clusters, 95 %
# intervals contained the true mean in only 85 to 91 % of simulated logs.
MIN_CLUSTERS = 40.0
# The same for the weighted rewards, and for the weighted rest up to 1. With fewer than 5, down to 90 % of the intervals
# contained the true mean; with at least 5, 93 % or more, for reward rates from 1 to 99 %.
MIN_REWARDED = 5.0
# The mean weight is refused if it differs from 1 by more than this, and by more than this number of standard errors:
# four, since weights are skewed.
MEAN_WEIGHT_TOLERANCE = 0.1
MEAN_WEIGHT_ERRORS = 4.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate of the target's mean reward, with its interval and diagnostics.

    `value`: the estimate. `low`, `high`: the limits of its interval, clipped to [0, 1], which contains the true mean,
    but always enclosing `value`, which `ips`, `dr` and `sndr` can place outside of [0, 1]. `gain`: the estimate minus
    the mean reward of the log. Its interval is that of the differences per decision, so it excludes the variance that
    both have in common. `effective_sample_size`: as in `Log`. `mean_weight`: its expectation is 1 if the propensities
    are right and the log covers the target. `largest_weight`: of one decision. `refusal`: a sentence that says why
    neither the estimate nor its interval is valid; None if they are.
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
    def gain_excludes_zero(self) -> bool:
        """Whether the estimate is valid and the interval of the gain, for a single look, excludes 0."""
        return self.refusal is None and (
            self.gain.low > PROBABILITY_TOLERANCE or self.gain.high < -PROBABILITY_TOLERANCE
        )


def ips(log: Log, *, alpha: float = 0.05) -> Estimate:
    """Estimate by inverse propensity scoring: the mean of the weighted rewards. Unbiased; has the largest variance.

    Parameters
        `alpha`: in (0, 1), the probability that the interval misses the true mean.
    Source
        Horvitz & Thompson, "A generalization of sampling without replacement from a finite universe", JASA 1952; Dudik
        et al. 2014.
    """
    terms = log.weights * log.rewards
    return _estimate(log, float(terms.mean()), terms, alpha)


def snips(log: Log, *, alpha: float = 0.05) -> Estimate:
    """Estimate by self-normalised inverse propensity scoring: the weighted mean of the rewards.

    Parameters
        `alpha`: in (0, 1), the probability that the interval misses the true mean. The interval is that of a ratio of
        means, by the delta method (Owen 2013, chapter 9).
    Returns
        An estimate in [0, 1]; 0 if all weights are 0.
    Source
        Swaminathan & Joachims 2015.
    """
    value, terms = _weighted_mean(log.weights, log.rewards)
    return _estimate(log, value, terms, alpha)


def dm(log: Log, model: RewardModel, *, alpha: float = 0.05) -> Estimate:
    """Estimate by the direct method: the mean prediction for the target. It has the bias of the model.

    Parameters
        `model`: predictions for the decisions of the log, for the same target.
        `alpha`: in (0, 1), the probability that the interval misses the true mean, if the model is right, or if it is
        the mean reward of each option in each group of contexts. The interval uses the terms of `dr`, which include the
        variance of fitting the model, unlike the variance of the predictions (Hahn, "On the role of the propensity
        score in efficient semiparametric estimation of average treatment effects", Econometrica 1998). It does not
        include the bias of a wrong model.
    Raises
        ValueError if `log` and `model` differ in their decisions or their target.
    Source
        Dudik et al. 2014.
    """
    return _estimate(log, float(model.target_predictions.mean()), _doubly_robust_terms(log, model), alpha)


def dr(log: Log, model: RewardModel, *, alpha: float = 0.05) -> Estimate:
    """Estimate by the doubly robust method: `dm` plus the weighted error of the model. Unbiased whatever the model.

    Parameters
        `model`: predictions for the decisions of the log, for the same target.
        `alpha`: in (0, 1), the probability that the interval misses the true mean.
    Raises
        ValueError if `log` and `model` differ in their decisions or their target.
    Source
        Dudik et al. 2014.
    """
    terms = _doubly_robust_terms(log, model)
    return _estimate(log, float(terms.mean()), terms, alpha)


def sndr(log: Log, model: RewardModel, *, alpha: float = 0.05) -> Estimate:
    """Estimate by the self-normalised doubly robust method: `dr` with weights that are divided by their mean.

    Parameters
        `model`: predictions for the decisions of the log, for the same target.
        `alpha`: in (0, 1), the probability that the interval misses the true mean, by the delta method.
    Returns
        The estimate of `dm` if all weights are 0.
    Raises
        ValueError if `log` and `model` differ in their decisions or their target.
    Source
        Thomas & Brunskill, "Data-efficient off-policy policy evaluation for reinforcement learning", ICML 2016
        (weighted doubly robust, with one step).
    """
    _check_same_decisions(log, model)
    correction, terms = _weighted_mean(log.weights, log.rewards - model.logged_predictions)
    value = float(model.target_predictions.mean()) + correction
    return _estimate(log, value, model.target_predictions + terms, alpha)


def _doubly_robust_terms(log: Log, model: RewardModel) -> Floats:
    """Return the prediction for the target plus the weighted error for the drawn option, shape (n,)."""
    _check_same_decisions(log, model)
    return model.target_predictions + log.weights * (log.rewards - model.logged_predictions)


def _check_same_decisions(log: Log, model: RewardModel) -> None:
    if model.options.size != log.rewards.size:
        raise ValueError(f"the model predicts {model.options.size} decisions, and the log has {log.rewards.size}")
    if not (abs(model.target_probabilities - log.target_probabilities) <= PROBABILITY_TOLERANCE).all():
        raise ValueError("the log and the model differ in the target's probability of the drawn option")


def _weighted_mean(weights: Floats, values: Floats) -> tuple[float, Floats]:
    """Return the weighted mean of `values`, and its linearised error by decision, shape (n,); 0 without any weight."""
    scaled = scale_to_one(weights)
    total = float(scaled.sum()) or 1.0
    mean = float((scaled * values).sum()) / total
    return mean, scaled * (values - mean) / (total / scaled.size)


def _estimate(log: Log, value: float, terms: Floats, alpha: float) -> Estimate:
    """Return the estimate `value`, whose error is that of the mean of `terms`, shape (n,)."""
    weights = log.weights
    half_width = _half_width(log, terms, alpha)
    gain, gain_half_width = value - float(log.rewards.mean()), _half_width(log, terms - log.rewards, alpha)
    return Estimate(
        value,
        max(value - half_width, min(value, 0.0)),
        min(value + half_width, max(value, 1.0)),
        Interval(gain, max(gain - gain_half_width, min(gain, -1.0)), min(gain + gain_half_width, max(gain, 1.0))),
        log.effective_sample_size,
        float(weights.mean()),
        float(weights.max()),
        _refusal(log),
    )


def _half_width(log: Log, terms: Floats, alpha: float) -> float:
    """Return half the width of the interval of the mean of `terms`, shape (n,).

    With clusters, by Student's distribution with the effective number of clusters minus 1 degrees of freedom, since the
    variance among few clusters is itself uncertain (Carter et al. 2017).
    """
    error = _standard_error(terms, log.clusters)
    if math.isinf(error) or not log.weights.any():
        return math.inf  # one cluster, or no weight: the error cannot be estimated
    if log.clusters is None:
        return -float(special.ndtri(alpha / 2)) * error
    return -float(special.stdtrit(max(log.effective_clusters - 1, 1.0), alpha / 2)) * error


def _standard_error(terms: Floats, clusters: Integers | None) -> float:
    """Return the standard error of the mean of `terms`, shape (n,); infinite for one cluster.

    Source: Liang & Zeger, "Longitudinal data analysis using generalized linear models", Biometrika 1986, with the
    correction for few clusters of Cameron & Miller 2015; without clusters it is the usual standard error.
    """
    sums = sum_by_cluster(terms - terms.mean(), clusters)
    m = sums.size
    return math.sqrt(float((sums**2).sum()) * m / (m - 1)) / terms.size if m > 1 else math.inf


def _refusal(log: Log) -> str | None:
    if log.unreachable > PROBABILITY_TOLERANCE:
        return (
            "The target draws options that the live policy could not draw, "
            f"with a mean probability of {log.unreachable:.2g}."
        )
    if not log.weights.any():
        return "The target has probability 0 for every option that the live policy drew."
    return _too_small(log) or mean_weight_refusal(log) or _constant_rewards(log) or _few_rewards(log)


def _too_small(log: Log) -> str | None:
    sample_size, clusters = log.effective_sample_size, log.effective_clusters
    if sample_size < MIN_EFFECTIVE_SAMPLE_SIZE:
        return (
            f"The effective sample size is {math.floor(sample_size)} decisions; "
            f"at least {MIN_EFFECTIVE_SAMPLE_SIZE:.0f} are needed."
        )
    if log.weights.min() < log.weights.max() and log.effective_contrast < MIN_EFFECTIVE_SAMPLE_SIZE:
        return (
            f"The difference between both policies rests on {math.floor(log.effective_contrast)} decisions; "
            f"at least {MIN_EFFECTIVE_SAMPLE_SIZE:.0f} are needed."
        )
    if log.clusters is not None and clusters < MIN_CLUSTERS:
        return f"The effective number of users is {math.floor(clusters)}; at least {MIN_CLUSTERS:.0f} are needed."
    return None


def mean_weight_refusal(log: Log) -> str | None:
    """Return a sentence if the mean weight is further from 1 than by chance, so that propensities cannot be right."""
    mean, error = float(log.weights.mean()), _standard_error(log.weights, log.clusters)
    if abs(mean - 1) <= max(MEAN_WEIGHT_TOLERANCE, MEAN_WEIGHT_ERRORS * error):
        return None
    return f"The mean weight is {mean:.2f} instead of 1: propensities are wrong, or options are missing in the log."


def _constant_rewards(log: Log) -> str | None:
    if log.rewards.min() < log.rewards.max():
        return None
    return "All decisions have the same reward, so the variance of rewards is unknown."


def _few_rewards(log: Log) -> str | None:
    for name, values in (("rewarded", log.rewards), ("unrewarded", 1 - log.rewards)):
        number = effective_number(log.weights * values)
        if number < MIN_REWARDED:
            return (
                f"The effective number of {name} decisions is {math.floor(number)}; "
                f"at least {MIN_REWARDED:.0f} are needed."
            )
    return None
