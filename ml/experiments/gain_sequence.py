"""The confidence sequence of the gain of a target policy over the live policy: intervals that hold at every look.

The gain is the mean over the decisions of V_t(target) - V_t(log): the difference of the expected rewards of decision t
under both policies, given its context and all earlier decisions. With p_t and pi_t the distributions of the live policy
and of the target, a the drawn option, Y_t its reward, w_t = pi_t / p_t, and m_t a model of the reward, each term

    x_t = sum over b of (pi_t(b) - p_t(b)) m_t(b)  +  (w_t(a) - 1) (Y_t - m_t(a))

has this expectation, whatever the model is: x_t is doubly robust. The first sum is its prediction; the terms differ
from it by at least -c_t on either side, where c_t follows from the weights and the model of all options of decision t.
So `adaptive_boundary` applies, at any sample size and for any reward rate.

"Given the past" means: given the contexts, options, draws and *final* rewards of all earlier decisions, in the order of
time. So the model may use an earlier reward that was not yet known at the time of the decision: only the order of the
decisions matters. What is assumed: the draw of decision t is random with the logged propensities, given all these. It
is, if each decision is drawn anew from a hash of its own, and if the draw does not influence the rewards of tips that
were shown before. It is not if the version is drawn per user (`PromptPolicy.per_user`). Nothing is assumed about the
live policy, which may learn, nor about users, who may come back and have preferences of their own: their terms are
dependent only through the past, so they need no correction for clusters. The result is about these decisions, and not
about other users. A sequence has one start: looks at decisions since the same time, with a target that does not change
between looks, belong together.

Sources: Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro, "Anytime-valid off-policy inference for contextual
bandits", ACM/IMS Journal of Data Science 2024 (doubly robust terms with a predictable model); Karampatziakis, Mineiro &
Ramdas, "Off-policy confidence sequences", ICML 2021; Howard, Ramdas, McAuliffe & Sekhon, "Time-uniform, nonparametric,
nonasymptotic confidence sequences", Annals of Statistics 2021.
"""

from collections.abc import Sequence
from enum import IntEnum, auto

import numpy as np

from ml.experiments.arrays import Floats, Integers, check_distributions, check_range
from ml.experiments.confidence_sequence import adaptive_boundary
from ml.experiments.reward_model import RewardModel
from ml.experiments.statistics import Interval


class _Column(IntEnum):
    """The columns of `gain_terms`."""

    TERM = 0
    SQUARED_ERROR = auto()
    LIMIT = auto()
    FALL = auto()
    RISE = auto()


def gain_terms(rewards: Floats, logging: Floats, model: RewardModel) -> Floats:
    """Return what each decision adds to a `GainSequence`, shape (n, 5).

    Parameters
        `rewards`: shape (n,), in [0, 1].
        `logging`: shape (n, k), the live policy's distribution at each decision, above 0 for the drawn option.
        `model`: the drawn options, the target's distribution, and predictions from earlier decisions only
        (`running_means`). The target must be 0 where `logging` is.
    Raises
        ValueError for another shape or range, or a target that draws what the live policy cannot draw.
    """
    rows = np.arange(rewards.size)
    check_range("rewards", rewards, (rewards.size,), 0, 1)
    check_distributions("logging", logging, model.means.shape)
    if not (logging[rows, model.options] > 0).all():
        raise ValueError("logging must be above 0 for the drawn option")
    if (model.target[logging == 0] > 0).any():
        raise ValueError("the target draws an option that the live policy cannot draw")
    # An option that neither policy draws has no influence, like one with the weight 1.
    excess = np.divide(model.target, logging, out=np.ones_like(logging), where=logging > 0) - 1
    contrast = model.target - logging
    errors = excess[rows, model.options] * (rewards - model.logged_predictions)
    terms = np.empty((rewards.size, len(_Column)))
    terms[:, _Column.TERM] = (contrast * model.means).sum(axis=1) + errors
    terms[:, _Column.SQUARED_ERROR] = errors**2
    terms[:, _Column.LIMIT] = np.abs(contrast).sum(axis=1) / 2
    # The largest fall and rise of a term, if the reward is 0 or 1, for the option with the largest one.
    terms[:, _Column.FALL] = np.maximum(excess * model.means, -excess * (1 - model.means)).max(axis=1)
    terms[:, _Column.RISE] = np.maximum(excess * (1 - model.means), -excess * model.means).max(axis=1)
    return terms


class GainSequence:
    """The confidence sequence of the gain over the decisions that have been added, in the order of time.

    Sums are added up one decision after the other, so the sizes of the chunks do not change a bit of them.
    """

    def __init__(self) -> None:
        self.decisions = 0
        self._state = np.zeros(len(_Column))

    def add(self, terms: Floats) -> None:
        """Add decisions: their `gain_terms`."""
        if len(terms):
            self._state = _accumulated(self._state, terms)[-1]
            self.decisions += len(terms)

    def interval(self, *, alpha: float = 0.05) -> Interval:
        """Return the interval of the gain, which holds at every look with probability at least 1 - `alpha`.

        There must be at least one decision. `alpha`: in (0, 1), half of it for each side. The interval is within the
        limits that follow from the distance of both policies: 0 if they are the same.
        """
        (interval,) = _intervals(self._state[None], np.array([self.decisions]), alpha)
        return interval


def gain_sequence(
    rewards: Floats, logging: Floats, model: RewardModel, *, looks: Sequence[int] | None = None, alpha: float = 0.05
) -> list[Interval]:
    """Return the interval of a `GainSequence` after each number of decisions in `looks`.

    `looks`: from 1 to n, ascending; the default is n alone. Other parameters and errors are those of `gain_terms`.
    """
    counts = np.array([rewards.size]) if looks is None else np.asarray(looks)
    states = _accumulated(np.zeros(len(_Column)), gain_terms(rewards, logging, model))
    return _intervals(states[counts - 1], counts, alpha)


def _accumulated(state: Floats, terms: Floats) -> Floats:
    """Return the sums (the maximum of falls and rises) after each decision, shape (n, 5), from those before them."""
    rows = np.vstack((state, terms))
    sums, scales = slice(_Column.FALL), slice(_Column.FALL, None)
    rows[:, sums] = rows[:, sums].cumsum(axis=0)
    rows[:, scales] = np.maximum.accumulate(rows[:, scales], axis=0)
    return rows[1:]


def _intervals(states: Floats, counts: Integers, alpha: float) -> list[Interval]:
    """Return the interval of each state, shape (m, 5), after so many decisions, shape (m,)."""
    sums, squares, limits, falls, rises = states.T
    below, above = (adaptive_boundary(squares, scales, alpha=alpha / 2) for scales in (falls, rises))
    lows, estimates, highs = (np.clip(each, -limits, limits) + 0.0 for each in (sums - below, sums, sums + above))
    return [
        Interval(*(each / count for each in interval))
        for *interval, count in zip(estimates.tolist(), lows.tolist(), highs.tolist(), counts.tolist(), strict=True)
    ]
