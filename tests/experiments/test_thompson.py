"""Thompson sampling on contrasts within days: its probabilities, what it learns from, and how it forgets."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.arrays import Floats
from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.statistics import Sample
from ml.experiments.thompson import PRIOR_SCALE, RewardHistory, probability_best, thompson_distribution
from tests.bench.thompson import change_of_the_best, pooled_beta, uniform_regret_share, worse_version_in_a_lift
from tests.experiments.test_assignment import DECISIONS, matches_distribution

samples = st.integers(0, 200).flatmap(
    lambda n: st.integers(0, n).map(lambda successes: Sample(n, successes, successes))
)
VERSIONS = ["v1", "v2", "v3"]
histories = st.dictionaries(
    st.integers(0, 60), st.dictionaries(st.sampled_from([*VERSIONS, "removed"]), samples), max_size=20
).map(lambda days: RewardHistory(days, today=60))


def binary(n: int, successes: float) -> Sample:
    return Sample(n, successes, successes)


@given(histories)
def test_probabilities_sum_to_1_and_are_at_least_the_floor(history: RewardHistory) -> None:
    distribution = thompson_distribution(VERSIONS, history)
    assert [*distribution] == VERSIONS
    assert sum(distribution.values()) == pytest.approx(1, abs=1e-12)
    assert min(distribution.values()) >= 0.02
    assert thompson_distribution(VERSIONS, history) == distribution


def test_the_floor_shrinks_with_the_number_of_versions() -> None:
    hopeless = {f"v{n}": binary(100_000, 50_000 if n == 0 else 10_000) for n in range(20)}
    distribution = thompson_distribution([*hopeless], RewardHistory({0: hopeless}))
    assert min(distribution.values()) == pytest.approx(0.1 / 20)
    assert distribution["v0"] == pytest.approx(1 - 19 * 0.1 / 20)


@given(histories)
def test_rewards_of_other_versions_do_not_count(history: RewardHistory) -> None:
    without = {
        day: {version: sample for version, sample in of_day.items() if version != "removed"}
        for day, of_day in history.days.items()
    }
    assert thompson_distribution(VERSIONS, history) == thompson_distribution(VERSIONS, RewardHistory(without, today=60))


def test_equal_versions_have_equal_probabilities_and_a_new_one_has_the_prior() -> None:
    equal = {0: {version: binary(50, 10) for version in VERSIONS}}
    for history in (RewardHistory(), RewardHistory(equal)):
        assert thompson_distribution(VERSIONS, history) == pytest.approx(dict.fromkeys(VERSIONS, 1 / 3), abs=0.005)
    known = {0: {"v1": binary(100_000, 20_000), "v2": binary(100_000, 20_000)}}
    # The effect of v3 is symmetric around that of the others, which are equal, so it is the best in half of the cases.
    assert thompson_distribution(VERSIONS, RewardHistory(known))["v3"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("days", [1, 5])
def test_probabilities_equal_the_frequencies_of_draws_from_the_posterior(days: int) -> None:
    rng = np.random.default_rng(3)
    n = rng.integers(20, 200, (days, 3)).astype(float)
    totals = rng.binomial(n.astype(int), [0.2, 0.22, 0.25]).astype(float)
    weights: Floats = 0.5 ** np.arange(days, dtype=np.float64)
    # The posterior of the regression with an indicator per day, whose coefficients have nearly flat priors.
    pooled = float(weights @ totals.sum(1) / (weights @ n.sum(1)))
    variance = pooled * (1 - pooled)
    rows = days * 3
    x: Floats = np.zeros((rows, days + 3))
    x[np.arange(rows), np.repeat(np.arange(days), 3)] = 1
    x[np.arange(rows), days + np.tile(np.arange(3), days)] = 1
    w = (weights[:, None] * n).ravel() / variance
    precision = (x.T * w) @ x + np.diag([1e-9] * days + [1 / PRIOR_SCALE**2] * 3)
    mean = np.linalg.solve(precision, x.T @ (w * (totals / n).ravel()))
    drawn = rng.multivariate_normal(mean, np.linalg.inv(precision), 200_000)[:, days:]
    frequencies = np.bincount(drawn.argmax(1), minlength=3) / len(drawn)
    assert probability_best(n, totals, weights).tolist() == pytest.approx(frequencies.tolist(), abs=0.01)


def test_a_day_with_one_version_says_nothing() -> None:
    both = {0: {"v1": binary(100, 20), "v2": binary(100, 30)}}
    alone = {day: {"v1": binary(1_000, 900)} for day in range(1, 10)}
    n = np.array([[100.0, 100.0], *[[1_000.0, 0.0]] * 9])
    totals = np.array([[20.0, 30.0], *[[900.0, 0.0]] * 9])
    expected = thompson_distribution(["v1", "v2"], RewardHistory(both))
    # The variance of a reward is that of all days; apart from that the days of one version have no influence.
    assert thompson_distribution(["v1", "v2"], RewardHistory(both | alone))["v2"] > 0.9
    assert expected["v2"] > 0.9
    np.testing.assert_allclose(probability_best(n, totals, np.ones(10)).sum(), 1)


def test_after_one_half_life_a_reward_counts_half() -> None:
    old = RewardHistory({0: {"v1": binary(200, 40), "v2": binary(200, 60)}}, today=28)
    half = RewardHistory({28: {"v1": binary(100, 20), "v2": binary(100, 30)}}, today=28)
    assert thompson_distribution(["v1", "v2"], old) == pytest.approx(thompson_distribution(["v1", "v2"], half))
    never = RewardHistory(old.days, today=28, half_life_days=math.inf)
    assert thompson_distribution(["v1", "v2"], never)["v2"] > thompson_distribution(["v1", "v2"], old)["v2"]


@pytest.mark.parametrize("half_life_days", [0, -1, math.nan])
def test_an_invalid_half_life_is_refused(half_life_days: float) -> None:
    with pytest.raises(ValueError, match="half_life_days"):
        RewardHistory(half_life_days=half_life_days)


def test_without_versions_there_is_no_distribution() -> None:
    with pytest.raises(ValueError, match="at least one version"):
        thompson_distribution([], RewardHistory())


def test_versions_are_drawn_with_the_frequency_of_their_propensities() -> None:
    history = RewardHistory({0: {"v1": binary(1_000, 50), "v2": binary(1_000, 60)}})
    distribution = thompson_distribution(VERSIONS, history)
    counts = Counter(draw_weighted(distribution, hash_to_unit_interval("tip", str(n))).option for n in range(DECISIONS))
    assert matches_distribution(counts, distribution)


def test_a_change_of_the_best_version_is_followed_within_14_days_at_little_more_regret_before() -> None:
    outcome = change_of_the_best(runs=40, seed=1)
    assert outcome.days_to_follow <= 14
    assert outcome.before <= 1.25 * change_of_the_best(pooled_beta, runs=40, seed=1).before


def test_a_worse_version_that_is_added_during_a_lift_gets_few_tips() -> None:
    assert worse_version_in_a_lift(runs=20, seed=1)[15] < 0.15


def test_the_regret_with_ten_versions_is_at_most_a_third_of_that_of_uniform() -> None:
    assert uniform_regret_share(versions=10, runs=10, seed=1) <= 0.33
