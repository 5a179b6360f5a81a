import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.exploration import FLOOR
from ml.experiments.statistics import Sample, probability_best
from ml.experiments.thompson import ThompsonSampling
from tests.experiments.test_assignment import DECISIONS, matches_distribution

unit_interval = st.floats(0, 1, exclude_max=True)
rewards = st.lists(st.floats(0, 1), max_size=50).map(
    lambda values: Sample(len(values), math.fsum(values), math.fsum(value * value for value in values))
)
arms = st.dictionaries(st.text("abcv123", min_size=1), rewards, min_size=1, max_size=8)
floors = st.floats(0, 0.12)


def binary_sample(n: int, successes: float) -> Sample:
    return Sample(n, successes, successes)


@pytest.mark.parametrize(
    "arms",
    [
        {"v1": binary_sample(1_000, 50), "v2": binary_sample(1_000, 60), "v3": binary_sample(1_000, 45)},
        {"v1": binary_sample(10, 3), "v2": Sample()},
        {
            "v1": binary_sample(4_000, 800),
            "v2": binary_sample(4_000, 880),
            "v3": binary_sample(12_000, 3_240),
            "v4": Sample(),
        },
        {"v1": Sample(200, 33.3, 20.0), "v2": Sample(300, 50.7, 30.0), "v3": Sample(5, 0.25, 0.1)},
        {f"v{n}": binary_sample(100, 20 + n) for n in range(10)},
    ],
)
@pytest.mark.parametrize("floor", [0, FLOOR])
def test_probabilities_equal_the_frequencies_of_a_million_posterior_draws(
    arms: dict[str, Sample], floor: float
) -> None:
    draws = 1_000_000
    rng = np.random.default_rng(7)
    posteriors = np.array([rng.beta(1 + arm.total, 1 + arm.n - arm.total, draws) for arm in arms.values()])
    counts = np.bincount(posteriors.argmax(axis=0), minlength=len(arms)) / draws
    above_floor = 1 - len(arms) * floor
    for probability, best in zip(ThompsonSampling(floor).distribution(arms).values(), counts, strict=True):
        error = above_floor * math.sqrt(best * (1 - best) / draws)
        assert abs(probability - (floor + above_floor * best)) <= 4 * error + 1 / draws


def test_probabilities_of_50_60_and_45_successes_in_1_000_equal_the_reference_values() -> None:
    arms = {"v1": binary_sample(1_000, 50), "v2": binary_sample(1_000, 60), "v3": binary_sample(1_000, 45)}
    exact = {"v1": 0.1520, "v2": 0.8008, "v3": 0.0472}
    assert ThompsonSampling(floor=0).distribution(arms) == pytest.approx(exact, abs=5e-5)
    floored = {arm: 0.02 + 0.94 * probability for arm, probability in exact.items()}
    assert ThompsonSampling().distribution(arms) == pytest.approx(floored, abs=5e-5)


@given(arms, floors, unit_interval)
def test_probabilities_sum_to_1_and_are_at_least_the_floor(arms: dict[str, Sample], floor: float, u: float) -> None:
    distribution = ThompsonSampling(floor).distribution(arms)
    assert [*distribution] == [*arms]
    assert sum(distribution.values()) == pytest.approx(1, abs=1e-12)
    assert min(distribution.values()) >= floor
    drawn = draw_weighted(distribution, u)
    assert drawn.probability == drawn.distribution[drawn.option] > 0
    assert drawn.probability == pytest.approx(distribution[drawn.option])


@given(arms, unit_interval)
def test_the_same_counts_and_random_number_give_the_same_draw(arms: dict[str, Sample], u: float) -> None:
    distribution = ThompsonSampling().distribution(arms)
    drawn = draw_weighted(distribution, u)
    assert ThompsonSampling().distribution(dict(arms)) == distribution
    # A draw from the logged distribution is the same as well.
    assert draw_weighted(drawn.distribution, u).option == drawn.option


@given(arms)
def test_a_new_arm_has_the_prior_as_its_posterior(arms: dict[str, Sample]) -> None:
    new = ThompsonSampling(floor=0).distribution(arms | {"new": Sample()})
    assert [*new.values()] == [*probability_best([*(arms | {"new": binary_sample(0, 0)}).values()])]
    assert ThompsonSampling().distribution({"v1": Sample(), "v2": Sample()}) == pytest.approx({"v1": 0.5, "v2": 0.5})


@pytest.mark.parametrize("floor", [-0.01, 1, 1.5, math.nan, math.inf])
def test_an_invalid_floor_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="floor"):
        ThompsonSampling(floor)


@pytest.mark.parametrize(("floor", "k"), [(0.02, 0), (0, 0), (0.02, 50), (0.5, 2), (0.5, 3)])
def test_floors_that_add_up_to_1_or_more_are_refused(floor: float, k: int) -> None:
    with pytest.raises(ValueError, match="at least one arm"):
        ThompsonSampling(floor).distribution({f"v{n}": Sample() for n in range(k)})


def test_arms_are_drawn_with_the_frequency_of_their_propensities() -> None:
    arms = {"v1": binary_sample(1_000, 50), "v2": binary_sample(1_000, 60), "v3": Sample()}
    distribution = ThompsonSampling().distribution(arms)
    counts = Counter(draw_weighted(distribution, hash_to_unit_interval("tip", str(n))).option for n in range(DECISIONS))
    assert matches_distribution(counts, distribution)


def test_with_rewards_a_day_late_the_regret_is_at_most_a_quarter_of_the_uniform_policy() -> None:
    means = np.array([0.20, 0.22, 0.27])
    seeds, tips, days, every = 50, 20_000, 20, 4
    periods, delay = days * 24 // every, 24 // every
    rng = np.random.default_rng(7)
    shown = np.zeros((periods, seeds, means.size), np.int64)
    earned = np.zeros_like(shown)
    ends = np.linspace(0, tips, periods + 1).astype(int)
    for period, size in enumerate(np.diff(ends)):
        known = slice(0, max(0, period - delay))
        n, total = shown[known].sum(axis=0), earned[known].sum(axis=0)
        probabilities = [
            [
                *ThompsonSampling()
                .distribution({str(arm): binary_sample(*counts) for arm, counts in enumerate(seed)})
                .values()
            ]
            for seed in np.stack([n, total], axis=2).tolist()
        ]
        shown[period] = rng.multinomial(size, probabilities)
        earned[period] = rng.binomial(shown[period], means)
    assert shown.sum() == seeds * tips
    gaps = means.max() - means
    regret = (shown * gaps).sum() / seeds
    assert regret <= 0.25 * tips * gaps.mean()
