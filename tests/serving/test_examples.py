"""The libraries of vetted tips, and the choice of the nearest example."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.features.request_schemas import Signals
from ml.serving.examples import LIBRARIES, Example, Library, load_library
from ml.serving.goals import goal_topics
from ml.serving.grammar import AVOIDED_WORDS
from ml.serving.prompts import PROMPTS
from ml.serving.tip import validate_tip
from tests.bench.tips import SITUATIONS
from tests.features.test_context import some_signals
from tests.tip_rubric import defects

NAMES = sorted(file.stem for file in LIBRARIES.glob("*.json"))
EXAMPLES = [(name, example) for name in NAMES for example in load_library(name).examples]
NOT_PRESUPPOSED = {"goal", "activity", "local_time", "locale", "recent_tips"}

on_every_library = pytest.mark.parametrize("name", NAMES)


def library(*examples: tuple[Mapping[str, Any], str]) -> Library:
    return Library(tuple(Example(signals, opening, "now.") for signals, opening in examples), "")


def opening(examples: Library, **signals: Any) -> str | None:
    nearest = examples.nearest(signals)
    return nearest.opening if nearest else None


def test_every_prompt_version_with_a_library_has_its_own() -> None:
    used = [prompt.library for prompt in PROMPTS.values() if prompt.library]
    assert sorted(used) == NAMES
    assert len(load_library("plain").examples) >= 150


def test_every_example_has_valid_signals_and_a_tip_that_can_be_shown_and_passes_the_rubric_in_its_situation() -> None:
    for _, example in EXAMPLES:
        Signals.model_validate(dict(example.signals))
        assert validate_tip(example.tip) == example.tip
        assert defects(example.tip, example.signals) == set(), example.tip


def test_every_opening_leaves_words_to_write_that_the_model_is_not_told_to_avoid() -> None:
    avoided = re.compile(rf"\b({'|'.join(AVOIDED_WORDS)})\b", re.IGNORECASE)
    for _, example in EXAMPLES:
        assert example.opening == example.opening.strip()
        assert re.search(r"[\w,:]$", example.opening), example.opening
        assert re.search(r"\w\W?$", example.rest), example.tip
        assert not avoided.search(example.rest), example.tip


@on_every_library
def test_every_example_is_chosen_in_its_own_situation(name: str) -> None:
    examples = load_library(name)
    assert [example.tip for example in examples.examples if examples.nearest(example.signals) is not example] == []


@on_every_library
def test_the_openings_of_a_library_differ(name: str) -> None:
    openings = [example.opening for example in load_library(name).examples]
    assert len({*openings}) == len(openings)


def test_no_situation_of_the_benchmark_is_in_a_library() -> None:
    measured = [situation.signals for situation in SITUATIONS]
    assert [example.signals for _, example in EXAMPLES if example.signals in measured] == []
    goals = {(signals.get("activity"), signals["goal"]) for signals in measured if "goal" in signals}
    in_libraries = {(example.signals.get("activity"), example.signals.get("goal")) for _, example in EXAMPLES}
    assert goals & in_libraries == set()


@given(signals=some_signals)
def test_an_example_presupposes_nothing_that_is_not_known_of_the_user(signals: dict[str, Any]) -> None:
    known = Signals.model_validate(signals).model_dump(exclude_none=True)
    for name in NAMES:
        nearest = load_library(name).nearest(known)
        assert nearest is not None
        assert nearest.signals.keys() - NOT_PRESUPPOSED <= known.keys()
        assert load_library(name).nearest(dict(reversed(known.items()))) is nearest


@given(
    signals=some_signals,
    activity=st.sampled_from(["eating", "walking", "exercising", "commuting", "working", "in_bed"]),
)
def test_the_example_is_one_for_the_same_activity(signals: dict[str, Any], activity: str) -> None:
    known = Signals.model_validate({**signals, "activity": activity}).model_dump(exclude_none=True)
    for name in NAMES:
        nearest = load_library(name).nearest(known)
        assert nearest is not None
        assert nearest.signals["activity"] == activity


def test_a_similar_goal_counts_more_than_a_similar_state_and_an_unlike_goal_excludes() -> None:
    examples = library(
        ({"stress": 7}, "Breathe"), ({"goal": "learn Danish"}, "Say"), ({"goal": "run a marathon", "stress": 7}, "Run")
    )
    assert opening(examples, goal="learn Spanish", stress=7) == "Say"
    assert opening(examples, goal="cook more", stress=7) == "Breathe"
    assert opening(examples, stress=7) == "Breathe"


def test_an_example_for_any_goal_serves_a_goal_without_a_known_topic() -> None:
    examples = library(({}, "Drink"), ({"goal": "get my thing going"}, "Begin"), ({"goal": "learn Danish"}, "Say"))
    assert opening(examples, goal="build a treehouse") == "Begin"
    assert opening(examples, goal="tidy up") == "Begin"
    assert opening(examples) == "Drink"


@pytest.mark.parametrize(
    ("presupposed", "known", "is_suitable"),
    [
        ({"mood": "low"}, {"mood": "okay"}, True),
        ({"mood": "low"}, {"mood": "good"}, False),
        ({"stress": 7}, {"stress": 9}, True),
        ({"stress": 7}, {"stress": 3}, False),
        ({"stress": 7}, {}, False),
        ({"meetings_left_today": 1}, {"meetings_left_today": 4}, True),
        ({"meetings_left_today": 1}, {"meetings_left_today": 0}, False),
        ({"minutes_since_break": 120}, {"minutes_since_break": 600}, True),
        ({"sleep_hours": 5}, {"sleep_hours": 8}, False),
        ({"weekday": "friday"}, {"weekday": "thursday"}, False),
    ],
)
def test_an_example_needs_a_similar_value_of_what_it_presupposes(
    presupposed: dict[str, Any], known: dict[str, Any], is_suitable: bool
) -> None:
    examples = library(({}, "Drink"), (presupposed, "Rest"))
    assert opening(examples, **known) == ("Rest" if is_suitable else "Drink")


def test_the_nearest_hour_decides_between_otherwise_equal_examples_also_across_midnight() -> None:
    examples = library(
        ({"activity": "in_bed", "local_time": "21:00"}, "Dim"), ({"activity": "in_bed", "local_time": "01:00"}, "Count")
    )
    assert opening(examples, activity="in_bed", local_time="21:50") == "Dim"
    assert opening(examples, activity="in_bed", local_time="23:40") == "Count"
    assert opening(examples, activity="in_bed", local_time="09:00") is None


def test_without_a_time_a_goal_is_served_by_an_example_of_the_day_or_otherwise_of_the_evening() -> None:
    examples = library(
        ({"goal": "sleep more", "local_time": "21:30"}, "sleep, evening"),
        ({"goal": "read more", "local_time": "20:00"}, "read, evening"),
        ({"goal": "read more", "local_time": "14:00"}, "read, day"),
        ({"goal": "sleep more", "activity": "in_bed", "local_time": "23:00"}, "sleep, in bed"),
        ({}, "any"),
    )
    assert opening(examples, goal="sleep better") == "sleep, evening"
    assert opening(examples, goal="read every day") == "read, day"
    assert opening(examples) == "any"


def test_an_example_that_the_user_was_told_recently_comes_last() -> None:
    examples = library(({"activity": "eating"}, "Drink a glass of"), ({"activity": "eating", "energy": 5}, "Chew"))
    eating = {"activity": "eating"}
    assert opening(examples, **eating, energy=5) == "Chew"
    assert opening(examples, **eating, energy=5, recent_tips=("chew slowly.",)) == "Drink a glass of"
    assert opening(examples, **eating, recent_tips=("Drink a glass of water.",)) == "Drink a glass of"


@pytest.mark.parametrize(
    ("goal", "topics"),
    [
        ("Get up earlier", {"waking"}),
        ("be on time for work", {"punctuality"}),
        ("drink less wine", {"water", "alcohol"}),
        ("spend less time on my PHONE", {"phone"}),
        ("call my mother", {"family"}),
        ("be a better father", {"family", "children"}),
        ("learn the harp", {"music"}),
        ("build a treehouse", set()),
        ("besser schlafen", set()),
        ("", set()),
    ],
)
def test_the_topics_of_a_goal_are_found_by_its_words(goal: str, topics: set[str]) -> None:
    assert goal_topics(goal) == topics
