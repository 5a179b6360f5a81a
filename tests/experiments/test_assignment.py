import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from ml.experiments.assignment import (
    draw_sticky,
    draw_systematic,
    draw_weighted,
    hash_to_unit_interval,
    systematic_points,
)

DECISIONS = 100_000
"""The number of draws whose frequencies are compared with probabilities."""

weights = st.dictionaries(st.text("abcv123", min_size=1), st.floats(1e-3, 1e6), min_size=1, max_size=20)
unit_interval = st.floats(0, 1, exclude_max=True)
parts = st.lists(st.text(), max_size=4)


def matches_distribution(counts: Mapping[str, int], distribution: Mapping[str, float]) -> bool:
    """Return whether the counts are consistent with the distribution, by a chi-square test."""
    assert counts.keys() <= distribution.keys()
    observed = np.array([counts.get(option, 0) for option in distribution])
    expected = observed.sum() * np.array([*distribution.values()])
    possible = expected > 0
    if observed[~possible].any():
        return False
    return bool(possible.sum() < 2 or chisquare(observed[possible], expected[possible]).pvalue > 0.001)


# Hash to the unit interval


@given(parts)
def test_the_hash_is_in_the_unit_interval_and_depends_on_the_parts_only(given: list[str]) -> None:
    assert 0 <= hash_to_unit_interval(*given) < 1
    assert hash_to_unit_interval(*given) == hash_to_unit_interval(*list(given))


@given(parts, parts)
def test_different_sequences_of_parts_have_different_hashes(some: list[str], others: list[str]) -> None:
    assert (hash_to_unit_interval(*some) == hash_to_unit_interval(*others)) == (some == others)
    assert hash_to_unit_interval(*some, "") != hash_to_unit_interval(*some)
    assert hash_to_unit_interval("".join(some), "a") != hash_to_unit_interval("".join(some) + "a")


def test_the_hash_is_uniform() -> None:
    tenths = Counter(str(int(10 * hash_to_unit_interval("tip", str(n)))) for n in range(DECISIONS))
    assert matches_distribution(tenths, {str(tenth): 0.1 for tenth in range(10)})


# Weighted


@given(weights, unit_interval)
def test_the_propensity_is_the_option_s_share_of_the_weights(weights: dict[str, float], u: float) -> None:
    for drawn in (draw_weighted(weights, u), draw_sticky(weights, str(u), salt="s")):
        assert drawn.distribution.keys() == weights.keys()
        assert sum(drawn.distribution.values()) == pytest.approx(1)
        assert drawn.probability == drawn.distribution[drawn.option]
        assert drawn.probability == pytest.approx(weights[drawn.option] / sum(weights.values()))


@given(weights, unit_interval)
def test_the_same_random_number_gives_the_same_option(weights: dict[str, float], u: float) -> None:
    assert draw_weighted(weights, u) == draw_weighted(dict(weights), u)


@given(weights)
def test_the_lowest_random_number_draws_the_first_option_and_the_highest_the_last(weights: dict[str, float]) -> None:
    first, last = next(iter(weights)), next(reversed(weights))
    assert draw_weighted(weights, 0.0).option == first
    assert draw_weighted(weights, 1 - 2**-53).option == last or weights[last] / sum(weights.values()) < 2**-50


@given(weights, unit_interval)
def test_an_option_of_weight_zero_is_never_drawn(weights: dict[str, float], u: float) -> None:
    for chance in (0.0, u, 1 - 2**-53):
        assert draw_weighted({"none": 0.0} | weights | {"nothing": 0.0}, chance).option in weights


@given(weights, unit_interval)
def test_a_draw_is_repeated_from_its_logged_distribution(weights: dict[str, float], u: float) -> None:
    drawn = draw_weighted(weights, u)
    assert draw_weighted(drawn.distribution, u).option == drawn.option


@pytest.mark.parametrize(
    "options", [{"v1": 90.0, "v2-mentor": 9.0, "v3-few-shot": 1.0}, {"v1": 1.0, "v2-mentor": 1.0, "v3-few-shot": 1.0}]
)
def test_options_are_drawn_with_the_frequency_of_their_propensities(options: dict[str, float]) -> None:
    chance = random.Random(7)
    counts = Counter(draw_weighted(options, chance.random()).option for _ in range(DECISIONS))
    hashed = Counter(draw_weighted(options, hash_to_unit_interval("tip", str(n))).option for n in range(DECISIONS))
    assert matches_distribution(counts, draw_weighted(options, 0.5).distribution)
    assert matches_distribution(hashed, draw_weighted(options, 0.5).distribution)


# Sticky

USERS = [f"u-{n}" for n in range(DECISIONS)]

EXPECTED_ASSIGNMENTS = {
    "u-1": "v2-mentor",
    "u-2": "v3-few-shot",
    "u-1729": "v1",
    "": "v2-mentor",
    "Zoë": "v1",
    "0": "v2-mentor",
    "playground": "v2-mentor",
    "a" * 128: "v2-mentor",
}
"""The option of each user with equal weights. It must never change, since that would reassign all users."""


def assign_all(users: list[str], weights: Mapping[str, float], salt: str = "s") -> dict[str, str]:
    return {user: draw_sticky(weights, user, salt=salt).option for user in users}


def count_reassignments(before: Mapping[str, str], after: Mapping[str, str]) -> Counter[tuple[str, str]]:
    """Return the number of reassigned users, by their option before and after."""
    return Counter((before[user], after[user]) for user in before if before[user] != after[user])


def test_sticky_assignments_are_the_same_as_in_earlier_releases() -> None:
    equal = {"v1": 1.0, "v2-mentor": 1.0, "v3-few-shot": 1.0}
    assert assign_all([*EXPECTED_ASSIGNMENTS], equal, "prompt-version") == EXPECTED_ASSIGNMENTS
    assert hash_to_unit_interval("prompt-version", "u-1") == 0.20030755275710121


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_sticky_assignments_do_not_depend_on_the_hash_seed_of_the_process(seed: str) -> None:
    program = (
        "import sys; from ml.experiments.assignment import draw_sticky; "
        "equal = {'v1': 1.0, 'v2-mentor': 1.0, 'v3-few-shot': 1.0}; "
        "print(*(draw_sticky(equal, user, salt='prompt-version').option for user in sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *EXPECTED_ASSIGNMENTS]
    environment = {"PYTHONHASHSEED": seed, "PYTHONUTF8": "1"}
    answered = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert answered.stdout.split() == [*EXPECTED_ASSIGNMENTS.values()]


@pytest.mark.parametrize("weights", [{"v1": 1.0, "v2": 1.0}, {"v1": 90.0, "v2": 9.0, "v3": 1.0}])
def test_each_option_gets_its_share_of_users(weights: dict[str, float]) -> None:
    assert matches_distribution(
        Counter(assign_all(USERS, weights).values()), draw_sticky(weights, "u", salt="s").distribution
    )


def test_a_change_from_50_50_to_60_40_reassigns_a_tenth_of_users_in_one_direction() -> None:
    reassigned = count_reassignments(assign_all(USERS, {"v1": 50, "v2": 50}), assign_all(USERS, {"v1": 60, "v2": 40}))
    assert reassigned.keys() == {("v2", "v1")}
    assert matches_distribution(
        {"reassigned": reassigned.total(), "stayed": DECISIONS - reassigned.total()}, {"reassigned": 0.1, "stayed": 0.9}
    )


def test_an_added_option_gets_users_from_all_existing_options_and_no_other_user_is_reassigned() -> None:
    two = assign_all(USERS, {"v1": 1, "v2": 1})
    three = assign_all(USERS, {"v3": 1, "v2": 1, "v1": 1})
    reassigned = count_reassignments(two, three)
    assert reassigned.keys() == {("v1", "v3"), ("v2", "v3")}
    assert matches_distribution(
        {"reassigned": reassigned.total(), "stayed": DECISIONS - reassigned.total()},
        {"reassigned": 1 / 3, "stayed": 2 / 3},
    )


@given(weights, st.text(), st.data())
def test_a_user_is_reassigned_only_to_an_option_whose_weight_grew(
    weights: dict[str, float], user: str, data: st.DataObject
) -> None:
    grown = data.draw(st.sampled_from(sorted(weights)))
    before = draw_sticky(weights, user, salt="s").option
    after = draw_sticky(weights | {grown: weights[grown] * data.draw(st.floats(1, 1000))}, user, salt="s").option
    assert after in {before, grown}


@given(weights, st.text())
def test_neither_the_order_nor_the_scale_of_weights_changes_an_assignment(weights: dict[str, float], user: str) -> None:
    turned = {option: 2 * weight for option, weight in reversed(weights.items())}
    assert draw_sticky(turned, user, salt="s").option == draw_sticky(weights, user, salt="s").option


def test_assignments_with_different_salts_are_independent() -> None:
    some = assign_all(USERS, {"v1": 1, "v2": 1}, "one")
    others = assign_all(USERS, {"v1": 1, "v2": 1}, "two")
    together = Counter(f"{some[user]} {others[user]}" for user in USERS)
    assert matches_distribution(together, {f"{a} {b}": 0.25 for a in ("v1", "v2") for b in ("v1", "v2")})


# Systematic


few_weights = st.dictionaries(st.text("abcv123", min_size=1), st.floats(0.01, 100), min_size=1, max_size=6)


@given(few_weights, st.lists(st.uuids().map(str), min_size=1, max_size=10, unique=True), st.randoms())
def test_each_option_gets_its_share_of_the_candidates_rounded_up_or_down(
    weights: dict[str, float], ids: list[str], shuffler: random.Random
) -> None:
    drawn = draw_systematic(weights, ids, salt="s")
    counts = Counter(assignment.option for assignment in drawn)
    for option, probability in drawn[0].distribution.items():
        share = len(ids) * probability
        assert math.floor(share - 1e-9) <= counts[option] <= math.ceil(share + 1e-9)
    assert all(assignment.probability == assignment.distribution[assignment.option] for assignment in drawn)
    # The draw of each id can be repeated from the set of ids.
    shuffled = shuffler.sample(ids, len(ids))
    by_id = dict(zip(shuffled, draw_systematic(weights, shuffled, salt="s"), strict=True))
    assert [by_id[id_] for id_ in ids] == drawn


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_at_each_point_of_a_systematic_draw_an_option_has_its_probability(n: int) -> None:
    weights, steps = {"v1": 0.5, "v2": 0.3, "v3": 0.2}, 20_000
    points = np.array([systematic_points((step + 0.5) / steps, n) for step in range(steps)])
    for column in points.T:
        options = Counter(draw_weighted(weights, u).option for u in column)
        assert {option: count / steps for option, count in options.items()} == pytest.approx(weights, abs=1e-3)


def test_the_first_candidate_of_systematic_draws_is_distributed_as_the_propensities_say() -> None:
    weights = {"v1": 0.5, "v2": 0.3, "v3": 0.2}
    for position in range(3):
        counts = Counter(
            draw_systematic(weights, [f"{n}-{candidate}" for candidate in range(3)], salt="s")[position].option
            for n in range(20_000)
        )
        assert matches_distribution(counts, weights)


def test_a_slate_of_as_many_candidates_as_equal_versions_has_each_version_once() -> None:
    for n in range(200):
        drawn = draw_systematic({"v1": 1, "v2": 1, "v3": 1}, [f"{n}-{candidate}" for candidate in range(3)], salt="s")
        assert {assignment.option for assignment in drawn} == {"v1", "v2", "v3"}


@given(few_weights, st.text())
def test_one_candidate_is_drawn_as_without_systematic_sampling(weights: dict[str, float], id_: str) -> None:
    assert draw_systematic(weights, [id_], salt="s") == [draw_weighted(weights, hash_to_unit_interval("s", id_))]
