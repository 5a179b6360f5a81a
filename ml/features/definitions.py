"""The definitions of all features: the signals about a user, the aggregates of a user, and the features of a candidate.

Each entry has a feature type, which determines the range of its values and their encoding; a signal also has a sentence
for prompts. The request schemas, the OpenAPI document, the command line, the prompts and the columns that policies
learn from are derived from these definitions, so to add a signal is to add an entry.

The wording of a released signal is part of every released prompt version: change it only together with a new prompt
version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType

from ml.features.feature_types import (
    Category,
    FeatureType,
    Integer,
    Language,
    Number,
    PromptVersion,
    Rating,
    TimeOfDay,
)
from ml.features.text_types import Text, Texts, TipText


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal about a user: its type, and the sentence that contains its value in prompts."""

    type: FeatureType
    sentence: str


SIGNALS: Mapping[str, Signal] = MappingProxyType(
    {
        "goal": Signal(Text(200), "My goal, in my own words: {}."),
        "mood": Signal(
            Category({"great": "great", "good": "good", "okay": "okay", "low": "low", "awful": "awful"}),
            "My mood is {}.",
        ),
        "energy": Signal(Rating(10), "My energy is {}."),
        "stress": Signal(Rating(10), "My stress is {}."),
        "sleep_hours": Signal(Number(0, 24, "hour"), "I slept {} last night."),
        "steps_today": Signal(Integer(0, 200_000, "step"), "I have walked {} today."),
        "minutes_since_break": Signal(Integer(0, 1_440, "minute"), "My last break was {} ago."),
        "open_tasks": Signal(Integer(0, 1_000, "open task"), "I have {}."),
        "meetings_left_today": Signal(Integer(0, 50, "meeting"), "I have {} left today."),
        "streak_days": Signal(Integer(0, 36_500, "day"), "I have kept up my habit for {} in a row."),
        "days_since_last_visit": Signal(Integer(0, 36_500, "day"), "I was last here {} ago."),
        "activity": Signal(
            Category(
                {
                    "working": "working",
                    "sitting": "sitting down",
                    "walking": "walking",
                    "exercising": "exercising",
                    "commuting": "commuting",
                    "eating": "having a meal",
                    "relaxing": "relaxing",
                    "in_bed": "in bed",
                }
            ),
            "Right now I am {}.",
        ),
        "local_time": Signal(TimeOfDay(), "It is {} now."),
        "weekday": Signal(
            Category(
                {
                    day.lower(): day
                    for day in ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
                }
            ),
            "Today is {}.",
        ),
        "locale": Signal(Language(), "I read {}."),
        "recent_tips": Signal(Texts(5, 280), "You already told me {}, so tell me something else."),
    }
)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A feature of a user that a batch computes; a value older than `max_age` is treated as missing."""

    type: FeatureType
    max_age: timedelta


AGGREGATES: Mapping[str, Aggregate] = MappingProxyType(
    {
        "reward_rate_30d": Aggregate(Number(0, 1, "reward"), timedelta(days=7)),
        "tips_7d": Aggregate(Integer(0, 1_000, "tip"), timedelta(days=2)),
    }
)
"""The mean reward of a user's tips of the last 30 days, and the number of their tips of the last seven days."""

CANDIDATE: Mapping[str, FeatureType] = MappingProxyType({"prompt_version": PromptVersion(), "tip": TipText(280)})
"""The features of a candidate."""
