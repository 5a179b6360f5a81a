"""Anytime-valid test whether tips of a version fail more often than those of the baseline: for errors and latency.

If both fail equally often, a failed tip is one of the other version with the probability q that the other version was
drawn, given that one of both was. So only failed tips are counted, and their number is compared with the sum of q: a
few failures of a version with a small share are enough, many fewer tips than `difference_limits` needs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import special

from ml.experiments.comparison import Stratum, pair_weights

_ODDS_RATIOS = np.geomspace(1.25, 30, 20)
"""The alternatives: the odds that a failed tip is one of the other version, relative to those of the null. With the
largest of 30, one failure at a share of 1 % is no evidence yet, and none of the benchmarks needs more tips than with
100 or 1,000.
"""


@dataclass(frozen=True, slots=True)
class FailureExcess:
    """The result of the test.

    `observed`: the failed tips of the other version. `expected`: their number if both versions failed equally often, or
    as tolerated. `p_value`: anytime-valid.
    """

    observed: float
    expected: float
    p_value: float


def failure_excess(strata: Iterable[Stratum], baseline: str, other: str, *, tolerated: float = 1.0) -> FailureExcess:
    """Test whether the other version fails more than `tolerated` times as often as the baseline.

    If it never does, the p-value is ever below alpha with at most the probability alpha, however often it is read, also
    when failure rates and shares change and depend on earlier tips: each failed tip has the likelihood ratio
    r^[other] / (1 - q + r q), with an expected value of at most 1 for every r > 1, and the p-value is 1 / e, at most 1,
    where e is the mean of their products over a fixed set of r (Ville's inequality; `sample_ratio` does the same for
    all tips). "Never" is stronger than "not in the mean", which `difference_limits` is about.

    Parameters
        `strata`: those of other versions, or whose options lack one of both, are left out. The reward of a tip is 1 if
        it failed, and 0 otherwise. Each draw has at most one tip: candidates of one draw could fail together.
        `tolerated`: at least 1, the largest ratio of the failure rates that is no harm.
    """
    observed = expected = 0.0
    log_likelihoods = np.zeros_like(_ODDS_RATIOS)
    for stratum in strata:
        weights = pair_weights(stratum.options, other, baseline, other)
        if stratum.version not in {baseline, other} or weights is None:
            continue
        share = 1 - weights[0]
        null = tolerated * share / (1 - share + tolerated * share)
        failures, is_other = stratum.rewards.total, stratum.version == other
        observed += failures * is_other
        expected += failures * null
        log_likelihoods += failures * (is_other * np.log(_ODDS_RATIOS) - np.log1p(null * (_ODDS_RATIOS - 1)))
    log_e = float(special.logsumexp(log_likelihoods)) - math.log(_ODDS_RATIOS.size)
    return FailureExcess(observed, expected, math.exp(min(0.0, -log_e)))
