"""Exploration: from predicted rewards to the probability of each option, so that no option is ever ruled out."""

import math
from dataclasses import dataclass

import numpy as np

from ml.experiments.arrays import Floats

FLOOR = 0.02
"""The default probability that is reserved for exploration; an option that is never drawn cannot be evaluated."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Scores and probabilities of n candidates, in their order.

    `scores`: the expected rewards, shape (n,), in [0, 1]. `probabilities`: shape (n,), all above 0, with the sum 1.
    """

    scores: Floats
    probabilities: Floats


@dataclass(frozen=True, slots=True)
class SquareCB:
    """Inverse gap weighting: the further an option's predicted reward is below the best, the lower its probability.

    `gamma`, above 0: the probability of an option falls with `gamma` times its gap, so a larger `gamma` explores less.
    `floor`, in [0, 1): the share of decisions that is drawn uniformly. Raises ValueError for other values. Source:
    Foster & Rakhlin, "Beyond UCB: optimal and efficient contextual bandits with regression oracles", ICML 2020, with
    mu = k.
    """

    gamma: float
    floor: float = FLOOR

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError("gamma must be a number above 0")
        if not 0 <= self.floor < 1:
            raise ValueError("floor must be in [0, 1)")

    def distribution(self, scores: Floats) -> Floats:
        """Return the probability of each option, shape (k,), all above 0.

        `scores`: the predicted rewards, shape (k,), k >= 1. The option with the highest score, the first one among
        equals, gets the probability that remains. Raises ValueError without scores, or if one is not finite.
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

    def distributions(self, scores: Floats) -> Floats:
        """Return the `distribution` of each row of `scores`, shape (n, k), equal to the last bit."""
        n, k = scores.shape
        if k == 0 or not np.isfinite(scores).all():
            raise ValueError("scores must be rows of at least one finite number")
        best = np.arange(n), scores.argmax(axis=1)
        probabilities = 1 / (k + self.gamma * (scores[best][:, None] - scores))
        probabilities[best] = 0
        probabilities[best] = 1 - probabilities.sum(axis=1)
        mixed: Floats = (1 - self.floor) * probabilities + self.floor / k
        return mixed
