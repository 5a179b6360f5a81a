"""Models of the reward for off-policy evaluation: predicted rewards by decision and option.

A model fitted to the decisions that it predicts would repeat their noise, and bias the estimates. So each decision is
predicted from others: those of other folds (`CrossFittedMeans`), or those before it (`RunningMeans`). Both read a log
in chunks. Their sums are added up one decision after the other, so the sizes of the chunks do not change a bit of them.
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


class CrossFittedMeans:
    """The mean reward of each option in each group of contexts, from the decisions of other folds.

    `counts`, `totals`: the number of decisions and the sum of their rewards, shape (folds, groups, options).
    """

    def __init__(self, n_folds: int, n_options: int) -> None:
        """`n_folds`: at least 2. Decisions that depend on each other, such as those of a user, belong to one fold."""
        self.counts = np.zeros((n_folds, 0, n_options))
        self.totals = np.zeros((n_folds, 0, n_options))

    def add(self, rewards: Floats, options: Integers, folds: Integers, groups: Integers) -> None:
        """Add decisions; all arrays have the shape (n,).

        `rewards`: in [0, 1]. `options`: the index of the option that was drawn. `folds`, `groups`: indices; there are
        as many groups as the largest index needs. Raises ValueError for another shape or range.
        """
        n, (_, n_groups, n_options) = rewards.size, self.counts.shape
        check_range("rewards", rewards, (n,), 0, 1)
        check_option_indices(options, n, n_options)
        check_integers("folds", folds, n)
        check_integers("groups", groups, n)
        if n and (new_groups := int(groups.max()) + 1 - n_groups) > 0:
            more = ((0, 0), (0, new_groups), (0, 0))
            self.counts, self.totals = np.pad(self.counts, more), np.pad(self.totals, more)
        cells = np.ravel_multi_index((folds, groups, options), self.counts.shape)
        np.add.at(self.counts.reshape(-1), cells, 1.0)
        np.add.at(self.totals.reshape(-1), cells, rewards)

    def merged(self, groups: Integers) -> "CrossFittedMeans":
        """Return the sums with other groups: `groups` has the new index of each group."""
        n_folds, _, n_options = self.counts.shape
        sums = CrossFittedMeans(n_folds, n_options)
        shape = (n_folds, int(groups.max()) + 1, n_options)
        sums.counts, sums.totals = np.zeros(shape), np.zeros(shape)
        for group, merged_group in enumerate(groups.tolist()):
            sums.counts[:, merged_group] += self.counts[:, group]
            sums.totals[:, merged_group] += self.totals[:, group]
        return sums

    def means(self, *, strength: float = 1.0) -> Floats:
        """Return the means for the decisions of each fold, in [0, 1], shape (folds, groups, options).

        `strength`: above 0, the number of pseudo-observations, each equal to the overall mean, that are added to every
        mean. An option without decisions gets the overall mean. Raises ValueError for another strength, and if there
        are decisions in one fold only.
        """
        _check_strength(strength)
        if np.count_nonzero(self.counts.sum(axis=(1, 2))) <= 1:
            raise ValueError("cross-fitting needs decisions in at least two folds")
        means = np.empty(self.counts.shape)
        for fold in range(len(means)):
            # The sums of the others, and not all minus its own, so that no bit depends on the fold's own rewards.
            counts, totals = (np.delete(each, fold, axis=0).sum(axis=0) for each in (self.counts, self.totals))
            means[fold] = (totals + strength * (totals.sum() / counts.sum())) / (counts + strength)
        return means


def cross_fitted_means(
    rewards: Floats,
    options: Integers,
    folds: Integers,
    *,
    n_options: int,
    groups: Integers | None = None,
    strength: float = 1.0,
) -> Floats:
    """Return the means of `CrossFittedMeans` at each decision, shape (n, n_options).

    `rewards`, `options`: as of `CrossFittedMeans.add`. `folds`, `groups`: shape (n,), any integers; without `groups`
    there is one. `strength`: as of `CrossFittedMeans.means`. Raises ValueError for another shape or range.
    """
    n = rewards.size
    check_integers("folds", folds, n)
    groups = np.zeros(n, np.intp) if groups is None else groups
    check_integers("groups", groups, n)
    fold_ids, fold_indices = np.unique(folds, return_inverse=True)
    group_indices = np.unique(groups, return_inverse=True)[1]
    sums = CrossFittedMeans(fold_ids.size, n_options)
    sums.add(rewards, options, fold_indices, group_indices)
    predicted: Floats = sums.means(strength=strength)[fold_indices, group_indices]
    return predicted


class RunningMeans:
    """The mean reward of each option in each group of contexts, from earlier decisions.

    Pseudo-observations are added to every mean. Those of an option within a group are equal to the mean of the option,
    and those of an option to the mean of all decisions so far, which starts at 0.5. So a small group is predicted by
    its options' means, without a rule that depends on its final size.
    """

    def __init__(self, n_options: int, *, strength: float = 20.0) -> None:
        """`strength`: above 0, the number of pseudo-observations. Raises ValueError for another value."""
        _check_strength(strength)
        self._strength = strength
        # The number of decisions and the sum of their rewards, of all, by option, and by option in each group.
        self._all = np.zeros(2)
        self._by_option = np.zeros((2, n_options))
        self._by_group: dict[int, Floats] = {}

    def predict_and_add(self, rewards: Floats, options: Integers, groups: Integers | None = None) -> Floats:
        """Add decisions in the order of time, and return their means, shape (n, n_options), in [0, 1].

        Row t depends on the first t - 1 rewards and options, and the first t groups.

        Parameters
            `rewards`: shape (n,), in [0, 1].
            `options`: shape (n,), the index of the option that was drawn.
            `groups`: shape (n,), integers. If given, each mean is of the option within that group of contexts.
        Raises
            ValueError for another shape or range.
        """
        n, n_options = rewards.size, self._by_option.shape[1]
        check_range("rewards", rewards, (n,), 0, 1)
        check_option_indices(options, n, n_options)
        before, self._all = _running_sums(self._all, np.stack((np.ones(n), rewards), axis=1))
        overall = (before[:, 1] + 0.5) / (before[:, 0] + 1)
        drawn = np.zeros((n, 2, n_options))
        drawn[np.arange(n), 0, options], drawn[np.arange(n), 1, options] = 1, rewards
        before, self._by_option = _running_sums(self._by_option, drawn)
        means = self._shrunk(before, overall[:, None])
        if groups is None:
            return means
        check_integers("groups", groups, n)
        order = np.argsort(groups, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
            if rows.size:
                group = int(groups[rows[0]])
                state = self._by_group.get(group, np.zeros((2, n_options)))
                before, self._by_group[group] = _running_sums(state, drawn[rows])
                means[rows] = self._shrunk(before, means[rows])
        return means

    def _shrunk(self, sums: Floats, prior: Floats) -> Floats:
        """Return means, shape (n, k), from counts and totals, shape (n, 2, k)."""
        means: Floats = (sums[:, 1] + self._strength * prior) / (sums[:, 0] + self._strength)
        return means


def running_means(
    rewards: Floats, options: Integers, *, n_options: int, groups: Integers | None = None, strength: float = 20.0
) -> Floats:
    """Return the means of `RunningMeans` at each decision of a whole log, shape (n, n_options)."""
    return RunningMeans(n_options, strength=strength).predict_and_add(rewards, options, groups)


def _running_sums(state: Floats, added: Floats) -> tuple[Floats, Floats]:
    """Return the sums before each of n decisions, shape (n, ...), and after them; `state`: those before the first."""
    sums = np.concatenate((state[None], added)).cumsum(axis=0)
    return sums[:-1], sums[-1].copy()


def _check_strength(strength: float) -> None:
    if not 0 < strength < math.inf:
        raise ValueError("strength must be a number above 0")
