"""Anytime-valid sample-ratio test: whether versions occur as often as their logged propensities say."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from ml.experiments.arrays import Floats

ALARM_LEVEL = 0.001
"""Versions differ when the p-value is below it: the probability that a series of looks ever alarms falsely."""

_SMALLEST, _LARGEST, _SCALE = 0.002, math.log(4), 0.03
"""Logarithms of odds ratios: the smallest and the largest alternative, and the scale of their prior."""


def _alternatives() -> tuple[Floats, Floats]:
    """Return the logarithms of the odds ratios of the mixture, and the logarithms of their weights.

    The weights are a Cauchy density: most are near 0, for small differences in much traffic, and its tails find a
    version that is mostly lost after few tips.
    """
    positive = np.geomspace(_SMALLEST, _LARGEST, 25)
    weights = np.gradient(positive) / (1 + (positive / _SCALE) ** 2)
    log_weights = np.log(np.tile(weights / weights.sum() / 2, 2))
    return np.concatenate([-positive, positive]), log_weights


_LOG_RATIOS, _LOG_WEIGHTS = _alternatives()


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """The result of the test.

    `observed`: the number of tips of each version. `expected`: the sum of its propensities. `p_value`: anytime-valid.
    """

    observed: Mapping[str, int]
    expected: Mapping[str, float]
    p_value: float

    @property
    def alarm(self) -> bool:
        """Whether tips of some versions were lost or added."""
        return self.p_value < ALARM_LEVEL


def sample_ratio(strata: Iterable[tuple[Mapping[str, float], Mapping[str, int]]]) -> SampleRatio:
    """Test whether tips are distributed over versions as their distributions say.

    `strata`: pairs of a distribution (the probability of each version) and the number of its tips of each version.
    Neither the split nor the order of strata matters. The p-value is 1 / e, at most 1, where e is the value of an
    e-process, so it is ever below alpha with at most the probability alpha, however often it is read, also when
    distributions depend on earlier tips (Lindon & Malek, "Anytime-valid inference for multinomial count data", NeurIPS
    2022; Ville's inequality).

    The e-process is a mixture of likelihood ratios. Dirichlet alternatives would need constant propensities. Instead
    the alternatives are, for each version v and a fixed set of r: v occurs with r times its odds. A tip under a
    distribution that gives v the probability p has the ratio r^[v was drawn] / (1 - p + r p), with the expected value
    1. With several tips per draw by systematic sampling it is at most 1, because the number of those of v is smaller
    in convex order than with independent draws. A version that was drawn with the probability 0 has the p-value 0.
    """
    observed: dict[str, int] = defaultdict(int)
    expected: dict[str, float] = defaultdict(float)
    log_likelihoods: dict[str, Floats] = defaultdict(lambda: np.zeros_like(_LOG_RATIOS))
    impossible = False
    for options, counts in strata:
        tips = sum(counts.values())
        impossible |= any(n and not options.get(version, 0.0) > 0 for version, n in counts.items())
        for version in options.keys() | counts.keys():
            probability, drawn = options.get(version, 0.0), counts.get(version, 0)
            observed[version] += drawn
            expected[version] += tips * probability
            log_likelihoods[version] += drawn * _LOG_RATIOS - tips * np.log1p(probability * np.expm1(_LOG_RATIOS))
    log_e = _log_mixture(log_likelihoods) if log_likelihoods else 0.0
    p_value = 0.0 if impossible else math.exp(min(0.0, -log_e))
    return SampleRatio(dict(sorted(observed.items())), dict(sorted(expected.items())), p_value)


def _log_mixture(log_likelihoods: Mapping[str, Floats]) -> float:
    """Return the logarithm of the mean likelihood ratio over versions, weighted over odds ratios."""
    values = np.array([*log_likelihoods.values()]) + _LOG_WEIGHTS
    return float(special.logsumexp(values)) - math.log(len(values))
