"""Guardrails and gates of rollouts; `tests/bench/guardrails.py` has more runs, and compares with a z-test."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ml.experiments.comparison import PairSums, Stratum, difference, sum_pair
from ml.experiments.confidence_sequence import boundary
from ml.experiments.guardrails import (
    HARM_ALPHA,
    TUNED_AT,
    difference_limits,
    mean_limits,
    slice_results,
    slow_limit,
    tips_to_detect,
)
from ml.experiments.statistics import Sample
from tests.bench.guardrails import (
    EQUAL,
    HARMS,
    MAX_TIPS,
    Traffic,
    draw_traffic,
    harmed_slices,
    rollbacks,
    tips_until_found,
    z_tests,
)

WORSE = Traffic(effect=-0.08)


def sample_of(*terms: float) -> Sample:
    return Sample(len(terms), sum(terms), sum(term**2 for term in terms))


def test_a_15_percent_version_next_to_a_23_percent_champion_is_rolled_back_within_5000_tips() -> None:
    traffic = replace(HARMS["23 % against 15 %, share 10 %"], hours=250)
    tips = tips_until_found(traffic, 200, np.random.default_rng(1))
    assert (tips <= MAX_TIPS).mean() >= 0.9


@pytest.mark.parametrize(
    "name",
    [
        "23 % against 23 %, share 10 %",
        "the same, and both fall from 30 to 20 %",
        "unusable: 2 % against 2 %, share of 1, 5, 25, 50 %",
    ],
)
def test_an_equal_version_is_rarely_rolled_back_by_hourly_looks(name: str) -> None:
    traffic, runs = EQUAL[name], 40
    counts = draw_traffic(traffic, runs, np.random.default_rng(1))
    assert counts.tips.sum(axis=(0, 2)).tolist() == [20_000] * runs
    assert rollbacks(counts, traffic.harm).any(axis=0).mean() <= HARM_ALPHA
    # The traffic is one on which another method does harm.
    assert z_tests(counts, traffic.harm).any(axis=0).mean() > 3 * HARM_ALPHA


@pytest.mark.parametrize(("baseline", "harmed", "share"), [(0.23, 0.15, 0.1), (0.5, 0.4, 0.2), (0.98, 0.8, 0.1)])
def test_the_planned_number_of_tips_finds_the_harm_with_about_the_stated_power(
    baseline: float, harmed: float, share: float
) -> None:
    planned = tips_to_detect(baseline, harmed, share)
    assert planned
    rates, effect = (baseline, baseline), harmed - baseline
    traffic = Traffic(rates, effect, (share,), hours=planned // 20, earlier_tips=2_000)
    tips = tips_until_found(traffic, 200, np.random.default_rng(1))
    assert (tips <= planned).mean() == pytest.approx(0.9, abs=0.06)


def test_a_drop_from_23_to_15_percent_at_a_tenth_of_tips_takes_a_few_thousand() -> None:
    planned = tips_to_detect(0.23, 0.15, 0.10)
    assert planned
    assert 3_000 < planned < MAX_TIPS


def test_more_tips_are_needed_for_less_harm_smaller_shares_more_power_and_more_confidence() -> None:
    reference = tips_to_detect(0.23, 0.15, 0.1)
    others = [
        tips_to_detect(0.23, 0.17, 0.1),
        tips_to_detect(0.23, 0.15, 0.05),
        tips_to_detect(0.23, 0.15, 0.1, power=0.95),
        tips_to_detect(0.23, 0.15, 0.1, alpha=0.01),
        tips_to_detect(0.23, 0.15, 0.1, tuned_at=1_000),
    ]
    assert reference
    assert all(other and other > reference for other in others)


@pytest.mark.parametrize(("baseline", "harmed", "share"), [(0.2, 0.2, 0.1), (0.2, 0.3, 0.1), (0.23, 0.229, 0.01)])
def test_no_number_of_tips_is_planned_without_harm_or_for_too_little(
    baseline: float, harmed: float, share: float
) -> None:
    assert tips_to_detect(baseline, harmed, share) is None


@settings(max_examples=30)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 0.999))
@example(1.0, 0.0, 0.5)
def test_any_harm_has_a_plan_that_is_no_longer_for_a_larger_one(baseline: float, harmed: float, share: float) -> None:
    planned, of_total_harm = tips_to_detect(baseline, harmed, share), tips_to_detect(baseline, 0.0, share)
    assert planned is None or (harmed < baseline and of_total_harm is not None and 0 < of_total_harm <= planned + 1)


sums = st.builds(PairSums, st.floats(-50, 50), st.floats(0, 500), st.floats(1, 1_000), st.integers(1, 10_000))


@given(sums)
def test_the_limits_of_a_difference_are_one_sided_and_mirror_each_other(pair: PairSums) -> None:
    limits, mirrored = difference_limits(pair), difference_limits(replace(pair, effect=-pair.effect))
    assert limits
    assert mirrored
    assert -1 <= limits.low <= limits.estimate <= limits.high <= 1
    assert (mirrored.estimate, mirrored.low, mirrored.high) == pytest.approx(
        (-limits.estimate, -limits.high, -limits.low)
    )
    half_width = float(boundary(np.array(pair.squares), alpha=HARM_ALPHA, tuned_at=TUNED_AT))
    assert (limits.high < 0) == (pair.effect + half_width < 0)


def test_limits_of_each_side_equal_the_interval_of_twice_the_level_with_the_same_tuning() -> None:
    pair = PairSums(-20.0, 300.0, 400.0, 4_000)
    limits, interval = difference_limits(pair, tuned_at=400.0), difference(pair, alpha=2 * HARM_ALPHA)
    assert limits
    assert interval
    assert (limits.estimate, limits.low, limits.high) == (interval.estimate, interval.low, interval.high)


def test_without_overlap_there_are_no_limits() -> None:
    assert difference_limits(PairSums()) is None
    assert mean_limits({}) is mean_limits({3: Sample()}) is None


def test_tips_before_those_that_are_compared_only_give_a_centre() -> None:
    both = {"a": 0.5, "b": 0.5}
    strata = [Stratum(2, both, "a", sample_of(1, 0, 0)), Stratum(2, both, "b", sample_of(1, 1, 0))]
    alone, centred = (
        sum_pair(strata, "a", "b", earlier=earlier) for earlier in ([], [Stratum(1, both, "a", sample_of(1, 0))])
    )
    assert (alone.tips, alone.overlap) == (centred.tips, centred.overlap) == (6, 1.5)
    assert (alone.squares, centred.squares) == (3 / 4, 6 / 16)
    assert alone.effect == centred.effect == 0.5
    same_day = sum_pair(strata, "a", "b", earlier=[Stratum(2, both, "a", sample_of(1, 0))])
    assert same_day == alone


# Means of terms by day.

days = st.dictionaries(
    st.integers(0, 5), st.lists(st.floats(-1, 1), max_size=20).map(lambda terms: sample_of(*terms)), max_size=6
)


@given(days, st.floats(0.01, 100))
def test_limits_of_a_mean_scale_with_the_terms(of_days: dict[int, Sample], scale: float) -> None:
    scaled = {day: Sample(s.n, s.total * scale, s.squares * scale**2) for day, s in of_days.items()}
    limits, of_scaled = mean_limits(of_days), mean_limits(scaled, scale=scale)
    assert (limits is None) == (of_scaled is None) == (not sum(s.n for s in of_days.values()))
    if limits and of_scaled:
        assert -1 <= limits.low <= limits.estimate <= limits.high <= 1
        expected = [scale * each for each in (limits.estimate, limits.low, limits.high)]
        assert [of_scaled.estimate, of_scaled.low, of_scaled.high] == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("mean", [-0.6, 0.0])
def test_each_limit_of_a_mean_is_rarely_wrong_at_any_daily_look(mean: float) -> None:
    rng, runs, days = np.random.default_rng(3), 60, 10
    means = mean + np.linspace(-0.1, 0.1, days)
    positive = rng.binomial(100, (1 + means) / 2, (runs, days))
    truths = (means.cumsum() / np.arange(1, days + 1)).tolist()
    too_low = too_high = 0
    for run in positive.tolist():
        samples = {day: Sample(100, 2.0 * good - 100, 100.0) for day, good in enumerate(run)}
        looks = [mean_limits({day: samples[day] for day in range(last + 1)}) for last in range(days)]
        too_high += any(limits.low > truth for limits, truth in zip(looks, truths, strict=True) if limits)
        too_low += any(limits.high < truth for limits, truth in zip(looks, truths, strict=True) if limits)
    assert max(too_low, too_high) <= HARM_ALPHA * runs
    assert looks[-1]
    assert looks[-1].high - looks[-1].low < 0.22


def test_a_mean_far_from_0_is_centred_on_the_day_before_up_to_a_quarter_of_the_scale() -> None:
    first, second = sample_of(*[-0.5] * 100), sample_of(*[-0.5] * 100)
    limits = mean_limits({1: first, 2: second})
    assert limits
    squares = 100 * 0.25 + 100 * 0.0625
    half_width = float(boundary(np.array(squares), alpha=HARM_ALPHA, scale=1.25, tuned_at=TUNED_AT)) / 200
    assert (limits.estimate, limits.high) == pytest.approx((-0.5, -0.5 + half_width))


# Slices.


def test_no_slice_of_equal_versions_is_harmed_more_often_than_the_level_allows() -> None:
    ours, usual = harmed_slices(60, np.random.default_rng(1), hours=96)
    assert ours.mean() <= HARM_ALPHA
    assert usual.mean() > 0.5


def slice_of(n: int, champion: float, canary: float) -> list[Stratum]:
    half = {"a": 0.5, "b": 0.5}
    return [
        Stratum(day, half, version, Sample(n, n * rate, n * rate))
        for day in range(2)
        for version, rate in (("a", champion), ("b", canary))
    ]


SLICES = {
    "harmed": slice_of(2_000, 0.3, 0.1),
    "alike": slice_of(4_000, 0.3, 0.3),
    "small": slice_of(10, 0.3, 0.1),
    "none": [],
    "little harm": slice_of(20_000, 0.3, 0.27),
}


def test_a_slice_is_harmed_not_harmed_or_unknown() -> None:
    results = slice_results(SLICES, "a", "b", alpha=0.05, margin=0.05)
    assert [(result.name, result.tips, result.status) for result in results] == [
        ("harmed", 8_000, "harmed"),
        ("alike", 16_000, "not harmed"),
        ("small", 40, "unknown"),
        ("none", 0, "unknown"),
        ("little harm", 80_000, "harmed"),  # also below the margin
    ]
    assert results[3].limits is None


def test_the_limits_of_slices_share_the_level() -> None:
    results = slice_results(SLICES, "a", "b", alpha=0.05, margin=0.05)
    assert results[0].limits == difference_limits(sum_pair(SLICES["harmed"], "a", "b"), alpha=0.01)
    assert slice_results({}, "a", "b", alpha=0.05, margin=0.05) == []


def test_no_margin_is_met_by_chance_alone() -> None:
    (result,) = slice_results({"alike": SLICES["alike"]}, "a", "b", alpha=0.05, margin=0.0)
    assert result.status == "unknown"


@pytest.mark.parametrize(("percentile", "limit"), [(4, 54), (200, 250), (1_000, 1_250)])
def test_a_difference_that_nobody_notices_is_not_slow(percentile: float, limit: int) -> None:
    assert slow_limit(percentile) == limit
