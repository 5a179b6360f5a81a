"""Evidence about a ranking policy in shadow: the gain over the live policy, support and agreement."""

from dataclasses import dataclass

import numpy as np

from ml.experiments.arrays import Floats, Integers
from ml.experiments.gain_sequence import gain_sequence
from ml.experiments.guardrails import HARM_ALPHA, OneSidedLimits
from ml.experiments.off_policy_log import Log, effective_number
from ml.experiments.reward_model import RewardModel, running_means


@dataclass(frozen=True, slots=True)
class RankingEvidence:
    """The evidence of the decisions of the live ranking policy about a policy in shadow.

    `decisions`: their number. `gain`: of the mean reward, shadow minus live, within [-1, 1]; None without decisions, or
    if the shadow draws what the live policy cannot. `effective_sample_size`: as in `OffPolicySums`. `unreachable`: in
    [0, 1], the shadow's mean probability of options that the live policy cannot draw. `agreement`: in [0, 1], the mean
    probability with which one draw can serve both policies, 1 minus the total variation distance.
    """

    decisions: int
    gain: OneSidedLimits | None
    effective_sample_size: float
    unreachable: float
    agreement: float


def ranking_evidence(
    rewards: Floats, logging: Floats, target: Floats, chosen: Integers, *, alpha: float = HARM_ALPHA
) -> RankingEvidence:
    """Return the evidence about a ranking policy in shadow, from mature decisions of the live policy.

    The limits of the gain are those of `ml.experiments.gain_sequence`. They hold at every look, and for policies that
    learn, both of them: each decision needs only the distributions that were in use at that time. They do not hold for
    a policy that was trained on these decisions, or chosen by them. The gain is the mean over these decisions.

    The model of the reward is the mean reward so far, the same for all options, since candidates have no identity from
    decision to decision. It is reduced where the shadow's probability of an option is many times that of the live
    policy: so no term is more than 1 below its prediction, and the lower limit stays narrow with small propensities.

    Parameters
        `rewards`: shape (n,), in [0, 1], in the order of time.
        `logging`, `target`: shape (n, k), the distributions of the live policy and of the shadow at each decision; 0 in
        both for options that a decision did not have.
        `chosen`: shape (n,), the index of the option that was drawn, from 0 to k - 1.
        `alpha`: in (0, 0.5), of each side.
    Raises
        ValueError for another shape or range, or if a row does not sum to 1.
    """
    n = rewards.size
    if not n:
        return RankingEvidence(0, None, 0.0, 0.0, 0.0)
    log = Log.from_policies(rewards, chosen, logging, target)
    gain = None
    if not log.unreachable:
        largest = np.divide(target, logging, out=np.ones_like(logging), where=logging > 0).max(axis=1) - 1
        means = running_means(rewards, np.zeros(n, np.intp), n_options=1)[:, 0]
        means = np.minimum(means, 1 / np.maximum(largest, 1))
        model = RewardModel(chosen, np.repeat(means[:, None], logging.shape[1], axis=1), target)
        (interval,) = gain_sequence(rewards, logging, model, alpha=2 * alpha)
        gain = OneSidedLimits(interval.estimate, interval.low, interval.high)
    agreement = float(np.minimum(logging, target).sum(axis=1).mean())
    return RankingEvidence(n, gain, effective_number(log.weights), log.unreachable, agreement)
