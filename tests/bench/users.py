"""Users with many known features, candidates for each, and past decisions to train a policy on."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml.experiments.decisions import LoggedCandidate, LoggedDecision

CANDIDATES = 20
USERS = 200
DECISIONS = 2_000
"""Decisions that the policy is trained on."""

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
class User:
    """A user: signals, aggregates, and candidates."""

    user_id: str
    signals: Mapping[str, Any]
    aggregates: Mapping[str, float]
    candidates: Sequence[Mapping[str, str]]


def random_users() -> list[User]:
    rng = random.Random(1)
    return [
        User(
            f"u-{number}",
            {
                "goal": rng.choice(GOALS),
                "mood": rng.choice(MOODS),
                "energy": rng.randint(1, 10),
                "stress": rng.randint(1, 10),
                "sleep_hours": round(rng.uniform(4, 9), 1),
                "steps_today": rng.randrange(15_000),
                "minutes_since_break": rng.randrange(240),
                "open_tasks": rng.randrange(30),
                "meetings_left_today": rng.randrange(6),
                "streak_days": rng.randrange(100),
                "days_since_last_visit": rng.randrange(10),
            },
            {"reward_rate_30d": round(rng.random(), 3), "tips_7d": rng.randint(1, 20)},
            [
                {"id": f"c-{index}", "prompt_version": rng.choice(VERSIONS), "tip": rng.choice(TIPS)}
                for index in range(CANDIDATES)
            ],
        )
        for number in range(USERS)
    ]


def decisions(users: Sequence[User]) -> Iterator[LoggedDecision]:
    """Yield decisions to train a policy on; their rewards are random, which does not affect the cost of ranking."""
    rng = random.Random(2)
    for number in range(DECISIONS):
        user = users[number % USERS]
        reward = float(rng.random() < 0.3)
        yield LoggedDecision(
            id=str(number),
            user_id=user.user_id,
            at=number,
            signals=user.signals,
            aggregates=user.aggregates,
            candidates=tuple(
                LoggedCandidate(candidate["prompt_version"], 0.05, candidate["tip"]) for candidate in user.candidates
            ),
            chosen=rng.randrange(CANDIDATES),
            reward=reward,
            reward_in_window=reward,
            ranked=True,
        )
