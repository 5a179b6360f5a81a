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

import numpy as np

from ml.experiments.arrays import Floats, check_distributions, check_range
from ml.experiments.confidence_sequence import adaptive_boundary
from ml.experiments.reward_model import RewardModel
from ml.experiments.statistics import Interval


def gain_sequence(
    rewards: Floats, logging: Floats, model: RewardModel, *, looks: Sequence[int] | None = None, alpha: float = 0.05
) -> list[Interval]:
    """Return the interval of the gain after each number of decisions in `looks`.

    With probability at least 1 - `alpha`, every interval contains the gain over the decisions so far.

    Parameters
        `rewards`: shape (n,), in [0, 1], in the order of time.
        `logging`: shape (n, k), the live policy's distribution at each decision, above 0 for the drawn option.
        `model`: the drawn options, the target's distribution, and predictions from earlier decisions only
        (`running_means`). The target must be 0 where `logging` is.
        `looks`: from 1 to n, ascending; the default is n alone.
        `alpha`: in (0, 1), half of it for each side.
    Returns
        Intervals within the limits that follow from the distance of both policies: 0 if they are the same.
    Raises
        ValueError for another shape or range, or a target that draws what the live policy cannot draw.
    """
    n = rewards.size
    rows = np.arange(n)
    check_range("rewards", rewards, (n,), 0, 1)
    check_distributions("logging", logging, model.means.shape)
    if not (logging[rows, model.options] > 0).all():
        raise ValueError("logging must be above 0 for the drawn option")
    if (model.target[logging == 0] > 0).any():
        raise ValueError("the target draws an option that the live policy cannot draw")
    at = (np.array([n]) if looks is None else np.asarray(looks)) - 1
    # An option that neither policy draws has no influence, like one with the weight 1.
    excess = np.divide(model.target, logging, out=np.ones_like(logging), where=logging > 0) - 1
    contrast = model.target - logging
    errors = excess[rows, model.options] * (rewards - model.logged_predictions)
    sums = ((contrast * model.means).sum(axis=1) + errors).cumsum()[at]
    squares = (errors**2).cumsum()[at]
    # The largest fall and rise of a term, if the reward is 0 or 1, for the option with the largest one.
    falls = np.maximum(excess * model.means, -excess * (1 - model.means)).max(axis=1)
    rises = np.maximum(excess * (1 - model.means), -excess * model.means).max(axis=1)
    below, above = (
        adaptive_boundary(squares, np.maximum.accumulate(scales)[at], alpha=alpha / 2) for scales in (falls, rises)
    )
    limits = (np.abs(contrast).sum(axis=1) / 2).cumsum()[at]
    lows, estimates, highs = (np.clip(each, -limits, limits) + 0.0 for each in (sums - below, sums, sums + above))
    return [
        Interval(*(each / count for each in interval))
        for *interval, count in zip(estimates.tolist(), lows.tolist(), highs.tolist(), (at + 1).tolist(), strict=True)
    ]
