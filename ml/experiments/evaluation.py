"""Off-policy evaluation: estimates of a target policy's mean reward from decisions of the live policy.

Each follows from the sums of a log by cluster (`OffPolicySums`), so that the log may be larger than memory. `dm`,
`dr` and `sndr` need a model of the reward, see `reward_model`. Prefer `sndr` or `dr`: they are consistent whatever the
model, and precise if the model is good.

Every interval is that of a mean of per-decision terms, with known propensities, and is valid for a single look. The
terms of each cluster are summed, so that decisions of one cluster may depend on each other in any way; clusters are
independent.

Sources: Owen, "Monte Carlo theory, methods and examples", 2013, chapter 9 (weights, the delta method); Swaminathan &
Joachims, "The self-normalized estimator for counterfactual learning", NeurIPS 2015; Dudik, Erhan, Langford & Li,
"Doubly robust policy evaluation and optimization", Statistical Science 2014; Cameron & Miller, "A practitioner's guide
to cluster-robust inference", Journal of Human Resources 2015; Carter, Schnepel & Steigerwald, "Asymptotic behavior of a
t-test robust to cluster heterogeneity", Review of Economics and Statistics 2017.
"""

import math
from dataclasses import dataclass

from scipy import special

from ml.experiments.arrays import PROBABILITY_TOLERANCE, Floats
from ml.experiments.off_policy_sums import OffPolicySums
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
    both have in common. `effective_sample_size`, `mean_weight`: as in `OffPolicySums`. `largest_weight`: of one
    decision. `refusal`: a sentence that says why neither the estimate nor its interval is valid; None if they are.
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


def ips(sums: OffPolicySums, *, alpha: float = 0.05) -> Estimate:
    """Estimate by inverse propensity scoring: the mean of the weighted rewards. Unbiased; has the largest variance.

    Parameters
        `alpha`: in (0, 1), the probability that the interval misses the true mean.
    Source
        Horvitz & Thompson, "A generalization of sampling without replacement from a finite universe", JASA 1952; Dudik
        et al. 2014.
    """
    terms = sums.weighted_rewards
    return _estimate(sums, sums.mean(terms), terms, alpha)


def snips(sums: OffPolicySums, *, alpha: float = 0.05) -> Estimate:
    """Estimate by self-normalised inverse propensity scoring: the weighted mean of the rewards.

    Parameters
        `alpha`: in (0, 1), the probability that the interval misses the true mean. The interval is that of a ratio of
        means, by the delta method (Owen 2013, chapter 9).
    Returns
        An estimate in [0, 1]; 0 if all weights are 0.
    Source
        Swaminathan & Joachims 2015.
    """
    value, terms = sums.weighted_mean_of_rewards()
    return _estimate(sums, value, terms, alpha)


def dm(sums: OffPolicySums, *, alpha: float = 0.05) -> Estimate:
    """Estimate by the direct method: the mean prediction for the target. It has the bias of the model.

    Parameters
        `alpha`: in (0, 1), the probability that the interval misses the true mean, if the model is right, or if it is
        the mean reward of each option in each group of contexts. The interval uses the terms of `dr`, which include the
        variance of fitting the model, unlike the variance of the predictions (Hahn, "On the role of the propensity
        score in efficient semiparametric estimation of average treatment effects", Econometrica 1998). It does not
        include the bias of a wrong model.
    Raises
        ValueError if `sums` have no model.
    Source
        Dudik et al. 2014.
    """
    return _estimate(sums, sums.mean(sums.target_predictions), _doubly_robust_terms(sums), alpha)


def dr(sums: OffPolicySums, *, alpha: float = 0.05) -> Estimate:
    """Estimate by the doubly robust method: `dm` plus the weighted error of the model. Unbiased whatever the model.

    Parameters
        `alpha`: in (0, 1), the probability that the interval misses the true mean.
    Raises
        ValueError if `sums` have no model.
    Source
        Dudik et al. 2014.
    """
    terms = _doubly_robust_terms(sums)
    return _estimate(sums, sums.mean(terms), terms, alpha)


def sndr(sums: OffPolicySums, *, alpha: float = 0.05) -> Estimate:
    """Estimate by the self-normalised doubly robust method: `dr` with weights that are divided by their mean.

    Parameters
        `alpha`: in (0, 1), the probability that the interval misses the true mean, by the delta method.
    Returns
        The estimate of `dm` if all weights are 0.
    Raises
        ValueError if `sums` have no model.
    Source
        Thomas & Brunskill, "Data-efficient off-policy policy evaluation for reinforcement learning", ICML 2016
        (weighted doubly robust, with one step).
    """
    correction, terms = sums.weighted_mean_of_errors()
    return _estimate(sums, sums.mean(sums.target_predictions) + correction, sums.target_predictions + terms, alpha)


def _doubly_robust_terms(sums: OffPolicySums) -> Floats:
    """Return the prediction for the target plus the weighted error for the drawn option, summed by cluster."""
    return sums.target_predictions + sums.weighted_errors


def _estimate(sums: OffPolicySums, value: float, terms: Floats, alpha: float) -> Estimate:
    """Return the estimate `value`, whose error is that of the mean of `terms`, which are sums by cluster."""
    half_width = _half_width(sums, terms, alpha)
    gain, gain_half_width = value - sums.mean_reward, _half_width(sums, terms - sums.rewards, alpha)
    return Estimate(
        value,
        max(value - half_width, min(value, 0.0)),
        min(value + half_width, max(value, 1.0)),
        Interval(gain, max(gain - gain_half_width, min(gain, -1.0)), min(gain + gain_half_width, max(gain, 1.0))),
        sums.effective_sample_size,
        sums.mean_weight,
        sums.largest_weight,
        _refusal(sums),
    )


def _half_width(sums: OffPolicySums, terms: Floats, alpha: float) -> float:
    """Return half the width of the interval of the mean of `terms`, which are sums by cluster.

    With clusters, by Student's distribution with the effective number of clusters minus 1 degrees of freedom, since the
    variance among few clusters is itself uncertain (Carter et al. 2017).
    """
    error = sums.standard_error(terms)
    if math.isinf(error) or not sums.largest_weight:
        return math.inf  # one cluster, or no weight: the error cannot be estimated
    if sums.are_independent:
        return -float(special.ndtri(alpha / 2)) * error
    return -float(special.stdtrit(max(sums.effective_clusters - 1, 1.0), alpha / 2)) * error


def _refusal(sums: OffPolicySums) -> str | None:
    if sums.unreachable > PROBABILITY_TOLERANCE:
        return (
            "The target draws options that the live policy could not draw, "
            f"with a mean probability of {sums.unreachable:.2g}."
        )
    if not sums.largest_weight:
        return "The target has probability 0 for every option that the live policy drew."
    return _too_small(sums) or mean_weight_refusal(sums) or _constant_rewards(sums) or _few_rewards(sums)


def _too_small(sums: OffPolicySums) -> str | None:
    sample_size, clusters = sums.effective_sample_size, sums.effective_clusters
    if sample_size < MIN_EFFECTIVE_SAMPLE_SIZE:
        return (
            f"The effective sample size is {math.floor(sample_size)} decisions; "
            f"at least {MIN_EFFECTIVE_SAMPLE_SIZE:.0f} are needed."
        )
    if sums.smallest_weight < sums.largest_weight and sums.effective_contrast < MIN_EFFECTIVE_SAMPLE_SIZE:
        return (
            f"The difference between both policies rests on {math.floor(sums.effective_contrast)} decisions; "
            f"at least {MIN_EFFECTIVE_SAMPLE_SIZE:.0f} are needed."
        )
    if not sums.are_independent and clusters < MIN_CLUSTERS:
        return f"The effective number of users is {math.floor(clusters)}; at least {MIN_CLUSTERS:.0f} are needed."
    return None


def mean_weight_refusal(sums: OffPolicySums) -> str | None:
    """Return a sentence if the mean weight is further from 1 than by chance, so that propensities cannot be right."""
    mean, error = sums.mean_weight, sums.standard_error(sums.weights)
    if abs(mean - 1) <= max(MEAN_WEIGHT_TOLERANCE, MEAN_WEIGHT_ERRORS * error):
        return None
    return f"The mean weight is {mean:.2f} instead of 1: propensities are wrong, or options are missing in the log."


def _constant_rewards(sums: OffPolicySums) -> str | None:
    if sums.lowest_reward < sums.highest_reward:
        return None
    return "All decisions have the same reward, so the variance of rewards is unknown."


def _few_rewards(sums: OffPolicySums) -> str | None:
    for name, number in (("rewarded", sums.effective_rewarded), ("unrewarded", sums.effective_unrewarded)):
        if number < MIN_REWARDED:
            return (
                f"The effective number of {name} decisions is {math.floor(number)}; "
                f"at least {MIN_REWARDED:.0f} are needed."
            )
    return None
