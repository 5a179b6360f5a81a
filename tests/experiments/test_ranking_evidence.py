"""Evidence about a ranking policy in shadow, on simulated decisions."""

import numpy as np
import pytest

from ml.experiments.arrays import Floats, Integers
from ml.experiments.gain_sequence import gain_sequence
from ml.experiments.off_policy_log import Log
from ml.experiments.off_policy_sums import OffPolicySums
from ml.experiments.ranking_evidence import RankingEvidence, ranking_evidence
from ml.experiments.reward_model import RewardModel, running_means

UNIFORM = np.full(3, 1 / 3)


def draw(logging: Floats, means: Floats, rng: np.random.Generator) -> tuple[Floats, Integers]:
    """Draw an option of each decision from `logging`, and its reward, with the given means, each of shape (n, k)."""
    n = len(logging)
    chosen = (rng.random((n, 1)) > logging.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return (rng.random(n) < means[np.arange(n), chosen]).astype(np.float64), chosen


def favourite(options: Integers, probability: float) -> Floats:
    """Return distributions over three options, with this probability of one of them, shape (n, 3)."""
    distributions = np.full((options.size, 3), (1 - probability) / 2)
    distributions[np.arange(options.size), options] = probability
    return distributions


def test_a_better_policy_is_found_and_its_gain_is_within_the_limits() -> None:
    rng, n = np.random.default_rng(1), 4_000
    best = rng.integers(3, size=n)
    means, logging, target = (
        np.where(favourite(best, 1.0) == 1, 0.4, 0.2),
        np.tile(UNIFORM, (n, 1)),
        favourite(best, 0.8),
    )
    rewards, chosen = draw(logging, means, rng)
    evidence = ranking_evidence(rewards, logging, target, chosen)
    assert evidence.gain
    truth = 0.2 * (0.8 - 1 / 3)
    assert 0 < evidence.gain.low < truth < evidence.gain.high
    assert evidence.gain.estimate == pytest.approx(truth, abs=0.03)
    model = RewardModel(chosen, np.tile(running_means(rewards, 0 * chosen, n_options=1), 3), target)
    (interval,) = gain_sequence(rewards, logging, model, alpha=0.1)
    assert (evidence.gain.low, evidence.gain.high) == pytest.approx((interval.low, interval.high))
    assert evidence.agreement == pytest.approx(1 / 3 + 0.2)
    sums = OffPolicySums.of(Log.from_policies(rewards, chosen, logging, target))
    assert evidence.effective_sample_size == sums.effective_sample_size
    assert (evidence.decisions, evidence.unreachable) == (n, 0)


def test_a_policy_equal_to_the_live_one_agrees_with_it_and_has_no_gain() -> None:
    rng, n = np.random.default_rng(1), 100
    logging = rng.dirichlet(np.ones(3), n)
    rewards, chosen = draw(logging, np.full((n, 3), 0.3), rng)
    evidence = ranking_evidence(rewards, logging, logging, chosen)
    assert evidence.gain
    assert (evidence.gain.estimate, evidence.gain.low, evidence.gain.high) == (0, 0, 0)
    assert (evidence.agreement, evidence.effective_sample_size) == pytest.approx((1, n))


def test_a_policy_that_draws_what_the_live_one_cannot_has_no_gain() -> None:
    logging, target = np.tile([0.5, 0.5, 0.0], (10, 1)), np.tile([0.5, 0.3, 0.2], (10, 1))
    evidence = ranking_evidence(np.ones(10), logging, target, np.zeros(10, np.intp))
    assert evidence.gain is None
    assert (evidence.unreachable, evidence.agreement) == pytest.approx((0.2, 0.8))


def test_options_that_a_decision_did_not_have_do_not_count() -> None:
    rng, n = np.random.default_rng(1), 200
    logging, target = np.tile([0.6, 0.4], (n, 1)), np.tile([0.3, 0.7], (n, 1))
    rewards, chosen = draw(logging, np.full((n, 2), 0.3), rng)
    absent = np.zeros((n, 2))
    padded = ranking_evidence(rewards, np.hstack([logging, absent]), np.hstack([target, absent]), chosen)
    assert padded == ranking_evidence(rewards, logging, target, chosen)


def test_without_decisions_there_is_no_evidence() -> None:
    none = np.zeros((0, 3))
    assert ranking_evidence(np.zeros(0), none, none, np.zeros(0, np.intp)) == RankingEvidence(0, None, 0, 0, 0)


def test_the_lower_limit_is_narrow_with_small_propensities() -> None:
    rng, n = np.random.default_rng(1), 4_000
    best = rng.integers(3, size=n)
    logging, target = favourite(best, 0.98), favourite((best + 1) % 3, 0.1)
    logging[::2], target[::2] = favourite(best[::2], 0.5), favourite(best[::2], 0.7)
    logging[7], target[7] = [1e-6, 0.5, 0.5 - 1e-6], [1.0, 0.0, 0.0]  # a weight of a million, if it were drawn
    rewards, chosen = draw(logging, np.full((n, 3), 0.2), rng)
    evidence = ranking_evidence(rewards, logging, target, chosen)
    assert evidence.gain
    assert evidence.gain.low > -0.2
    assert evidence.gain.estimate - evidence.gain.low < evidence.gain.high - evidence.gain.estimate


def test_equal_gains_are_rarely_found_at_any_look_while_both_policies_learn() -> None:
    rng, n, runs = np.random.default_rng(1), 600, 40
    logging, target = np.empty((2, n, runs, 3))
    rewards, chosen = np.empty((n, runs)), np.empty((n, runs), np.intp)
    totals, counts = np.full((runs, 3), 0.6), np.full((runs, 3), 3.0)
    last = np.zeros(runs, np.intp)
    for decision in range(n):
        # The live policy favours the best mean so far, and the shadow the option that was rewarded last.
        logging[decision], target[decision] = favourite((totals / counts).argmax(axis=1), 0.7), favourite(last, 0.6)
        equal_means = np.full((runs, 3), 0.2 + 0.2 * decision / n)
        rewards[decision], chosen[decision] = draw(logging[decision], equal_means, rng)
        totals[np.arange(runs), chosen[decision]] += rewards[decision]
        counts[np.arange(runs), chosen[decision]] += 1
        last = np.where(rewards[decision] > 0, chosen[decision], last)
    looks = [
        [
            ranking_evidence(rewards[:end, run], logging[:end, run], target[:end, run], chosen[:end, run]).gain
            for run in range(runs)
        ]
        for end in range(150, n + 1, 150)
    ]
    lows, highs = np.array([[(gain.low, gain.high) for gain in look if gain] for look in looks]).transpose(2, 0, 1)
    too_high, too_low = (lows > 0).any(axis=0).sum(), (highs < 0).any(axis=0).sum()
    assert max(too_high, too_low) <= 0.05 * runs


def test_wrong_shapes_and_ranges_are_errors() -> None:
    logging = np.tile(UNIFORM, (4, 1))
    with pytest.raises(ValueError, match="target must sum to 1"):
        ranking_evidence(np.ones(4), logging, logging * 0.9, np.zeros(4, np.intp))
    with pytest.raises(ValueError, match="options must be from 0 to 2"):
        ranking_evidence(np.ones(4), logging, logging, np.full(4, 3))
