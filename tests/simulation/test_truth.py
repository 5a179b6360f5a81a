"""The rows of the benchmark of verdicts (`tests/bench/truth.py`) in a smaller form, with fixed seeds."""

import numpy as np
import pytest

from ml.experiments.sample_ratio import ALARM_LEVEL
from tests.bench.daily_looks import LEVEL, overlap_looks
from tests.bench.daily_traffic import Traffic, draw_traffic
from tests.bench.truth import (
    FALSE_VERDICTS,
    MISSES,
    POWER,
    SAMPLE_RATIOS,
    false_verdicts,
    median_days,
    misses,
    sample_ratio_alarms,
)

RUNS = 100


@pytest.mark.parametrize("traffic", FALSE_VERDICTS.values(), ids=[*FALSE_VERDICTS])
def test_identical_versions_rarely_get_a_verdict(traffic: Traffic) -> None:
    assert false_verdicts(traffic, RUNS, np.random.default_rng(1)).seen <= LEVEL


@pytest.mark.parametrize("traffic", MISSES.values(), ids=[*MISSES])
def test_intervals_contain_the_mean_difference_of_the_traffic(traffic: Traffic) -> None:
    assert misses(traffic, RUNS, np.random.default_rng(1)).seen <= LEVEL


def test_the_scenarios_mislead_pooled_means() -> None:
    changed_shares = FALSE_VERDICTS["90/10 to 50/50 on day 30, rewards rise from 20 to 30 %"]
    assert false_verdicts(changed_shares, RUNS, np.random.default_rng(1)).usual > 0.8


def test_with_different_preferences_the_interval_is_not_about_the_mean_user() -> None:
    (heavy_users, *_) = MISSES.values()
    counts = draw_traffic(heavy_users, RUNS, np.random.default_rng(1))
    assert overlap_looks(counts).misses(counts.user_differences).any(axis=0).mean() > 0.3


@pytest.mark.parametrize(("traffic", "bound"), POWER.values(), ids=[*POWER])
def test_a_difference_is_found_in_time(traffic: Traffic, bound: float) -> None:
    assert 2 < median_days(traffic, 4 * RUNS, np.random.default_rng(1)).seen <= bound


@pytest.mark.parametrize("traffic", SAMPLE_RATIOS.values(), ids=[*SAMPLE_RATIOS])
def test_the_sample_ratio_test_does_not_alarm_when_nothing_is_lost(traffic: Traffic) -> None:
    assert sample_ratio_alarms(traffic, RUNS, np.random.default_rng(1)).seen <= ALARM_LEVEL
