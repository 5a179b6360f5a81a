import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.assignment import draw_sticky, draw_weighted, hash_to_unit_interval
from ml.experiments.statistics import sample_ratio_p_value

DECISIONS = 100_000
"""On which probabilities are compared with frequencies."""

weights = st.dictionaries(st.text("abcv123", min_size=1), st.floats(1e-3, 1e6), min_size=1, max_size=20)
chances = st.floats(0, 1, exclude_max=True)
parts = st.lists(st.text(), max_size=4)


def fits(seen: Mapping[str, int], distribution: Mapping[str, float]) -> bool:
    """Tell whether frequencies are those that a distribution claims (chi-square)."""
    assert seen.keys() <= distribution.keys()
    observed = [seen.get(option, 0) for option in distribution]
    n = sum(observed)
    return sample_ratio_p_value(observed, [n * probability for probability in distribution.values()]) > 0.001


# Chance from a hash


@given(parts)
def test_chance_is_in_range_and_comes_from_the_parts_alone(given: list[str]) -> None:
    assert 0 <= hash_to_unit_interval(*given) < 1
    assert hash_to_unit_interval(*given) == hash_to_unit_interval(*list(given))


@given(parts, parts)
def test_other_parts_are_other_chance_wherever_one_ends(some: list[str], others: list[str]) -> None:
    assert (hash_to_unit_interval(*some) == hash_to_unit_interval(*others)) == (some == others)
    assert hash_to_unit_interval(*some, "") != hash_to_unit_interval(*some)
    assert hash_to_unit_interval("".join(some), "a") != hash_to_unit_interval("".join(some) + "a")


def test_chance_is_uniform() -> None:
    tenths = Counter(str(int(10 * hash_to_unit_interval("tip", str(n)))) for n in range(DECISIONS))
    assert fits(tenths, {str(tenth): 0.1 for tenth in range(10)})


# Weighted


@given(weights, chances)
def test_the_propensity_is_the_option_s_share_of_all_weights(weights: dict[str, float], u: float) -> None:
    for drawn in (draw_weighted(weights, u), draw_sticky(weights, str(u), salt="s")):
        assert drawn.distribution.keys() == weights.keys()
        assert sum(drawn.distribution.values()) == pytest.approx(1)
        assert drawn.probability == drawn.distribution[drawn.option]
        assert drawn.probability == pytest.approx(weights[drawn.option] / sum(weights.values()))


@given(weights, chances)
def test_the_same_chance_gives_the_same_option(weights: dict[str, float], u: float) -> None:
    assert draw_weighted(weights, u) == draw_weighted(dict(weights), u)


@given(weights)
def test_the_ends_of_the_range_belong_to_the_first_and_the_last_option(weights: dict[str, float]) -> None:
    first, last = next(iter(weights)), next(reversed(weights))
    assert draw_weighted(weights, 0.0).option == first
    assert draw_weighted(weights, 1 - 2**-53).option == last or weights[last] / sum(weights.values()) < 2**-50


@given(weights, chances)
def test_an_option_without_weight_is_never_taken(weights: dict[str, float], u: float) -> None:
    for chance in (0.0, u, 1 - 2**-53):
        assert draw_weighted({"none": 0.0} | weights | {"nothing": 0.0}, chance).option in weights


@given(weights, chances)
def test_a_decision_is_drawn_again_from_its_logged_distribution(weights: dict[str, float], u: float) -> None:
    drawn = draw_weighted(weights, u)
    assert draw_weighted(drawn.distribution, u).option == drawn.option


@pytest.mark.parametrize(
    "options", [{"v1": 90.0, "v2-mentor": 9.0, "v3-few-shot": 1.0}, {"v1": 1.0, "v2-mentor": 1.0, "v3-few-shot": 1.0}]
)
def test_options_are_drawn_as_often_as_their_propensities_say(options: dict[str, float]) -> None:
    chance = random.Random(7)
    seen = Counter(draw_weighted(options, chance.random()).option for _ in range(DECISIONS))
    hashed = Counter(draw_weighted(options, hash_to_unit_interval("tip", str(n))).option for n in range(DECISIONS))
    assert fits(seen, draw_weighted(options, 0.5).distribution)
    assert fits(hashed, draw_weighted(options, 0.5).distribution)


# Sticky

PEOPLE = [f"u-{n}" for n in range(DECISIONS)]

GOLDEN = {
    "u-1": "v2-mentor",
    "u-2": "v3-few-shot",
    "u-1729": "v1",
    "": "v2-mentor",
    "Zoë": "v1",
    "0": "v2-mentor",
    "playground": "v2-mentor",
    "a" * 128: "v2-mentor",
}
"""Whom these people get by equal weights. They must get it for ever: to change this moves everybody."""


def given_to(people: list[str], weights: Mapping[str, float], salt: str = "s") -> dict[str, str]:
    return {user: draw_sticky(weights, user, salt=salt).option for user in people}


def moves(before: Mapping[str, str], after: Mapping[str, str]) -> Counter[tuple[str, str]]:
    """From which option to which people moved, and how many."""
    return Counter((before[user], after[user]) for user in before if before[user] != after[user])


def test_people_get_what_they_always_got() -> None:
    equal = {"v1": 1.0, "v2-mentor": 1.0, "v3-few-shot": 1.0}
    assert given_to([*GOLDEN], equal, "prompt-version") == GOLDEN
    assert hash_to_unit_interval("prompt-version", "u-1") == 0.20030755275710121


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_people_get_the_same_in_another_process_whose_hashes_are_others(seed: str) -> None:
    program = (
        "import sys; from ml.experiments.assignment import draw_sticky; "
        "equal = {'v1': 1.0, 'v2-mentor': 1.0, 'v3-few-shot': 1.0}; "
        "print(*(draw_sticky(equal, user, salt='prompt-version').option for user in sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *GOLDEN]
    environment = {"PYTHONHASHSEED": seed, "PYTHONUTF8": "1"}
    answered = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert answered.stdout.split() == [*GOLDEN.values()]


@pytest.mark.parametrize("weights", [{"v1": 1.0, "v2": 1.0}, {"v1": 90.0, "v2": 9.0, "v3": 1.0}])
def test_each_option_has_its_share_of_all_people(weights: dict[str, float]) -> None:
    assert fits(Counter(given_to(PEOPLE, weights).values()), draw_sticky(weights, "u", salt="s").distribution)


def test_50_50_to_60_40_moves_a_tenth_of_all_people_and_all_of_them_one_way() -> None:
    moved = moves(given_to(PEOPLE, {"v1": 50, "v2": 50}), given_to(PEOPLE, {"v1": 60, "v2": 40}))
    assert moved.keys() == {("v2", "v1")}
    assert fits({"moved": moved.total(), "stayed": DECISIONS - moved.total()}, {"moved": 0.1, "stayed": 0.9})


def test_an_option_that_is_added_takes_people_from_the_others_and_gives_them_back_when_it_is_taken_out() -> None:
    two = given_to(PEOPLE, {"v1": 1, "v2": 1})
    three = given_to(PEOPLE, {"v3": 1, "v2": 1, "v1": 1})
    moved = moves(two, three)
    assert moved.keys() == {("v1", "v3"), ("v2", "v3")}
    assert fits({"moved": moved.total(), "stayed": DECISIONS - moved.total()}, {"moved": 1 / 3, "stayed": 2 / 3})


@given(weights, st.text(), st.data())
def test_a_person_moves_only_to_an_option_that_grew(weights: dict[str, float], user: str, data: st.DataObject) -> None:
    grown = data.draw(st.sampled_from(sorted(weights)))
    before = draw_sticky(weights, user, salt="s").option
    after = draw_sticky(weights | {grown: weights[grown] * data.draw(st.floats(1, 1000))}, user, salt="s").option
    assert after in {before, grown}


@given(weights, st.text())
def test_neither_the_order_nor_the_scale_of_weights_moves_anybody(weights: dict[str, float], user: str) -> None:
    turned = {option: 2 * weight for option, weight in reversed(weights.items())}
    assert draw_sticky(turned, user, salt="s").option == draw_sticky(weights, user, salt="s").option


def test_another_salt_shuffles_people_anew() -> None:
    some = given_to(PEOPLE, {"v1": 1, "v2": 1}, "one")
    others = given_to(PEOPLE, {"v1": 1, "v2": 1}, "two")
    together = Counter(f"{some[user]} {others[user]}" for user in PEOPLE)
    assert fits(together, {f"{a} {b}": 0.25 for a in ("v1", "v2") for b in ("v1", "v2")})
