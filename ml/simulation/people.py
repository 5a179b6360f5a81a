"""People who do not exist: what they say of themselves, which version's tips help them, and how they react.

There are three kinds of them, and each likes another version best. What people say gives their kind away, but never
surely: they leave things out, and say others that somebody of another kind would.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from statistics import fmean
from types import MappingProxyType
from typing import Any

USUAL_TASTE = 0.30
"""Of everybody, for a version that nothing is known of."""

Progress = Callable[[Iterable[int]], Iterable[int]]
"""Passes steps through, and shows how many are done."""

_VISITS_A_DAY = 0.5
_LEFT_OUT = 0.1
_OUT_OF_CHARACTER = 0.1
_SAY_THAT_IT_DID_NOT_HELP = 0.4
_COME_BACK_LATE = 0.1
_SENT_TWICE = 0.05

_Draw = Callable[[random.Random], Any]


def _mostly(**weights: float) -> _Draw:
    return lambda chance: chance.choices([*weights], [*weights.values()])[0]


def _scale(mean: float) -> _Draw:
    return lambda chance: min(max(round(chance.gauss(mean, 1.5)), 1), 10)


def _hours(mean: float) -> _Draw:
    return lambda chance: round(min(max(chance.gauss(mean, 0.8), 0), 24), 1)


def _count(mean: float) -> _Draw:
    return lambda chance: round(chance.expovariate(1 / mean))


@dataclass(frozen=True, slots=True)
class Persona:
    """A kind of people. `tastes`: the share of each version's tips that help them. `says`: how each signal is drawn."""

    name: str
    tastes: Mapping[str, float]
    says: Mapping[str, _Draw]

    def taste(self, version: str) -> float:
        """Return the share of a version's tips that help these people, whether it is in `tastes` or not."""
        return self.tastes.get(version, USUAL_TASTE)


PERSONAS = (
    Persona(
        "planning",
        {"v1": 0.60, "v2-mentor": 0.28, "v3-few-shot": 0.19},
        {
            "mood": _mostly(great=1, good=4, okay=4, low=1),
            "energy": _scale(6),
            "stress": _scale(5),
            "sleep_hours": _hours(7.2),
            "steps_today": _count(2_500),
            "open_tasks": _count(15),
            "meetings_left_today": _count(4),
            "activity": _mostly(working=7, sitting=2, eating=1),
        },
    ),
    Persona(
        "stressed",
        {"v1": 0.20, "v2-mentor": 0.80, "v3-few-shot": 0.20},
        {
            "mood": _mostly(okay=2, low=5, awful=3),
            "energy": _scale(3),
            "stress": _scale(8),
            "sleep_hours": _hours(5.2),
            "steps_today": _count(2_000),
            "open_tasks": _count(10),
            "meetings_left_today": _count(2),
            "activity": _mostly(working=3, sitting=2, in_bed=3, relaxing=2),
        },
    ),
    Persona(
        "moving",
        {"v1": 0.10, "v2-mentor": 0.24, "v3-few-shot": 0.60},
        {
            "mood": _mostly(great=4, good=4, okay=2),
            "energy": _scale(7.5),
            "stress": _scale(3.5),
            "sleep_hours": _hours(7.4),
            "steps_today": _count(9_000),
            "open_tasks": _count(4),
            "meetings_left_today": _count(1),
            "activity": _mostly(walking=3, commuting=4, exercising=2, eating=1),
        },
    ),
)
"""All equally common. Planning at work; stressed after a bad night; on the move."""

TASTES: Mapping[str, float] = MappingProxyType(
    {version: fmean(kind.taste(version) for kind in PERSONAS) for version in PERSONAS[0].tastes}
)
"""The share of each version's tips that help, of all people; the mean reward that an endless simulation would show."""


@dataclass(frozen=True, slots=True)
class SimulatedReaction:
    """What somebody says of a tip, how long after it was shown, and how often it is sent."""

    kind: str
    after: timedelta
    times: int


@dataclass(frozen=True, slots=True)
class Visit:
    """Somebody comes for a tip, at a `time` of the day.

    All its chance is drawn beforehand, so that whatever chooses the tip meets the same people, with the same luck.
    """

    id: str
    time: timedelta
    user_id: str
    kind: Persona
    signals: Mapping[str, Any]
    luck: float
    if_it_helps: SimulatedReaction
    if_not: SimulatedReaction | None

    def helps(self, version: str) -> bool:
        """Tell whether a tip that this version wrote helps."""
        return self.luck < self.kind.taste(version)

    def reaction(self, version: str) -> SimulatedReaction | None:
        """Return how somebody reacts to a tip that this version wrote, if they do."""
        return self.if_it_helps if self.helps(version) else self.if_not


def visits(users: int, day: int, seed: int) -> list[Visit]:
    """Return who of so many people comes on a day, in the order of time; the same ones for the same seed."""
    chance = random.Random(f"{seed} {day}")  # noqa: S311 - the same people again, not secrets
    who = [user for user in range(users) if chance.random() < _VISITS_A_DAY]
    return sorted((_visit(f"{seed}-{day}-{user}", user, chance) for user in who), key=lambda visit: visit.time)


def _visit(id: str, user: int, chance: random.Random) -> Visit:  # noqa: A002
    kind = PERSONAS[user % len(PERSONAS)]
    signals = {"locale": chance.choice(["en-GB", "en-US", "de-DE", "es-ES"])}
    for name in kind.says:
        like = chance.choice(PERSONAS) if chance.random() < _OUT_OF_CHARACTER else kind
        value = like.says[name](chance)
        if chance.random() >= _LEFT_OUT:
            signals[name] = value
    late = timedelta(days=chance.uniform(1, 3)) if chance.random() < _COME_BACK_LATE else timedelta()
    after = late + timedelta(minutes=chance.expovariate(1 / 20))
    times = 2 if chance.random() < _SENT_TWICE else 1
    complains = chance.random() < _SAY_THAT_IT_DID_NOT_HELP
    return Visit(
        id=id,
        time=timedelta(seconds=chance.uniform(0, 86_400)),
        user_id=f"simulated-{user}",
        kind=kind,
        signals=signals,
        luck=chance.random(),
        if_it_helps=SimulatedReaction(chance.choice(["helpful", "done"]), after, times),
        if_not=SimulatedReaction(chance.choice(["not_helpful", "dismissed"]), after, times) if complains else None,
    )
