"""How versions are chosen: as often as it says, and again from what a row says."""

from collections import Counter
from uuid import uuid4

import pytest

from ml.experiments.assignment import draw_sticky, draw_weighted, hash_to_unit_interval
from ml.experiments.statistics import Sample, sample_ratio_p_value
from ml.platform.settings import PromptPolicyName
from ml.recommender.selection import SALT, PromptSelector

WEIGHTS = {"v1": 5.0, "v2": 3.0, "v3": 2.0}
EQUAL = dict.fromkeys(WEIGHTS, 1.0)


def rotations() -> dict[str, PromptSelector]:
    learned = PromptSelector([*EQUAL.items()], "thompson")
    learned.learn({"v1": Sample(100, 30, 30), "v2": Sample(100, 35, 35)})
    return {
        "uniform": PromptSelector([*EQUAL.items()]),
        "weighted": PromptSelector([*WEIGHTS.items()]),
        "sticky": PromptSelector([*WEIGHTS.items()], "sticky"),
        "thompson": learned,
        "thompson without rewards": PromptSelector([*EQUAL.items()], "thompson"),
    }


@pytest.mark.parametrize("name", rotations())
def test_versions_are_taken_as_often_as_their_propensities_say(name: str) -> None:
    rotation = rotations()[name]
    drawn = [rotation.choose(f"u-{n}", f"tip-{n}") for n in range(20_000)]
    taken = Counter(choice.asked for choice in drawn)
    expected = [sum(choice.options[version] for choice in drawn) for version in WEIGHTS]
    assert sample_ratio_p_value([taken[version] for version in WEIGHTS], expected) > 0.001
    for choice in drawn:
        assert choice.asked
        assert choice.policy == name.partition(" ")[0]
        assert choice.probability == choice.options[choice.asked]
        assert sum(choice.options.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", rotations())
def test_a_choice_is_made_again_from_the_options_and_the_ids(name: str) -> None:
    for _ in range(200):
        user_id, tip_id = str(uuid4()), str(uuid4())
        choice = rotations()[name].choose(user_id, tip_id)
        assert choice == rotations()[name].choose(user_id, tip_id)
        again = (
            draw_sticky(choice.options, user_id, salt=SALT)
            if choice.policy == "sticky"
            else draw_weighted(choice.options, hash_to_unit_interval(SALT, tip_id))
        )
        assert again.option == choice.asked


@pytest.mark.parametrize(
    ("versions", "policy", "name"),
    [([], "uniform", "serving-default"), ([("v1", 3.0)], "uniform", "single"), ([("v1", 1.0)], "uniform", "single")],
)
def test_where_there_is_nothing_to_choose_the_policy_says_so(
    versions: list[tuple[str, float]], policy: PromptPolicyName, name: str
) -> None:
    choice = PromptSelector(versions, policy).choose("u-1", "tip-1")
    assert (choice.policy, choice.probability) == (name, 1)
    assert choice.options == {version: 1.0 for version, _ in versions}


def test_people_keep_their_version_and_not_their_tips() -> None:
    everybody = [f"u-{n}" for n in range(100)]
    kept, drawn = PromptSelector([*WEIGHTS.items()], "sticky"), PromptSelector([*WEIGHTS.items()])
    for user in everybody:
        assert len({kept.choose(user, f"tip-{n}").asked for n in range(20)}) == 1
    assert len({drawn.choose("u-1", f"tip-{n}").asked for n in range(20)}) > 1


def test_a_version_that_earns_more_is_taken_more_often_and_the_others_keep_their_floor() -> None:
    rotation = PromptSelector([*EQUAL.items()], "thompson")
    assert rotation.choose("u-1", "tip-1").options == pytest.approx(dict.fromkeys(EQUAL, 1 / 3))
    few = {"v1": Sample(10, 3, 3), "v2": Sample(10, 5, 5), "elsewhere": Sample(10_000, 9_000, 9_000)}
    rotation.learn(few)
    first = rotation.choose("u-1", "tip-1").options
    assert first.keys() == EQUAL.keys()
    rotation.learn({version: Sample(n.n * 1000, n.total * 1000, n.squares * 1000) for version, n in few.items()})
    later = rotation.choose("u-1", "tip-1").options
    assert first["v1"] < first["v2"] < later["v2"]
    assert later["v1"] == pytest.approx(0.02)
    # Nothing is known of the third: its mean may be anything.
    assert later["v3"] == pytest.approx(0.49, abs=0.01)
