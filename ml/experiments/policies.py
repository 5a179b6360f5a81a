"""Policies that learn: from what each option earned so far to the probability of each, all of it to be logged."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml.experiments.assignment import Assignment, weighted
from ml.experiments.statistics import Sample, probability_best

Floats = npt.NDArray[np.float64]

FLOOR = 0.02
"""By default, how much of all chance is kept for exploring: without some, a log says nothing of what was left out."""


@dataclass(frozen=True, slots=True)
class Thompson:
    """Thompson sampling over few arms: each is taken with the probability that it is the best one, given its rewards.

    The posteriors are Beta, from a uniform prior, and the probabilities exact (`probability_best`), so they can be
    logged, and computed once for many decisions. Rewards are additive counts and may be as late as they like; an arm
    that is new is one of no rewards. `floor`, in [0, 1): the least probability of each arm; with k arms, k times
    `floor` must stay below 1. Source: Chapelle & Li, "An empirical evaluation of Thompson sampling", NeurIPS 2011.
    """

    floor: float = FLOOR

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError("floor must be in [0, 1)")

    def distribution(self, arms: Mapping[str, Sample]) -> dict[str, float]:
        """Return the probability of each arm: floor + (1 - k * floor) * P(best).

        Raises ValueError without arms, and for so many that nothing is left above their floors.
        """
        left = 1 - len(arms) * self.floor
        if not arms or left <= 0:
            raise ValueError("there must be at least one arm, and fewer than 1 / floor")
        best = probability_best([*arms.values()])
        return {arm: self.floor + left * probability for arm, probability in zip(arms, best, strict=True)}

    def choose(self, arms: Mapping[str, Sample], u: float) -> Assignment:
        """Draw an arm; `u`, uniform in [0, 1), is the only source of chance. Raises what `distribution` does."""
        return weighted(self.distribution(arms), u)


@dataclass(frozen=True, slots=True)
class SquareCB:
    """Inverse gap weighting: the further an option's predicted reward is below the best, the less often it is taken.

    `gamma`, above 0: how greedy; the probability of an option falls with `gamma` times its gap. `floor`, in [0, 1): the
    part of all decisions that is drawn uniformly. Source: Foster & Rakhlin, "Beyond UCB: optimal and efficient
    contextual bandits with regression oracles", ICML 2020, with mu = k.
    """

    gamma: float
    floor: float = FLOOR

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError("gamma must be a number above 0")
        if not 0 <= self.floor < 1:
            raise ValueError("floor must be in [0, 1)")

    def distribution(self, scores: Floats) -> Floats:
        """Return the probability of each option, shape (k,), none 0, from its predicted reward, shape (k,), k >= 1.

        The best one, the first of equals, has what the others leave. Raises ValueError without scores, or if one of
        them is not finite.
        """
        k = scores.size
        if scores.shape != (k,) or k == 0 or not np.isfinite(scores).all():
            raise ValueError("scores must be a row of at least one finite number")
        best = int(scores.argmax())
        probabilities = 1 / (k + self.gamma * (scores[best] - scores))
        probabilities[best] = 0
        probabilities[best] = 1 - probabilities.sum()
        mixed: Floats = (1 - self.floor) * probabilities + self.floor / k
        return mixed
