"""Models of the reward for off-policy evaluation: predicted rewards by decision and option.

A model fitted to the decisions that it predicts would repeat their noise, and bias the estimates. So each decision is
predicted from others: those of other folds (`cross_fitted_means`), or those before it (`running_means`).
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


@dataclass(frozen=True, slots=True, eq=False)
class RewardModel:
    """Predictions of a model for the n decisions of a log, on which it was not fitted.

    Parameters
        `options`: shape (n,), the index of the option that was drawn, from 0 to k - 1.
        `means`: shape (n, k), in [0, 1], the predicted mean reward of each option.
        `target`: shape (n, k), the target's distribution, 0 for an option that was not a candidate.
    Raises
        ValueError for another shape or range, or if a row of `target` does not sum to 1.
    """

    options: Integers
    means: Floats
    target: Floats

    def __post_init__(self) -> None:
        shape = (self.options.size, self.means.shape[-1])
        check_option_indices(self.options, *shape)
        check_range("means", self.means, shape, 0, 1)
        check_distributions("target", self.target, shape)

    @property
    def logged_predictions(self) -> Floats:
        """The prediction for the option that was drawn, shape (n,)."""
        return self.means[np.arange(self.options.size), self.options]

    @property
    def target_predictions(self) -> Floats:
        """The expected prediction under the target's distribution, shape (n,)."""
        expected: Floats = (self.target * self.means).sum(axis=1)
        return expected

    @property
    def target_probabilities(self) -> Floats:
        """The target's probability of the option that was drawn, shape (n,)."""
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
    """Return the mean reward of each option at each decision, from the decisions of the other folds.

    Parameters
        `rewards`: shape (n,), in [0, 1].
        `options`: shape (n,), the index of the option that was drawn, from 0 to `n_options` - 1.
        `folds`: shape (n,), at least two different integers, such as a hash of the user modulo 5. Decisions that depend
        on each other belong to the same fold.
        `groups`: shape (n,), integers. If given, each mean is of the option within that group of contexts.
        `strength`: above 0, the number of pseudo-observations, each equal to the overall mean, that are added to every
        mean. An option without decisions gets the overall mean.
    Returns
        Means in [0, 1], shape (n, n_options). Takes time proportional to n times the number of folds.
    Raises
        ValueError for another shape or range.
    """
    n = rewards.size
    check_range("rewards", rewards, (n,), 0, 1)
    check_option_indices(options, n, n_options)
    check_integers("folds", folds, n)
    if groups is None:
        groups = np.zeros(n, np.intp)
    check_integers("groups", groups, n)
    if not 0 < strength < math.inf:
        raise ValueError("strength must be a number above 0")
    fold_ids = np.unique(folds)
    if fold_ids.size <= 1:
        raise ValueError("cross-fitting needs decisions in at least two folds")
    group_ids, group_indices = np.unique(groups, return_inverse=True)
    cells = group_indices * n_options + options
    predicted = np.empty((n, n_options))
    for fold in fold_ids:
        held_out = folds == fold
        fitted_cells, fitted_rewards = cells[~held_out], rewards[~held_out]
        counts = np.bincount(fitted_cells, minlength=group_ids.size * n_options)
        totals = np.bincount(fitted_cells, weights=fitted_rewards, minlength=group_ids.size * n_options)
        means = (totals + strength * fitted_rewards.mean()) / (counts + strength)
        predicted[held_out] = means.reshape(group_ids.size, n_options)[group_indices[held_out]]
    return predicted


def running_means(
    rewards: Floats, options: Integers, *, n_options: int, groups: Integers | None = None, strength: float = 20.0
) -> Floats:
    """Return the mean reward of each option at each decision, from the decisions before it.

    Parameters
        `rewards`: shape (n,), in [0, 1], in the order of time.
        `options`: shape (n,), the index of the option that was drawn, from 0 to `n_options` - 1.
        `groups`: shape (n,), integers. If given, each mean is of the option within that group of contexts.
        `strength`: above 0, the number of pseudo-observations that are added to every mean. Those of an option within a
        group are equal to the mean of the option, and those of an option to the mean of all decisions so far, which
        starts at 0.5. So a small group is predicted by its options' means, without a rule that depends on its final
        size.
    Returns
        Means in [0, 1], shape (n, n_options). Row t depends on the first t - 1 rewards and options, and the first t
        groups. Takes time proportional to n times `n_options`.
    Raises
        ValueError for another shape or range.
    """
    n = rewards.size
    check_range("rewards", rewards, (n,), 0, 1)
    check_option_indices(options, n, n_options)
    if not 0 < strength < math.inf:
        raise ValueError("strength must be a number above 0")
    earlier_rewards, earlier_decisions = rewards.cumsum() - rewards, np.arange(n)
    overall = (earlier_rewards + 0.5) / (earlier_decisions + 1)
    means = _shrunk_running_means(rewards, options, np.tile(overall[:, None], n_options), strength)
    if groups is None:
        return means
    check_integers("groups", groups, n)
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        means[rows] = _shrunk_running_means(rewards[rows], options[rows], means[rows], strength)
    return means


def _shrunk_running_means(rewards: Floats, options: Integers, prior: Floats, strength: float) -> Floats:
    """Return the mean of each option before each decision, shrunk to `prior`, shape (n, k)."""
    drawn = np.zeros(prior.shape)
    drawn[np.arange(rewards.size), options] = 1
    earned = drawn * rewards[:, None]
    counts, totals = drawn.cumsum(axis=0) - drawn, earned.cumsum(axis=0) - earned
    # Clipped, since a difference of cumulative sums can be below 0 by a rounding error.
    means: Floats = np.clip((totals + strength * prior) / (counts + strength), 0.0, 1.0)
    return means
