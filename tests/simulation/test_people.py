"""The people of the simulation: who they are, and what gives it away."""

from collections import Counter
from statistics import fmean

import pytest

from ml.features.request_schemas import Signals
from ml.serving.prompts import PROMPTS
from ml.simulation.people import PERSONAS, TASTES, USUAL_TASTE, Visit, visits

PEOPLE = 1_500


@pytest.fixture(scope="module")
def day() -> list[Visit]:
    return [visit for day in range(4) for visit in visits(PEOPLE, day, seed=1)]


def test_over_all_people_the_tastes_are_these() -> None:
    assert dict(TASTES) == pytest.approx({"v1": 0.30, "v2-mentor": 0.44, "v3-few-shot": 0.33})
    assert TASTES.keys() <= PROMPTS.keys()


def test_each_kind_of_people_likes_another_version_best() -> None:
    assert {max(TASTES, key=kind.taste) for kind in PERSONAS} == TASTES.keys()
    assert {kind.taste("v9") for kind in PERSONAS} == {USUAL_TASTE}


def test_all_kinds_are_as_common_and_people_stay_what_they_are(day: list[Visit]) -> None:
    kinds = {visit.user_id: visit.kind for visit in day}
    assert all(visit.kind is kinds[visit.user_id] for visit in day)
    assert Counter(kind.name for kind in kinds.values()).keys() == {kind.name for kind in PERSONAS}
    shares = Counter(visit.kind.name for visit in day)
    assert [count / len(day) for count in shares.values()] == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize("version", TASTES)
def test_as_many_tips_help_as_the_taste_says(day: list[Visit], version: str) -> None:
    for kind in PERSONAS:
        assert fmean(one.helps(version) for one in day if one.kind is kind) == pytest.approx(
            kind.taste(version), abs=0.05
        )


def test_what_they_say_are_signals_and_gives_their_kind_away_but_never_surely(day: list[Visit]) -> None:
    for visit in day[:300]:
        assert Signals.model_validate(visit.signals).known() == visit.signals
    low = Counter(visit.kind.name for visit in day if visit.signals.get("mood") == "low")
    commuting = Counter(visit.kind.name for visit in day if visit.signals.get("activity") == "commuting")
    assert low.most_common(1)[0][0] == "stressed"
    assert commuting.most_common(1)[0][0] == "moving"
    assert len(low) == len(commuting) == len(PERSONAS)
    for name in PERSONAS[0].says:
        assert 0.85 < fmean(name in visit.signals for visit in day) < 0.95


def test_the_same_seed_gives_the_same_people_in_the_order_of_time() -> None:
    some = visits(50, 3, seed=1)
    assert some == visits(50, 3, seed=1)
    assert [visit.time for visit in some] == sorted(visit.time for visit in some)
    assert [visit.luck for visit in some] != [visit.luck for visit in visits(50, 3, seed=2)]
    assert [visit.luck for visit in some] != [visit.luck for visit in visits(50, 4, seed=1)]
