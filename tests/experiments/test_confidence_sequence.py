"""Time-uniform boundaries."""

import numpy as np
import pytest
from scipy import integrate, special, stats

from ml.experiments.confidence_sequence import boundary, rate
from ml.experiments.statistics import Interval, Sample


@pytest.mark.parametrize("squares", [0.0, 3.0, 400.0])
def test_at_the_boundary_the_mixture_of_the_supermartingales_is_one_over_alpha(squares: float) -> None:
    alpha, tuned_at = 0.025, 50.0
    sum_at = float(boundary(np.array(squares), alpha=alpha, tuned_at=tuned_at))
    rho = tuned_at / (-float(special.lambertw(-(alpha**2) / np.e, -1).real) - 1)

    def integrand(tilt: float) -> float:
        exponent = tilt * sum_at - squares * (-np.log1p(-tilt) - tilt)
        # Proposition 9: the density of 1 - tilt is that of a gamma distribution, restricted to [0, 1].
        mixing = stats.gamma(rho, scale=1 / rho)
        return float(np.exp(exponent) * mixing.pdf(1 - tilt) / mixing.cdf(1))

    mixture = integrate.quad(integrand, 0, 1, limit=500)[0]
    assert mixture == pytest.approx(1 / alpha, rel=1e-4)


@pytest.mark.parametrize(("value", "probability"), [(1.0, 0.5), (0.9, 0.1)], ids=["symmetric", "skewed"])
def test_a_fair_sum_crosses_it_at_any_time_with_at_most_the_stated_probability(
    value: float, probability: float
) -> None:
    rng, alpha = np.random.default_rng(7), 0.05
    other = -value * probability / (1 - probability)  # so that the mean is 0
    terms = np.where(rng.random((2_000, 2_000)) < probability, value, other)
    looks = slice(19, None, 20)
    squares = (terms**2).cumsum(1)[:, looks]
    for sums in (terms.cumsum(1)[:, looks], -terms.cumsum(1)[:, looks]):
        assert 0 < (sums >= boundary(squares, alpha=alpha, tuned_at=50)).any(1).mean() <= alpha


def test_it_is_wider_for_more_confidence_and_scales_with_the_terms() -> None:
    squares = np.array([1.0, 100.0, 10_000.0])
    assert (boundary(squares, alpha=0.001) > boundary(squares, alpha=0.05)).all()
    scaled = boundary(9 * squares, alpha=0.05, scale=3.0, tuned_at=3_600.0)
    np.testing.assert_allclose(scaled, 3 * boundary(squares, alpha=0.05, tuned_at=400.0), rtol=1e-9)


def test_the_mean_reward_of_traffic_is_covered_at_every_daily_look_while_it_drifts() -> None:
    rng = np.random.default_rng(3)
    runs, days, daily = 200, 30, 50
    means = np.linspace(0.05, 0.4, days)
    successes = rng.binomial(daily, means, (runs, days))
    missed = 0
    for run in successes.tolist():
        samples = {day: Sample(daily, good, good) for day, good in enumerate(run)}
        intervals = [rate({d: samples[d] for d in range(day + 1)}, alpha=0.05) for day in range(days)]
        truths = means.cumsum() / np.arange(1, days + 1)
        missed += any(not i.low <= truth <= i.high for i, truth in zip(intervals, truths.tolist(), strict=True))
    assert missed <= 0.05 * runs
    assert intervals[-1].high - intervals[-1].low < 0.1


def test_without_rewards_the_interval_of_a_mean_is_the_whole_range() -> None:
    assert rate({}, alpha=0.05) == rate({3: Sample()}, alpha=0.05) == Interval(0, 0, 1)
    assert rate({3: Sample(20, 0, 0)}, alpha=0.05).high > 0.1
