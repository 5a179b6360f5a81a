"""The log that off-policy evaluation reads: rewards, propensities and importance weights, by decision and by cluster.

Sources: Owen, "Monte Carlo theory, methods and examples", 2013, chapter 9 (weights, effective sample size); Kish,
"Survey sampling", 1965; Carter, Schnepel & Steigerwald, "Asymptotic behavior of a t-test robust to cluster
heterogeneity", Review of Economics and Statistics 2017 (effective number of clusters).
"""

import math
from dataclasses import dataclass

import numpy as np

from ml.experiments.arrays import (
    Floats,
    Integers,
    check_distributions,
    check_integers,
    check_option_indices,
    check_range,
)

# A smaller propensity could only be a mistake, and the square of its weight overflows.
MIN_PROPENSITY = 1e-100


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """`n` decisions of a live policy, n >= 1, as the target policy sees them.

    Parameters
        `rewards`: shape (n,), in [0, 1].
        `propensities`: shape (n,), in (0, 1], the live policy's probability of the option that it drew.
        `target_probabilities`: shape (n,), in [0, 1], the target policy's probability of the same option.
        `unreachable`: in [0, 1], the target's mean probability of options that the live policy could not draw. Only
        `from_policies` can compute it.
        `clusters`: shape (n,), integers, the cluster (user) of each decision. Decisions of one cluster may depend on
        each other. None: all decisions are independent.
    Raises
        ValueError for another shape or range.
    """

    rewards: Floats
    propensities: Floats
    target_probabilities: Floats
    unreachable: float = 0.0
    clusters: Integers | None = None

    def __post_init__(self) -> None:
        n = self.rewards.size
        if n == 0:
            raise ValueError("a log must have at least one decision")
        check_range("rewards", self.rewards, (n,), 0, 1)
        check_range("propensities", self.propensities, (n,), MIN_PROPENSITY, 1)
        check_range("target_probabilities", self.target_probabilities, (n,), 0, 1)
        check_range("unreachable", np.array(self.unreachable), (), 0, 1)
        if self.clusters is not None:
            check_integers("clusters", self.clusters, n)

    @classmethod
    def from_policies(
        cls, rewards: Floats, options: Integers, logging: Floats, target: Floats, clusters: Integers | None = None
    ) -> "Log":
        """Return the log of a live policy and a target policy that are both known in full.

        Parameters
            `rewards`, `clusters`: as in `Log`.
            `options`: shape (n,), the index of the option that was drawn, from 0 to k - 1.
            `logging`, `target`: shape (n, k), the distributions of the live policy and of the target at each decision;
            0 for an option that was not a candidate.
        Raises
            ValueError for another shape or range, or if a row does not sum to 1.
        """
        shape = (rewards.size, logging.shape[-1])
        check_option_indices(options, *shape)
        check_distributions("logging", logging, shape)
        check_distributions("target", target, shape)
        rows = np.arange(rewards.size)
        unreachable = float(np.where(logging > 0, 0.0, target).sum(axis=1).mean()) if rewards.size else 0.0
        return cls(rewards, logging[rows, options], target[rows, options], min(unreachable, 1.0), clusters)

    @property
    def weights(self) -> Floats:
        """The importance weights, shape (n,): target probability divided by propensity."""
        return self.target_probabilities / self.propensities


def effective_number(weights: Floats) -> float:
    """Return the number of equal weights that would be as informative (Kish 1965); 0 without any weight."""
    # Divided by a power of two, hence exactly: the squares of very small weights would be 0 otherwise.
    scaled = np.ldexp(weights, -math.frexp(weights.max())[1])
    return float(scaled.sum()) ** 2 / float((scaled**2).sum()) if scaled.any() else 0.0
