import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ml.experiments.statistics import Sample, difference_of_means

rewards = st.lists(st.floats(0, 1), max_size=50)


def sample_of(values: list[float]) -> Sample:
    return Sample(len(values), math.fsum(values), math.fsum(value * value for value in values))


def binary_sample(n: int, successes: int) -> Sample:
    return Sample(n, successes, successes)


@given(rewards, rewards)
def test_merging_samples_equals_pooling_their_rewards(a: list[float], b: list[float]) -> None:
    merged, pooled = sample_of(a) + sample_of(b), sample_of(a + b)
    assert merged.n == pooled.n
    assert merged.total == pytest.approx(pooled.total)
    assert merged.squares == pytest.approx(pooled.squares)
    assert merged.mean == pytest.approx(pooled.mean)


def test_an_empty_sample_has_mean_0_and_is_neutral_in_a_sum() -> None:
    assert Sample().mean == 0
    assert Sample() + binary_sample(10, 3) == binary_sample(10, 3)


@given(rewards, st.floats(0, 1))
def test_a_centred_sample_is_the_one_of_the_rewards_minus_the_centre(values: list[float], centre: float) -> None:
    centred, expected = sample_of(values).centred(centre), sample_of([value - centre for value in values])
    assert centred.n == expected.n
    assert (centred.total, centred.squares) == pytest.approx((expected.total, expected.squares), abs=1e-9)


@given(
    *[st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=30)] * 2,
    st.sampled_from([0.05, 0.01]),
)
def test_the_difference_of_means_has_welchs_interval(first: list[float], second: list[float], alpha: float) -> None:
    interval = difference_of_means(sample_of(first), sample_of(second), alpha=alpha)
    assert interval
    assert interval.estimate == pytest.approx(np.mean(first) - np.mean(second), abs=1e-12)
    if len({*first}) == len({*second}) == 1:
        assert interval.low == interval.estimate == interval.high
    elif len({*first}) > 1 and len({*second}) > 1:  # scipy warns of a sample without variance
        expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(1 - alpha)
        assert (interval.low, interval.high) == pytest.approx((max(expected.low, -1), min(expected.high, 1)), abs=1e-9)


def test_one_value_has_no_difference_of_means() -> None:
    assert difference_of_means(sample_of([0.5]), sample_of([0.5, 1.0])) is None
    assert difference_of_means(sample_of([0.5, 1.0]), Sample()) is None
