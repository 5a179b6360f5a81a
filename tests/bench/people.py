"""People of whom much is known, the tips that could be shown to each, and a past to learn from."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml.experiments.decisions import LoggedCandidate, LoggedDecision

CANDIDATES = 20
PEOPLE = 200
LEARNED_FROM = 2_000
"""Decisions that the policy is made of."""

VERSIONS = ("v1", "v2-mentor", "v3-few-shot")
MOODS = ("great", "good", "okay", "low", "awful")
GOALS = ("sleep better", "move more at work", "eat less late at night", "worry less about tasks", "see my friends more")
TIPS = (
    "Dim the lights now and leave your phone to charge in another room.",
    "Stand up, roll your shoulders slowly ten times, and look out of a window until you are done.",
    "Write tomorrow's three most important tasks on paper, then close the laptop for today.",
    "Drink a glass of water before your next coffee.",
    "Take the stairs to the street and walk once around the block; ten minutes are enough.",
    "Breathe in for four counts and out for six, five times.",
    "Call a friend while you cook dinner tonight.",
    "Put your shoes beside the door now, so that tomorrow's morning run begins without a decision.",
)


@dataclass(frozen=True)
class Person:
    """What is known of somebody, and what could be shown to them."""

    user_id: str
    signals: Mapping[str, Any]
    aggregates: Mapping[str, float]
    candidates: Sequence[Mapping[str, str]]


def people() -> list[Person]:
    chance = random.Random(1)
    return [
        Person(
            f"u-{number}",
            {
                "goal": chance.choice(GOALS),
                "mood": chance.choice(MOODS),
                "energy": chance.randint(1, 10),
                "stress": chance.randint(1, 10),
                "sleep_hours": round(chance.uniform(4, 9), 1),
                "steps_today": chance.randrange(15_000),
                "minutes_since_break": chance.randrange(240),
                "open_tasks": chance.randrange(30),
                "meetings_left_today": chance.randrange(6),
                "streak_days": chance.randrange(100),
                "days_since_last_visit": chance.randrange(10),
            },
            {"reward_rate_30d": round(chance.random(), 3), "tips_7d": chance.randint(1, 20)},
            [
                {"id": f"c-{index}", "prompt_version": chance.choice(VERSIONS), "tip": chance.choice(TIPS)}
                for index in range(CANDIDATES)
            ],
        )
        for number in range(PEOPLE)
    ]


def decisions(everybody: Sequence[Person]) -> Iterator[LoggedDecision]:
    """Yield what a policy is made of: what people liked is chance here, and does not matter."""
    chance = random.Random(2)
    for number in range(LEARNED_FROM):
        person = everybody[number % PEOPLE]
        yield LoggedDecision(
            id=str(number),
            user_id=person.user_id,
            at=number,
            signals=person.signals,
            aggregates=person.aggregates,
            candidates=tuple(LoggedCandidate(each["prompt_version"], 0.05, each["tip"]) for each in person.candidates),
            chosen=chance.randrange(CANDIDATES),
            reward=float(chance.random() < 0.3),
            ranked=True,
        )
