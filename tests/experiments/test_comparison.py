"""Comparisons of two versions: the sums, and how often and how soon their confidence sequence excludes 0."""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.comparison import PairSums, Stratum, difference, sum_pair, tips_needed
from ml.experiments.confidence_sequence import boundary, previous_means
from ml.experiments.statistics import Sample

ALPHA = 0.05
DISTRIBUTIONS: list[Mapping[str, float]] = [
    {"a": 0.5, "b": 0.5},
    {"a": 0.9, "b": 0.1},
    {"a": 0.8, "b": 0.05, "c": 0.15},
    {"a": 1.0},
    {"b": 0.3, "c": 0.7},
    {"a": 0.4, "b": 0.0, "c": 0.6},
]

tips = st.tuples(st.integers(0, 4), st.sampled_from(range(len(DISTRIBUTIONS))), st.sampled_from("abc"), st.floats(0, 1))
logs = st.lists(tips, max_size=60)
Tip = tuple[int, int, str, float]


def sample_of(rewards: list[float]) -> Sample:
    return Sample(len(rewards), math.fsum(rewards), math.fsum(reward**2 for reward in rewards))


def strata_of(log: list[Tip]) -> list[Stratum]:
    rewards: dict[tuple[int, int, str], list[float]] = defaultdict(list)
    for day, distribution, version, reward in log:
        rewards[day, distribution, version].append(reward)
    return [
        Stratum(day, DISTRIBUTIONS[distribution], version, sample_of(values))
        for (day, distribution, version), values in rewards.items()
    ]


def as_tuple(sums: PairSums) -> tuple[float, ...]:
    return sums.effect, sums.squares, sums.overlap, sums.tips


@given(logs)
def test_the_sums_equal_those_over_single_tips(log: list[Tip]) -> None:
    effect = squares = overlap = 0.0
    counted = 0
    for day, distribution, version, reward in log:
        p_a, p_b = (DISTRIBUTIONS[distribution].get(name, 0) for name in "ab")
        if version in "ab" and p_a and p_b:
            earlier = [tip for tip in log if tip[0] < day and tip[2] in "ab"]
            nearest = max((tip[0] for tip in earlier), default=None)
            of_nearest = [tip[3] for tip in earlier if tip[0] == nearest]
            centre = sum(of_nearest) / len(of_nearest) if of_nearest else 0
            q = p_b / (p_a + p_b)
            term = (1 - q) * (reward - centre) if version == "b" else -q * (reward - centre)
            effect, squares, overlap = effect + term, squares + term**2, overlap + q * (1 - q)
            counted += 1
    assert as_tuple(sum_pair(strata_of(log), "a", "b")) == pytest.approx((effect, squares, overlap, counted), abs=1e-9)


@given(logs, st.integers(0, 60))
def test_the_sums_do_not_depend_on_how_tips_are_split_into_strata(log: list[Tip], cut: int) -> None:
    together = sum_pair(strata_of(log), "a", "b")
    split = sum_pair([*strata_of(log[:cut]), *strata_of(log[cut:])], "a", "b")
    assert as_tuple(split) == pytest.approx(as_tuple(together), abs=1e-9)


@given(logs, st.integers(0, 4))
def test_the_sums_of_two_periods_are_added(log: list[Tip], last: int) -> None:
    before = [tip for tip in log if tip[0] <= last]
    # A tip of another pair carries the centre from the first period to the second without entering its sums.
    rewards = [tip for tip in before if tip[2] in "ab"]
    nearest = [tip[3] for tip in rewards if tip[0] == max(other[0] for other in rewards)]
    carried = [Stratum(-1, {"a": 1.0}, "a", sample_of(nearest))] if nearest else []
    after = strata_of([tip for tip in log if tip[0] > last])
    added = sum_pair(strata_of(before), "a", "b") + sum_pair([*carried, *after], "a", "b")
    assert as_tuple(added) == pytest.approx(as_tuple(sum_pair(strata_of(log), "a", "b")), abs=1e-9)


@given(logs)
def test_swapping_the_versions_mirrors_the_difference(log: list[Tip]) -> None:
    strata = strata_of(log)
    sums, swapped = sum_pair(strata, "a", "b"), sum_pair(strata, "b", "a")
    assert as_tuple(swapped) == pytest.approx((-sums.effect, sums.squares, sums.overlap, sums.tips), abs=1e-9)
    forward, backward = difference(sums, alpha=ALPHA), difference(swapped, alpha=ALPHA)
    assert (forward is None) == (backward is None) == (not sums.tips)
    if forward and backward:
        assert (forward.estimate, forward.low, forward.high) == pytest.approx(
            (-backward.estimate, -backward.high, -backward.low), abs=1e-6
        )
        assert -1 <= forward.low <= forward.estimate <= forward.high <= 1


def test_a_level_that_both_versions_share_does_not_matter_after_the_first_day() -> None:
    low = [(day, 0, version, reward) for day in range(4) for version in "ab" for reward in (0.0, 0.1, 0.2)]
    high = [(day, distribution, version, reward + 0.7) for day, distribution, version, reward in low]
    first = [(-1, 3, "a", 0.1)], [(-1, 3, "a", 0.8)]  # only `a` was possible, so it only sets the centre
    sums = [sum_pair(strata_of(day + log), "a", "b") for day, log in zip(first, (low, high), strict=True)]
    assert as_tuple(sums[0]) == pytest.approx(as_tuple(sums[1]))


def test_the_centre_is_the_mean_of_the_nearest_earlier_day() -> None:
    days = {3: Sample(2, 1.0, 1.0), 7: Sample(4, 1.0, 1.0), 9: Sample(1, 1.0, 1.0)}
    assert previous_means(days) == {3: 0.0, 7: 0.5, 9: 0.25}


def test_strata_without_overlap_give_no_difference() -> None:
    log: list[Tip] = [(0, 3, "a", 1.0), (0, 4, "b", 0.0), (1, 5, "a", 1.0)]
    sums = sum_pair(strata_of(log), "a", "b")
    assert as_tuple(sums) == (0, 0, 0, 0)
    assert difference(sums, alpha=ALPHA) is None
    assert tips_needed(sums, alpha=ALPHA) is None


@given(st.floats(-0.2, 0.2), st.floats(0.01, 0.25), st.integers(1, 100_000))
def test_after_the_needed_tips_the_interval_excludes_0_and_not_a_tenth_before(
    effect: float, square: float, n: int
) -> None:
    def at(further: float) -> bool:
        factor = 1 + further / n
        interval = difference(PairSums(effect * n * factor, square * n * factor, 0.25 * n * factor, n), alpha=ALPHA)
        assert interval is not None
        return interval.low > 0 or interval.high < 0

    needed = tips_needed(PairSums(effect * n, square * n, 0.25 * n, n), alpha=ALPHA)
    if needed is None:
        assert not at(900_000)
    else:
        assert at(needed + 1)
        if needed > 50:
            assert not at(0.9 * needed)


# Simulated traffic: 500 tips a day, looked at daily.


def daily_sums(
    rng: np.random.Generator, runs: int, means: np.ndarray, shares: np.ndarray, *, daily: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cumulative effect and squares, each of shape (runs, days), of two versions.

    `means`, `shares`: shape (days, versions); the versions compared are the first and the last.
    """
    days = len(means)
    drawn = np.array([rng.multinomial(daily, shares[day], runs) for day in range(days)])[:, :, [0, -1]]
    n = drawn.transpose(1, 0, 2)
    successes = rng.binomial(n, means[:, [0, -1]])
    pair_n, pair_successes = n.sum(2), successes.sum(2)
    centre = np.zeros((runs, days))
    centre[:, 1:] = (pair_successes / np.maximum(pair_n, 1))[:, :-1]
    q = (shares[:, -1] / (shares[:, 0] + shares[:, -1]))[None, :]
    weights = np.stack([np.broadcast_to(-q, centre.shape), np.broadcast_to(1 - q, centre.shape)], 2)
    total = successes - n * centre[:, :, None]
    squares = successes * (1 - centre[:, :, None]) ** 2 + (n - successes) * centre[:, :, None] ** 2
    return (weights * total).sum(2).cumsum(1), (weights**2 * squares).sum(2).cumsum(1)


def verdicts(sums: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    effect, squares = sums
    return np.asarray(abs(effect) > boundary(squares, alpha=ALPHA / 2))


def constant(values: list[float], days: int) -> np.ndarray:
    return np.tile(np.array(values), (days, 1))


def test_the_vectorised_simulation_equals_the_sums_of_its_strata() -> None:
    rng = np.random.default_rng(3)
    effect, squares = daily_sums(rng, 1, constant([0.2, 0.3], 3), constant([0.7, 0.3], 3))
    rng = np.random.default_rng(3)
    n = np.array([rng.multinomial(500, [0.7, 0.3], 1) for _ in range(3)]).transpose(1, 0, 2)
    successes = rng.binomial(n, constant([0.2, 0.3], 3))
    strata = [
        Stratum(day, {"a": 0.7, "b": 0.3}, "ab"[version], Sample(int(count), float(good), float(good)))
        for day, version in itertools.product(range(3), range(2))
        for count, good in [(n[0, day, version], successes[0, day, version])]
    ]
    sums = sum_pair(strata, "a", "b")
    assert (sums.effect, sums.squares) == pytest.approx((effect[0, -1], squares[0, -1]))


@pytest.mark.parametrize(
    ("rates", "shares"),
    [
        ([0.2, 0.2], [0.5, 0.5]),
        ([0.01] * 5, [0.8, 0.05, 0.05, 0.05, 0.05]),
        ([0.02] * 5, [0.8, 0.05, 0.05, 0.05, 0.05]),
    ],
)
def test_equal_versions_with_daily_looks_rarely_get_a_verdict(rates: list[float], shares: list[float]) -> None:
    rng = np.random.default_rng(7)
    runs = 1_000
    found = verdicts(daily_sums(rng, runs, constant(rates, 90), constant(shares, 90)))
    assert found.any(1).mean() <= 0.03


def test_equal_versions_rarely_get_a_verdict_when_shares_and_rates_change_together() -> None:
    rng = np.random.default_rng(7)
    days = np.arange(90)
    shares = np.where(days[:, None] < 30, [0.9, 0.1], [0.5, 0.5])
    means = np.repeat(np.where(days < 30, 0.2, 0.3)[:, None], 2, 1)
    assert verdicts(daily_sums(rng, 1_000, means, shares)).any(1).mean() <= 0.03


@pytest.mark.parametrize(("rate", "days"), [(0.22, 33), (0.25, 7)])
def test_a_difference_is_found_in_time(rate: float, days: int) -> None:
    rng = np.random.default_rng(7)
    found = verdicts(daily_sums(rng, 1_000, constant([0.2, rate], days), constant([0.5, 0.5], days)))
    assert found.any(1).mean() >= 0.5
