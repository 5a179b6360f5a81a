"""Simulated users: their signals, the prompt versions whose tips help them, and their reactions.

Each simulated user has one of three personas, and each persona prefers another prompt version. The signals of a user
indicate their persona, but never with certainty: some signals are missing, and some are drawn from another persona.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from statistics import fmean
from typing import Any

from ml.experiments.assignment import hash_to_unit_interval
from ml.simulation.scenarios import PLAIN, SCENARIOS, Scenario

MIN_OTHER_PREFERENCE, MAX_OTHER_PREFERENCE = 0.10, 0.50
"""The range of the preferences for prompt versions that a persona does not list: below those for its best version."""

Progress = Callable[[Iterable[int]], Iterable[int]]
"""Yields the given steps, and shows how many are done."""

# Probabilities.
_VISIT_ON_A_DAY = 0.5
_SIGNAL_MISSING = 0.1
_SIGNAL_OF_ANY_PERSONA = 0.1
_REACTION_IF_NOT_HELPFUL = 0.4
_REACTION_SENT_TWICE = 0.05

_Sampler = Callable[[random.Random], Any]
"""Draws the value of a signal."""


def _category(**weights: float) -> _Sampler:
    return lambda rng: rng.choices([*weights], [*weights.values()])[0]


def _rating(mean: float) -> _Sampler:
    return lambda rng: min(max(round(rng.gauss(mean, 1.5)), 1), 10)


def _hours(mean: float) -> _Sampler:
    return lambda rng: round(min(max(rng.gauss(mean, 0.8), 0), 24), 1)


def _count(mean: float) -> _Sampler:
    return lambda rng: round(rng.expovariate(1 / mean))


@dataclass(frozen=True, slots=True)
class Persona:
    """A type of simulated user.

    `preferences`: for some prompt versions, the probability that a tip of it helps. `signals`: the sampler of each
    signal.
    """

    name: str
    preferences: Mapping[str, float]
    signals: Mapping[str, _Sampler]

    def preference(self, prompt_version: str) -> float:
        """Return the probability that a tip of a version helps; a hash of its name decides if it is not listed."""
        position = hash_to_unit_interval("preference", self.name, prompt_version)
        other = MIN_OTHER_PREFERENCE + position * (MAX_OTHER_PREFERENCE - MIN_OTHER_PREFERENCE)
        return self.preferences.get(prompt_version, other)


PERSONAS = (
    Persona(
        "planning",
        {"v1": 0.60, "v2-mentor": 0.28, "v3-few-shot": 0.19},
        {
            "mood": _category(great=1, good=4, okay=4, low=1),
            "energy": _rating(6),
            "stress": _rating(5),
            "sleep_hours": _hours(7.2),
            "steps_today": _count(2_500),
            "open_tasks": _count(15),
            "meetings_left_today": _count(4),
            "activity": _category(working=7, sitting=2, eating=1),
        },
    ),
    Persona(
        "stressed",
        {"v1": 0.20, "v2-mentor": 0.80, "v3-few-shot": 0.20},
        {
            "mood": _category(okay=2, low=5, awful=3),
            "energy": _rating(3),
            "stress": _rating(8),
            "sleep_hours": _hours(5.2),
            "steps_today": _count(2_000),
            "open_tasks": _count(10),
            "meetings_left_today": _count(2),
            "activity": _category(working=3, sitting=2, in_bed=3, relaxing=2),
        },
    ),
    Persona(
        "moving",
        {"v1": 0.10, "v2-mentor": 0.24, "v3-few-shot": 0.60},
        {
            "mood": _category(great=4, good=4, okay=2),
            "energy": _rating(7.5),
            "stress": _rating(3.5),
            "sleep_hours": _hours(7.4),
            "steps_today": _count(9_000),
            "open_tasks": _count(4),
            "meetings_left_today": _count(1),
            "activity": _category(walking=3, commuting=4, exercising=2, eating=1),
        },
    ),
)
"""Equally frequent: planning a working day, stressed after a bad night, and moving."""

LISTED_VERSIONS = tuple(PERSONAS[0].preferences)
"""The prompt versions for which the personas list a preference: each is the best one of a persona."""


def mean_preference(prompt_version: str) -> float:
    """Return the mean preference of all users for a prompt version: its expected mean reward."""
    return fmean(persona.preference(prompt_version) for persona in PERSONAS)


@dataclass(frozen=True, slots=True)
class SimulatedReaction:
    """A reaction to a tip, the delay after which it is sent, and how often it is sent."""

    reaction: str
    delay: timedelta
    times: int


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of a simulated user for a tip, at a `time` of the day.

    All random values are drawn beforehand, so that every policy is compared on the same visits. `helpfulness_draw` is
    uniform in [0, 1): a tip helps if it is below the probability that the user's preference for the prompt version
    gives on that `day` of the `scenario`.
    """

    id: str
    time: timedelta
    user_id: str
    persona: Persona
    signals: Mapping[str, Any]
    helpfulness_draw: float
    reaction_if_helpful: SimulatedReaction
    reaction_otherwise: SimulatedReaction | None
    day: int
    scenario: Scenario

    def helps(self, prompt_version: str) -> bool:
        """Return whether a tip of a prompt version helps."""
        preference = self.persona.preference(prompt_version)
        return self.helpfulness_draw < self.scenario.reward_probability(preference, self.day)

    def is_seen(self, unseen_share: float) -> bool:
        """Return whether the user sees the tip, if a share of the tips is not seen."""
        return hash_to_unit_interval("seen", self.id) >= unseen_share

    def reaction(self, prompt_version: str) -> SimulatedReaction | None:
        """Return the reaction to a tip of a prompt version, if there is one."""
        return self.reaction_if_helpful if self.helps(prompt_version) else self.reaction_otherwise


def visits(users: int, day: int, seed: int, scenario: Scenario = SCENARIOS[PLAIN]) -> list[Visit]:
    """Return the visits of a day in the order of time; the same arguments give the same visits."""
    rng = random.Random(f"{seed} {day}")  # noqa: S311 - for repeatable simulations, not for secrets
    visitors = [user for user in range(users) if rng.random() < _VISIT_ON_A_DAY]
    if scenario.activity_exponent:
        activity = [(user + 1) ** -scenario.activity_exponent for user in range(users)]
        visitors = rng.choices(range(users), activity, k=len(visitors))
    drawn = (
        _visit(f"{seed}-{day}-{number if scenario.activity_exponent else user}", user, day, scenario, rng)
        for number, user in enumerate(visitors)
    )
    return sorted(drawn, key=lambda visit: visit.time)


def _visit(id: str, user: int, day: int, scenario: Scenario, rng: random.Random) -> Visit:  # noqa: A002
    persona = PERSONAS[user % len(PERSONAS)]
    signals = {"locale": rng.choice(["en-GB", "en-US", "de-DE", "es-ES"])}
    for name in persona.signals:
        source = rng.choice(PERSONAS) if rng.random() < _SIGNAL_OF_ANY_PERSONA else persona
        value = source.signals[name](rng)
        if rng.random() >= _SIGNAL_MISSING:
            signals[name] = value
    days_late = timedelta(days=rng.uniform(1, 3)) if rng.random() < scenario.late_reactions else timedelta()
    delay = days_late + timedelta(minutes=rng.expovariate(1 / 20))
    times = 2 if rng.random() < _REACTION_SENT_TWICE else 1
    if scenario.preferences_change_on is not None and day >= scenario.preferences_change_on:
        preferences = PERSONAS[(user + 1) % len(PERSONAS)].preferences
    else:
        preferences = persona.preferences
    reacts_if_not_helpful = rng.random() < _REACTION_IF_NOT_HELPFUL
    return Visit(
        id=id,
        time=timedelta(seconds=rng.uniform(0, 86_400)),
        user_id=f"simulated-{user}",
        persona=replace(persona, preferences=preferences) if preferences is not persona.preferences else persona,
        signals=signals,
        helpfulness_draw=rng.random(),
        reaction_if_helpful=SimulatedReaction(rng.choice(["helpful", "done"]), delay, times),
        reaction_otherwise=(
            SimulatedReaction(rng.choice(["not_helpful", "dismissed"]), delay, times) if reacts_if_not_helpful else None
        ),
        day=day,
        scenario=scenario,
    )
