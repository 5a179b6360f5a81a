"""The confidence sequence of the gain, on simulated logs; `tests/bench/evaluation.py` has more runs and scenarios."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.confidence_sequence import adaptive_boundary, boundary
from ml.experiments.gain_sequence import gain_sequence
from ml.experiments.reward_model import RewardModel, running_means
from tests.bench.evaluation import BETTER, IDENTICAL, SMALL, differs, differs_at_single_look, draw_decisions

RUNS = 60


@pytest.mark.parametrize("name", IDENTICAL)
def test_identical_versions_rarely_differ_at_any_daily_look(name: str) -> None:
    rng, traffic = np.random.default_rng(1), IDENTICAL[name]
    # At a probability of 5 %, more than 7 of 60 have the probability 1 %.
    assert sum(differs(traffic, draw_decisions(traffic, rng)) for _ in range(RUNS)) <= 7


@pytest.mark.parametrize("name", BETTER)
def test_a_gain_is_found(name: str) -> None:
    rng, traffic = np.random.default_rng(1), BETTER[name]
    assert sum(differs(traffic, draw_decisions(traffic, rng)) for _ in range(RUNS)) >= 0.8 * RUNS


@pytest.mark.parametrize("name", SMALL)
def test_the_single_look_is_refused_for_a_few_tips_of_the_target(name: str) -> None:
    rng = np.random.default_rng(1)
    assert not any(differs_at_single_look(draw_decisions(IDENTICAL[name], rng)) for _ in range(RUNS))


def test_the_intervals_contain_the_gain_and_those_of_a_better_model_are_narrower() -> None:
    (traffic,) = BETTER.values()
    log = draw_decisions(traffic, np.random.default_rng(1))
    widths = []
    for means in (running_means(log.rewards, log.drawn, n_options=2), np.ones((log.rewards.size, 2))):
        model = RewardModel(log.drawn, means, log.target)
        for interval in gain_sequence(log.rewards, log.logging, model, looks=[100, 1_000, 20_000]):
            assert interval.low < 0.025 < interval.high
            assert interval.low < interval.estimate < interval.high
        widths.append(interval.high - interval.low)
    assert widths[0] < 0.8 * widths[1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 59))
def test_an_interval_does_not_depend_on_later_decisions(seed: int, look: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = 60, 3
    rewards, drawn, groups = rng.random(n), rng.integers(k, size=n), rng.integers(3, size=n)
    logging, target = rng.dirichlet(np.ones(k), n) * 0.9 + 0.1 / k, rng.dirichlet(np.ones(k), n)

    def interval(count: int) -> object:
        means = running_means(rewards[:count], drawn[:count], n_options=k, groups=groups[:count])
        model = RewardModel(drawn[:count], means, target[:count])
        return gain_sequence(rewards[:count], logging[:count], model, looks=[look])

    assert interval(n) == interval(look)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_target_equal_to_the_log_has_a_gain_of_0(reward: float) -> None:
    same = np.full((50, 2), 0.5)
    model = RewardModel(np.arange(50) % 2, np.full((50, 2), 0.3), same)
    (interval,) = gain_sequence(np.full(50, reward), same, model)
    assert (interval.estimate, interval.low, interval.high) == (0, 0, 0)


def test_a_target_that_draws_what_the_log_cannot_is_an_error() -> None:
    logging, target = np.tile([1.0, 0.0], (5, 1)), np.tile([0.5, 0.5], (5, 1))
    model = RewardModel(np.zeros(5, np.intp), np.full((5, 2), 0.5), target)
    with pytest.raises(ValueError, match="the target draws an option that the live policy cannot draw"):
        gain_sequence(np.zeros(5), logging, model)
    with pytest.raises(ValueError, match="logging must be above 0 for the drawn option"):
        gain_sequence(np.zeros(5), logging, replace(model, options=np.ones(5, np.intp)))


def test_running_means_are_those_of_earlier_decisions_shrunk_to_the_option_and_to_all() -> None:
    rewards, options, groups = np.array([1.0, 0.0, 1.0]), np.array([0, 0, 1]), np.array([4, 4, 9])
    means = running_means(rewards, options, n_options=2, groups=groups, strength=1)
    assert means[0] == pytest.approx([0.5, 0.5])
    # All: (1 + 0.5) / 2. Option 0: (1 + 0.75) / 2, and in the group (1 + 0.875) / 2.
    assert means[1] == pytest.approx([0.9375, 0.75])
    # All: (1 + 0.5) / 3. Option 0: (1 + 0.5) / 3; the other group has no decision before.
    assert means[2] == pytest.approx([0.5, 0.5])


def test_the_adaptive_boundary_is_not_far_above_the_best_tuned_one() -> None:
    for squares in np.geomspace(20, 1e6, 10):
        v = np.array([squares])
        best = min(float(boundary(v, alpha=0.025, tuned_at=tuned)[0]) for tuned in squares * np.geomspace(0.25, 4, 9))
        adaptive = float(adaptive_boundary(v, np.ones(1), alpha=0.025)[0])
        assert adaptive < 1.25 * best
