import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.statistics import (
    MAX_OBSERVATIONS,
    SAMPLE_RATIO_ALARM,
    Interval,
    Sample,
    confidence_sequence,
    difference,
    observations_needed,
    probability_best,
    rate,
    sample_ratio_p_value,
)

rewards = st.lists(st.floats(0, 1), max_size=50)


def sample_of(values: list[float]) -> Sample:
    return Sample(len(values), math.fsum(values), math.fsum(value * value for value in values))


def binary_sample(n: int, successes: int) -> Sample:
    return Sample(n, successes, successes)


def excludes_zero(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0


@st.composite
def samples(draw: st.DrawFn, *, min_n: int = 0, max_n: int = 10_000_000) -> Sample:
    n = draw(st.integers(min_n, max_n))
    return binary_sample(n, draw(st.integers(0, n)))


# Samples


@given(rewards, rewards)
def test_merging_samples_equals_pooling_their_rewards(a: list[float], b: list[float]) -> None:
    merged, pooled = sample_of(a) + sample_of(b), sample_of(a + b)
    assert merged.n == pooled.n
    assert merged.total == pytest.approx(pooled.total)
    assert merged.squares == pytest.approx(pooled.squares)
    assert merged.mean == pytest.approx(pooled.mean)
    assert merged.variance == pytest.approx(pooled.variance)


@given(rewards)
def test_the_variance_is_that_of_the_rewards_with_a_0_and_a_1_added(values: list[float]) -> None:
    assert sample_of(values).variance == pytest.approx(float(np.var([*values, 0, 1])))
    assert 0 < sample_of(values).variance <= 0.25 + 1e-12


def test_an_empty_sample_has_mean_0_and_is_neutral_in_a_sum() -> None:
    assert Sample().mean == 0
    assert Sample() + binary_sample(10, 3) == binary_sample(10, 3)


# Intervals


@pytest.mark.parametrize("degrees_lost", [0, 1])
def test_500_against_600_of_10_000_each_gives_the_reference_figure(degrees_lost: int) -> None:
    n = 10_000
    variance = 2 * n * (0.05 * 0.95 + 0.06 * 0.94) / (n - degrees_lost)
    interval = confidence_sequence(0.01, variance, 2 * n, alpha=0.05, tuned_at=5_000)
    tolerance = 1e-6 if degrees_lost else 1e-7
    assert interval.low == pytest.approx(-0.0000798, abs=tolerance)
    assert interval.high == pytest.approx(0.0200798, abs=tolerance)


def test_the_two_pseudo_observations_hardly_change_the_reference_figure() -> None:
    interval = difference(binary_sample(10_000, 500), binary_sample(10_000, 600))
    assert (interval.low, interval.high) == pytest.approx((-0.0000798, 0.0200798), abs=2e-5)


@given(st.floats(-1, 1), st.floats(1e-6, 1), st.integers(1, 10_000_000), st.integers(1, 1_000_000))
def test_an_interval_contains_its_estimate_and_shrinks_with_more_observations(
    estimate: float, variance: float, n: int, more: int
) -> None:
    before, after = (confidence_sequence(estimate, variance, count) for count in (n, n + more))
    assert before.low < after.low < estimate < after.high < before.high


@given(samples(), samples())
def test_limits_enclose_the_estimate_within_the_range_of_rewards(a: Sample, b: Sample) -> None:
    single, gap = rate(a), difference(a, b)
    assert 0 <= single.low <= single.estimate <= single.high <= 1
    assert -1 <= gap.low <= gap.estimate <= gap.high <= 1


@given(samples(), samples())
def test_swapping_the_arms_mirrors_the_difference(a: Sample, b: Sample) -> None:
    forward, backward = difference(a, b), difference(b, a)
    assert (forward.estimate, forward.low, forward.high) == (-backward.estimate, -backward.high, -backward.low)


@given(samples())
def test_without_observations_the_interval_is_the_whole_range(other: Sample) -> None:
    assert rate(Sample()) == Interval(0, 0, 1)
    assert confidence_sequence(0.0, 0.25, 0) == Interval(0, -math.inf, math.inf)
    assert difference(Sample(), other) == Interval(other.mean, -1, 1)
    assert difference(other, Sample()) == Interval(-other.mean, -1, 1)


def test_an_arm_with_constant_rewards_has_an_interval_of_positive_width() -> None:
    assert rate(binary_sample(100, 0)).high > 0.01
    assert rate(binary_sample(100, 100)).low < 0.99


def test_a_smaller_alpha_gives_a_wider_interval() -> None:
    wide, narrow = (rate(binary_sample(1_000, 300), alpha=alpha) for alpha in (0.01, 0.05))
    assert wide.low < narrow.low
    assert narrow.high < wide.high


@pytest.mark.parametrize("mean", [0.05, 0.3])
@pytest.mark.parametrize("daily", [5, 50, 2_000])
def test_equal_arms_tested_daily_for_60_days_rarely_differ_significantly(mean: float, daily: int) -> None:
    increments = np.random.default_rng(7).binomial(daily, mean, size=(500, 2, 60))
    runs = increments.cumsum(axis=2).tolist()
    alarms = sum(
        any(
            excludes_zero(difference(binary_sample(day * daily, a), binary_sample(day * daily, b)))
            for day, (a, b) in enumerate(zip(*arms, strict=True), start=1)
        )
        for arms in runs
    )
    assert alarms <= 0.05 * len(runs)


def test_arms_that_differ_are_significantly_different_eventually() -> None:
    increments = np.random.default_rng(7).binomial(500, [[[0.05], [0.08]]], size=(100, 2, 60))
    significant = [
        difference(binary_sample(30_000, int(a)), binary_sample(30_000, int(b))).low > 0
        for a, b in increments.sum(axis=2)
    ]
    assert sum(significant) >= 99


# Observations needed


def scaled(sample: Sample, factor: float) -> Sample:
    n = round(sample.n * factor)
    return Sample(n, sample.mean * n, sample.squares / sample.n * n)


@given(samples(min_n=1, max_n=200_000), samples(min_n=1, max_n=200_000))
def test_the_needed_number_of_observations_excludes_0_and_a_tenth_fewer_does_not(a: Sample, b: Sample) -> None:
    n = a.n + b.n
    needed = observations_needed(a, b)
    if needed == 0:
        assert excludes_zero(difference(a, b))
        return
    assert not excludes_zero(difference(a, b))
    enough = 1 + (MAX_OBSERVATIONS if needed is None else needed) / n
    assert excludes_zero(difference(scaled(a, enough), scaled(b, enough))) is (needed is not None)
    if needed is not None and needed * min(a.n, b.n) / n > 100:  # smaller numbers are within rounding errors
        fewer = 1 + 0.9 * needed / n
        assert not excludes_zero(difference(scaled(a, fewer), scaled(b, fewer)))


def test_the_reference_figure_needs_a_few_hundred_further_observations() -> None:
    needed = observations_needed(binary_sample(10_000, 500), binary_sample(10_000, 600))
    assert needed is not None
    assert 0 < needed < 1_000


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Sample(), binary_sample(100, 50)),
        (binary_sample(100, 50), Sample()),
        (Sample(), Sample()),
        (binary_sample(100, 50), binary_sample(200, 100)),
        (binary_sample(10_000, 5_000), binary_sample(10_000, 5_001)),
    ],
)
def test_the_needed_number_is_none_without_a_detectable_difference(a: Sample, b: Sample) -> None:
    assert observations_needed(a, b) is None


# Probability of being the best arm


def test_probabilities_of_50_60_and_45_successes_in_1_000_equal_the_reference_values() -> None:
    best = probability_best([binary_sample(1_000, 50), binary_sample(1_000, 60), binary_sample(1_000, 45)])
    assert best == pytest.approx((0.1520, 0.8008, 0.0472), abs=5e-5)


def exact_probability_b_is_best(a: Sample, b: Sample) -> float:
    """Return the exact sum for integer Beta parameters (Miller, "Formulas for Bayesian A/B testing", 2014)."""
    wins, losses = 1 + int(a.total), 1 + a.n - int(a.total)
    failures = 1 + b.n - int(b.total)
    # The term of i = 0 is B(wins, losses + failures) / B(wins, losses); each further term by its ratio to the previous.
    term = Fraction(1)
    for k in range(failures):
        term *= Fraction(losses + k, wins + losses + k)
    chance = term
    for i in range(int(b.total)):
        term *= Fraction((wins + i) * (failures + i), (wins + losses + failures + i) * (i + 1))
        chance += term
    return float(chance)


@given(samples(max_n=60), samples(max_n=60))
def test_probabilities_of_two_small_arms_equal_the_exact_sum(a: Sample, b: Sample) -> None:
    assert probability_best([a, b])[1] == pytest.approx(exact_probability_b_is_best(a, b), abs=1e-9)


@pytest.mark.parametrize("n", [0, 1, 100, 10_000, 10_000_000])
@pytest.mark.parametrize("successes", [0, 20, 300])
def test_quadrature_is_accurate_for_narrow_posteriors(n: int, successes: int) -> None:
    large = 10_000_000
    # Against a uniform posterior, the probability is the mean of the narrow posterior, at both ends of the range.
    low, high = binary_sample(large, successes), binary_sample(large, large - successes)
    assert probability_best([Sample(), low])[1] == pytest.approx((1 + successes) / (2 + large), abs=1e-9)
    assert probability_best([Sample(), high])[1] == pytest.approx(1 - (1 + successes) / (2 + large), abs=1e-9)
    # Mirroring both arms swaps their probabilities, for arms of any size.
    other, mirrored = binary_sample(n, min(n, 5)), binary_sample(n, n - min(n, 5))
    assert probability_best([other, low]) == pytest.approx(probability_best([mirrored, high])[::-1], abs=1e-7)


@pytest.mark.parametrize(
    "arms",
    [
        [binary_sample(0, 0), binary_sample(10, 1), binary_sample(10_000_000, 1_234_567)],
        [
            binary_sample(10_000_000, 30),
            binary_sample(10_000_000, 40),
            binary_sample(1_000_000, 3),
            binary_sample(10, 0),
        ],
        [binary_sample(10_000_000, 9_999_970), binary_sample(1_000_000, 999_998), binary_sample(100_000, 100_000)],
        [binary_sample(10_000_000, 5_000_000), binary_sample(10_000_000, 5_001_000), binary_sample(1_000, 480)],
        [Sample(200, 33.3, 20.0), Sample(300, 50.7, 30.0), Sample(5, 0.25, 0.1)],
    ],
)
def test_quadrature_agrees_with_draws_from_the_posteriors(arms: list[Sample]) -> None:
    draws = 200_000
    rng = np.random.default_rng(7)
    posteriors = np.array([rng.beta(1 + arm.total, 1 + arm.n - arm.total, size=draws) for arm in arms])
    counts = np.bincount(posteriors.argmax(axis=0), minlength=len(arms))
    for best, drawn in zip(probability_best(arms), counts / draws, strict=True):
        assert abs(best - drawn) <= 4 * math.sqrt(best * (1 - best) / draws) + 1 / draws


@given(st.lists(samples(), min_size=1, max_size=5))
def test_probabilities_sum_to_1_and_do_not_depend_on_the_order(arms: list[Sample]) -> None:
    best = probability_best(arms)
    assert sum(best) == pytest.approx(1)
    assert all(0 <= probability <= 1 for probability in best)
    assert probability_best(arms[::-1]) == pytest.approx(best[::-1], abs=1e-9)


@given(samples(), st.integers(1, 5))
def test_equal_arms_have_equal_probabilities(arm: Sample, arms: int) -> None:
    assert probability_best([arm] * arms) == pytest.approx([1 / arms] * arms)


@given(st.integers(1, 10_000_000), st.data())
def test_of_arms_of_equal_size_the_probability_increases_with_the_reward(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.lists(st.integers(0, n), min_size=2, max_size=4).map(sorted))
    best = probability_best([binary_sample(n, count) for count in successes])
    assert all(worse <= better + 1e-9 for worse, better in pairwise(best))


def test_a_single_arm_has_probability_1_and_no_arms_have_none() -> None:
    assert probability_best([binary_sample(10, 3)]) == (1.0,)
    assert probability_best([]) == ()


# Sample ratio test


@pytest.mark.parametrize(
    ("statistic", "options", "p_value"),
    [(3.841459, 2, 0.05), (6.634897, 2, 0.01), (5.991465, 3, 0.05), (16.918978, 10, 0.05), (0, 2, 1)],
)
def test_p_values_equal_those_of_chi_square_tables(statistic: float, options: int, p_value: float) -> None:
    expected = [100.0] * options
    shift = math.sqrt(statistic * 100 / 2)
    observed = [100 + shift, 100 - shift, *expected[2:]]
    assert sample_ratio_p_value(observed, expected) == pytest.approx(p_value, abs=1e-7)


def test_5_200_to_4_800_raises_an_alarm_if_equal_shares_were_logged() -> None:
    assert sample_ratio_p_value([5_200, 4_800], [5_000, 5_000]) == pytest.approx(math.erfc(4 / math.sqrt(2)))
    assert sample_ratio_p_value([5_200, 4_800], [5_000, 5_000]) < SAMPLE_RATIO_ALARM
    assert sample_ratio_p_value([5_100, 4_900], [5_000, 5_000]) > SAMPLE_RATIO_ALARM


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.05, 0.05]])
def test_traffic_that_is_split_as_logged_rarely_raises_an_alarm(shares: list[float]) -> None:
    draws = np.random.default_rng(7).multinomial(10_000, shares, size=2_000).tolist()
    expected = [10_000 * share for share in shares]
    p_values = np.array([sample_ratio_p_value(observed, expected) for observed in draws])
    assert (p_values < SAMPLE_RATIO_ALARM).mean() <= 0.004
    assert (p_values < 0.05).mean() == pytest.approx(0.05, abs=0.02)


def test_the_sample_ratio_test_is_conservative_if_propensities_vary() -> None:
    rng = np.random.default_rng(7)
    propensities = np.concatenate([np.full(500, 0.1), np.full(500, 0.9)])
    first = (rng.random((2_000, 1_000)) < propensities).sum(axis=1).tolist()
    p_values = np.array([sample_ratio_p_value([count, 1_000 - count], [500, 500]) for count in first])
    assert (p_values < 0.05).mean() < 0.01


def test_an_option_of_propensity_0_is_left_out_unless_it_was_drawn() -> None:
    assert sample_ratio_p_value([60, 40, 0], [50, 50, 0]) == sample_ratio_p_value([60, 40], [50, 50])
    assert sample_ratio_p_value([60, 39, 1], [50, 50, 0]) == 0


@pytest.mark.parametrize(("observed", "expected"), [([], []), ([7], [7]), ([7, 0], [7, 0]), ([0, 0], [0, 0])])
def test_fewer_than_two_options_never_raise_an_alarm(observed: list[float], expected: list[float]) -> None:
    assert sample_ratio_p_value(observed, expected) == 1


def test_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        sample_ratio_p_value([1, 2], [3])
