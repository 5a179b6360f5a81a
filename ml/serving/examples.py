"""Libraries of vetted tips, and the choice of the example that is nearest to a user's situation.

A library is a frozen file, `libraries/NAME.json`: released prompt versions name it, and their digests cover it. To
change examples, copy it to a new name for a new prompt version.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ml.serving.goals import goal_topics

LIBRARIES = Path(__file__).with_name("libraries")


@dataclass(frozen=True, slots=True)
class Example:
    """A vetted tip, and the signals of a situation in which it is good advice.

    `opening`: its first words, cut at the end of a phrase, which a small model completes; `rest`: the other words.
    The tip presupposes each of its signals except `goal`, `activity` and `local_time`: it is only for users of whom
    that signal is known, with a similar value.
    """

    signals: Mapping[str, Any]
    opening: str
    rest: str

    @property
    def tip(self) -> str:
        return f"{self.opening} {self.rest}"


@dataclass(frozen=True)
class Library:
    """Examples, in a fixed order, and the SHA-256 (hex) of their file."""

    examples: tuple[Example, ...]
    digest: str

    def nearest(self, signals: Mapping[str, Any]) -> Example | None:
        """Return the example that suits these validated signals best; None if none does.

        It is one of the same moment, whose presupposed signals are similar to the user's, and whose goal is similar,
        or that has none; of these, the closest by a weighted sum over all signals. Examples that the user was told
        recently come last, and of equally close ones the first in the library wins.
        """
        situation = _Situation.of(signals)
        told = tuple(tip.casefold() for tip in signals.get("recent_tips") or ())
        closest, least = None, float("inf")
        for candidate in self._by_moment.get(situation.moment, ()):
            distance = situation.distance(candidate.situation, least)
            if distance >= least:
                continue
            if told and any(tip.startswith(candidate.beginning) for tip in told):
                distance += _TOLD
                if distance >= least:
                    continue
            closest, least = candidate.example, distance
        return closest

    @cached_property
    def _by_moment(self) -> Mapping[str, Sequence["_Candidate"]]:
        candidates: dict[str, list[_Candidate]] = {}
        for example in self.examples:
            candidate = _Candidate(example, _Situation.of(example.signals), example.opening.casefold())
            candidates.setdefault(candidate.situation.moment, []).append(candidate)
        # Nothing is known of the moment: what suits a day is better than what only suits an evening.
        candidates[_UNKNOWN] = [each for moment in (_UNKNOWN, _DAY, _EVENING) for each in candidates.get(moment, ())]
        return candidates


@cache
def load_library(name: str) -> Library:
    """Return the library in `libraries/NAME.json`."""
    content = (LIBRARIES / f"{name}.json").read_bytes()
    examples = tuple(Example(**example) for example in json.loads(content))
    return Library(examples, hashlib.sha256(content).hexdigest())


# The weights of the terms of a distance. A goal counts more than all other signals together usually do; an example that
# the user was told recently is further away than all others.
_GOAL = 3.0
_ACTIVITY = 1.0  # within one moment: a chair instead of a sofa
_TIME = 2.0
_UNKNOWN_TIME = 0.5
_UNUSED = 1.0  # a signal of the user to which the example does not respond
_TOLD = 100.0

_NEUTRAL_GOAL = 0.6
"""The distance of an example for any goal, as a share of the distance of one without a goal."""

_FURTHEST_HOURS = 6

# Moments that no activity decides.
_DAY, _EVENING, _UNKNOWN = "day", "evening", "unknown"

# Hours of the day.
_NIGHT_ENDS = 5
_BEDTIME_BEGINS = 18
_EVENING_BEGINS = 19

# For each signal that an example may presuppose: the largest value that matters, and the difference from which on an
# example no longer suits. The values of the first two are positions in the order of the options.
_MOODS = {mood: position for position, mood in enumerate(("awful", "low", "okay", "good", "great"))}
_DAYS = {
    day: 10 * position
    for position, day in enumerate(("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"))
}
_SPANS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "mood": (4, 2),
        "weekday": (60, 1),
        "energy": (10, 3),
        "stress": (10, 3),
        "sleep_hours": (8, 2.5),
        "steps_today": (15_000, 5_000),
        "minutes_since_break": (180, 91),
        "open_tasks": (20, 12),
        "meetings_left_today": (5, 5),
        "streak_days": (30, 29),
        "days_since_last_visit": (14, 12),
    }
)


@dataclass(frozen=True, slots=True)
class _Situation:
    """The features of signals that the choice of an example depends on.

    `positions`: the value of each other signal as a number, at most the largest that matters.
    """

    moment: str
    activity: str | None
    hour: float | None
    goal: frozenset[str] | None
    positions: Mapping[str, float]

    @classmethod
    def of(cls, signals: Mapping[str, Any]) -> "_Situation":
        activity, time, goal = signals.get("activity"), signals.get("local_time"), signals.get("goal")
        hour = int(time[:2]) + int(time[3:]) / 60 if time else None
        positions = {}
        for name, (largest, _) in _SPANS.items():
            value = signals.get(name)
            if value is not None:
                number = _MOODS[value] if name == "mood" else _DAYS[value] if name == "weekday" else value
                positions[name] = min(number, largest)
        return cls(_moment(activity, hour), activity, hour, goal_topics(goal) if goal else None, positions)

    def distance(self, example: "_Situation", limit: float) -> float:
        """Return the distance of an example's situation; infinity if it does not suit, or once it reaches `limit`."""
        distance = self._goal_distance(example.goal)
        if distance >= limit:
            return float("inf")
        for name, position in example.positions.items():
            own = self.positions.get(name)
            if own is None or (own == 0) != (position == 0):
                return float("inf")
            difference = abs(own - position) / _SPANS[name][1]
            if difference >= 1:
                return float("inf")
            distance += difference
        distance += _UNUSED * (len(self.positions) - len(example.positions))
        if self.activity != example.activity:
            distance += _ACTIVITY
        if self.hour is not None and example.hour is not None:
            apart = abs(self.hour - example.hour)
            distance += _TIME * min(1.0, min(apart, 24 - apart) / _FURTHEST_HOURS)
        elif self.hour is not example.hour:
            distance += _UNKNOWN_TIME
        return distance

    def _goal_distance(self, other: frozenset[str] | None) -> float:
        """Return the distance to an example's goal; infinity if it is unlike the user's, or the user has none."""
        if other is None:
            return 0.0 if self.goal is None else _GOAL
        if self.goal is None:
            return float("inf")
        if not other:  # an example for any goal
            return _GOAL * _NEUTRAL_GOAL if self.goal else 0.0
        shared = len(self.goal & other)
        return _GOAL * (1 - shared / len(self.goal | other)) * 0.5 if shared else float("inf")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An example with its features; `beginning`: how a tip begins that was written from it, in lower case."""

    example: Example
    situation: _Situation
    beginning: str


def _moment(activity: str | None, hour: float | None) -> str:
    """Return the kind of situation: the activity, where it decides what can be done, or else the part of the day."""
    if activity == "in_bed":
        is_day = hour is not None and _NIGHT_ENDS <= hour < _BEDTIME_BEGINS
        return "in bed by day" if is_day else "in bed at night"
    if activity in {"eating", "walking", "exercising", "commuting", "working"}:
        return activity
    if hour is None:
        return _DAY if activity else _UNKNOWN
    return _DAY if _NIGHT_ENDS <= hour < _EVENING_BEGINS else _EVENING
