"""The sums of off-policy evaluation do not depend on the chunks in which decisions are added."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.arrays import Floats, Integers
from ml.experiments.evaluation import Estimate, dm, dr, ips, sndr, snips
from ml.experiments.gain_sequence import GainSequence, gain_terms
from ml.experiments.off_policy_log import Log
from ml.experiments.off_policy_sums import OffPolicySums
from ml.experiments.reward_model import CrossFittedMeans, RewardModel, RunningMeans
from ml.experiments.statistics import Interval

N, USERS, OPTIONS, FOLDS, GROUPS = 120, 9, 3, 3, 4


@dataclass(frozen=True)
class Decisions:
    """Random decisions; the propensities fall with time, so that the largest weight grows again and again."""

    rewards: Floats
    options: Integers
    users: Integers
    groups: Integers
    logging: Floats
    target: Floats

    @classmethod
    def draw(cls, seed: int) -> "Decisions":
        rng = np.random.default_rng(seed)
        options = rng.integers(OPTIONS, size=N)
        logging = np.full((N, OPTIONS), 0.0)
        logging[np.arange(N), options] = 10.0 ** -np.linspace(0, rng.integers(1, 60), N)
        logging[np.arange(N), (options + 1) % OPTIONS] = 1 - logging[np.arange(N), options]
        target = rng.dirichlet(np.ones(OPTIONS), N) * (logging > 0)
        target /= target.sum(axis=1, keepdims=True)
        return cls(rng.random(N), options, rng.integers(USERS, size=N), rng.integers(GROUPS, size=N), logging, target)


def chunks_of(seed: int) -> list[slice]:
    """Return random chunks of the decisions; some are empty."""
    ends = np.sort(np.random.default_rng(seed).integers(N + 1, size=7)).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], [*ends, N], strict=True)]


Results = tuple[list[Estimate], Interval, Interval]


def results(decisions: Decisions, chunks: list[slice]) -> Results:
    """Return all estimates and the gain, which need every sum, with the decisions added in these chunks."""
    cross_fitted, running = CrossFittedMeans(FOLDS, OPTIONS), RunningMeans(OPTIONS)
    folds = decisions.users % FOLDS
    for rows in chunks:
        cross_fitted.add(decisions.rewards[rows], decisions.options[rows], folds[rows], decisions.groups[rows])
    means = cross_fitted.merged(np.array([0, 1, 1, 0])).means()[:, [0, 1, 1, 0]]
    sums, live, sequence = OffPolicySums(USERS), OffPolicySums(USERS), GainSequence()
    for rows in chunks:
        rewards, options, logging = decisions.rewards[rows], decisions.options[rows], decisions.logging[rows]
        if not rewards.size:
            continue
        log = Log.from_policies(rewards, options, logging, decisions.target[rows], decisions.users[rows])
        sums.add(log, RewardModel(options, means[folds[rows], decisions.groups[rows]], decisions.target[rows]))
        live.add(Log(rewards, log.propensities, log.propensities, clusters=log.clusters))
        predicted = running.predict_and_add(rewards, options, decisions.groups[rows])
        sequence.add(gain_terms(rewards, logging, RewardModel(options, predicted, decisions.target[rows])))
    estimates = [ips(live), *(estimator(sums) for estimator in (ips, snips, dm, dr, sndr))]
    return estimates, sequence.interval(), sequence.interval(alpha=0.01)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_results_do_not_depend_on_the_chunks_to_the_last_bit(seed: int, chunk_seed: int) -> None:
    decisions = Decisions.draw(seed)
    assert results(decisions, chunks_of(chunk_seed)) == results(decisions, [slice(0, N)])


def test_results_are_those_of_one_decision_at_a_time() -> None:
    decisions = Decisions.draw(1)
    assert results(decisions, [slice(row, row + 1) for row in range(N)]) == results(decisions, [slice(0, N)])


def test_a_model_is_needed_for_estimates_that_use_one() -> None:
    log = Log(np.full(4, 0.5), np.full(4, 0.5), np.full(4, 0.5))
    sums = OffPolicySums.of(log)
    assert ips(sums).value == snips(sums).value == 0.5
    for estimator in (dm, dr, sndr):
        with pytest.raises(ValueError, match="this estimate needs a model of the reward"):
            estimator(sums)


def test_decisions_without_clusters_are_not_added_to_those_of_clusters() -> None:
    with pytest.raises(ValueError, match="the decisions must have clusters"):
        OffPolicySums(4).add(Log(np.full(4, 0.5), np.full(4, 0.5), np.full(4, 0.5)))


def test_sums_do_not_depend_on_the_unit_of_the_weights() -> None:
    """Weights are summed as shares of the largest so far: sums of very small ones keep their precision."""
    targets = np.concatenate((np.full(5, 5e-324), np.full(5, 1e-300)))
    log = Log(np.linspace(0, 1, 10), np.ones(10), targets, clusters=np.arange(10))
    sums = OffPolicySums(10)
    for start in (0, 5):
        rows = slice(start, start + 5)
        sums.add(Log(log.rewards[rows], log.propensities[rows], targets[rows], clusters=np.arange(start, start + 5)))
    assert sums.effective_sample_size == pytest.approx(5)
    assert snips(sums).value == pytest.approx(float(log.rewards[5:].mean()))
