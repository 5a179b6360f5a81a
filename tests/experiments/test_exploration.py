import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.exploration import SquareCB
from tests.experiments.test_assignment import DECISIONS, matches_distribution

scores = st.lists(st.floats(0, 1), min_size=1, max_size=50).map(np.array)
gammas = st.floats(1e-3, 1e6)


@given(scores, gammas, st.floats(0, 1, exclude_max=True))
def test_probabilities_sum_to_1_are_above_0_and_increase_with_the_score(
    scores: np.ndarray, gamma: float, floor: float
) -> None:
    probabilities = SquareCB(gamma, floor).distribution(scores)
    assert probabilities.shape == scores.shape
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert (probabilities > 0).all()
    assert (probabilities >= floor / scores.size * (1 - 1e-12)).all()
    better = scores[:, None] > scores
    assert (probabilities[:, None] >= probabilities - 1e-12)[better].all()


@given(scores, gammas)
def test_the_inverse_probability_of_an_option_is_linear_in_its_gap(scores: np.ndarray, gamma: float) -> None:
    probabilities = SquareCB(gamma, floor=0).distribution(scores)
    for option in range(scores.size):
        if option != scores.argmax():
            gap = scores.max() - scores[option]
            assert 1 / probabilities[option] == pytest.approx(scores.size + gamma * gap)


def test_distributions_equal_values_computed_by_hand() -> None:
    scores = np.array([0.5, 0.3, 0.5, 0.1])
    expected = np.array([0, 1 / 6, 1 / 4, 1 / 8])
    expected[0] = 1 - expected.sum()
    assert SquareCB(10, floor=0).distribution(scores) == pytest.approx(expected)
    assert SquareCB(10, floor=0.1).distribution(scores) == pytest.approx(0.9 * expected + 0.025)
    assert SquareCB(10).distribution(np.array([0.3])) == pytest.approx([1.0])
    assert SquareCB(10).distribution(np.array([0.3, 0.3])) == pytest.approx([0.5, 0.5])


def test_options_are_drawn_with_the_frequency_of_their_propensities() -> None:
    probabilities = SquareCB(30).distribution(np.array([0.2, 0.22, 0.27, 0.1])).tolist()
    distribution = dict(zip("abcd", probabilities, strict=True))
    counts = Counter(
        draw_weighted(distribution, hash_to_unit_interval("score", str(n))).option for n in range(DECISIONS)
    )
    assert matches_distribution(counts, distribution)


@pytest.mark.parametrize("gamma", [0, -1, math.nan, math.inf])
def test_an_invalid_gamma_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        SquareCB(gamma)


@pytest.mark.parametrize("scores", [[], [0.1, math.nan], [math.inf, 0.1], [[0.1, 0.2]], 0.1])
def test_invalid_scores_are_refused(scores: object) -> None:
    with pytest.raises(ValueError, match="scores"):
        SquareCB(10).distribution(np.array(scores, float))


@pytest.mark.parametrize("floor", [-0.1, 1, 1.5, math.nan, math.inf])
def test_an_invalid_floor_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="floor"):
        SquareCB(10, floor)
