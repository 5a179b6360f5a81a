"""What a policy's decisions would have earned, by a model of the reward: the other half of off-policy evaluation."""

import math
from dataclasses import dataclass

import numpy as np

from ml.experiments.arrays import Floats, Integers, check, check_labels, check_options, check_policy


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
        check_options(self.options, *shape)
        check("means", self.means, shape, 0, 1)
        check_policy("target", self.target, shape)

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
    check("rewards", rewards, (n,), 0, 1)
    check_options(options, n, n_options)
    check_labels("folds", folds, n)
    if groups is None:
        groups = np.zeros(n, np.intp)
    check_labels("groups", groups, n)
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
