"""The simulated users: their personas, and how their signals indicate these."""

from collections import Counter
from statistics import fmean

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ml.features.request_schemas import Signals
from ml.serving.prompts import PROMPTS
from ml.simulation.people import (
    LISTED_VERSIONS,
    MAX_OTHER_PREFERENCE,
    MIN_OTHER_PREFERENCE,
    PERSONAS,
    Visit,
    mean_preference,
    visits,
)

USERS = 1_500


@pytest.fixture(scope="module")
def some_visits() -> list[Visit]:
    return [visit for day in range(4) for visit in visits(USERS, day, seed=1)]


def test_mean_preferences_of_all_users() -> None:
    assert [mean_preference(version) for version in LISTED_VERSIONS] == pytest.approx([0.30, 0.44, 0.33])
    assert {*LISTED_VERSIONS} <= PROMPTS.keys()


def test_each_persona_prefers_another_version() -> None:
    assert {max(LISTED_VERSIONS, key=persona.preference) for persona in PERSONAS} == {*LISTED_VERSIONS}


@given(version=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", fullmatch=True))
def test_every_other_version_has_preferences_and_is_the_best_one_of_no_persona(version: str) -> None:
    assume(version not in LISTED_VERSIONS)
    for persona in PERSONAS:
        preference = persona.preference(version)
        assert MIN_OTHER_PREFERENCE <= preference <= MAX_OTHER_PREFERENCE < max(persona.preferences.values())
        assert persona.preference(version) == preference


def test_two_other_versions_have_different_preferences() -> None:
    assert len({persona.preference(version) for persona in PERSONAS for version in ("v9", "v10")}) == 2 * len(PERSONAS)


def test_personas_are_equally_frequent_and_a_user_keeps_their_persona(some_visits: list[Visit]) -> None:
    personas = {visit.user_id: visit.persona for visit in some_visits}
    assert all(visit.persona is personas[visit.user_id] for visit in some_visits)
    assert Counter(persona.name for persona in personas.values()).keys() == {persona.name for persona in PERSONAS}
    counts = Counter(visit.persona.name for visit in some_visits)
    assert [count / len(some_visits) for count in counts.values()] == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize("version", LISTED_VERSIONS)
def test_the_share_of_helpful_tips_is_the_preference(some_visits: list[Visit], version: str) -> None:
    for persona in PERSONAS:
        helpful = [visit.helps(version) for visit in some_visits if visit.persona is persona]
        assert fmean(helpful) == pytest.approx(persona.preference(version), abs=0.05)


def test_signals_are_valid_and_indicate_the_persona_without_certainty(some_visits: list[Visit]) -> None:
    for visit in some_visits[:300]:
        assert Signals.model_validate(visit.signals).known() == visit.signals
    low_mood = Counter(visit.persona.name for visit in some_visits if visit.signals.get("mood") == "low")
    commuting = Counter(visit.persona.name for visit in some_visits if visit.signals.get("activity") == "commuting")
    assert low_mood.most_common(1)[0][0] == "stressed"
    assert commuting.most_common(1)[0][0] == "moving"
    assert len(low_mood) == len(commuting) == len(PERSONAS)
    for name in PERSONAS[0].signals:
        assert 0.85 < fmean(name in visit.signals for visit in some_visits) < 0.95


def test_the_same_seed_gives_the_same_visits_in_the_order_of_time() -> None:
    day = visits(50, 3, seed=1)
    assert day == visits(50, 3, seed=1)
    assert [visit.time for visit in day] == sorted(visit.time for visit in day)
    draws = [visit.helpfulness_draw for visit in day]
    assert draws != [visit.helpfulness_draw for visit in visits(50, 3, seed=2)]
    assert draws != [visit.helpfulness_draw for visit in visits(50, 4, seed=1)]
