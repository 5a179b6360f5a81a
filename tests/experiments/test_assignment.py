import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from ml.experiments.assignment import weighted

weights = st.dictionaries(st.text("abcv123", min_size=1), st.floats(1e-3, 1e6), min_size=1, max_size=20)
chances = st.floats(0, 1, exclude_max=True)


@given(weights, chances)
def test_the_propensity_is_the_option_s_share_of_all_weights(weights: dict[str, float], u: float) -> None:
    drawn = weighted(weights, u)
    assert drawn.distribution.keys() == weights.keys()
    assert sum(drawn.distribution.values()) == pytest.approx(1)
    assert drawn.probability == drawn.distribution[drawn.option]
    assert drawn.probability == pytest.approx(weights[drawn.option] / sum(weights.values()))


@given(weights, chances)
def test_the_same_chance_gives_the_same_option(weights: dict[str, float], u: float) -> None:
    assert weighted(weights, u) == weighted(dict(weights), u)


@given(weights)
def test_the_ends_of_the_range_belong_to_the_first_and_the_last_option(weights: dict[str, float]) -> None:
    first, last = next(iter(weights)), next(reversed(weights))
    assert weighted(weights, 0.0).option == first
    assert weighted(weights, 1 - 2**-53).option == last or weights[last] / sum(weights.values()) < 2**-50


def test_options_are_drawn_as_often_as_their_propensities_say() -> None:
    chance = random.Random(7)
    options = {"v1": 90.0, "v2-mentor": 9.0, "v3-few-shot": 1.0}
    n = 100_000
    seen = Counter(weighted(options, chance.random()).option for _ in range(n))
    statistic = sum((seen[option] - n * w / 100) ** 2 / (n * w / 100) for option, w in options.items())
    assert special.chdtrc(len(options) - 1, statistic) > 0.001
