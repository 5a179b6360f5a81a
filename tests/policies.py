"""Ranking policies that were really learned, for tests that need one."""

import random
from functools import cache

from ml.experiments.decisions import LoggedCandidate, LoggedDecision
from ml.pipelines.training import train

TIPS = {
    "v1": "Dim the lights now and leave your phone in another room.",
    "v2-mentor": "Take ten slow breaths at the open window.",
    "v3-few-shot": "Write down your three tasks, and begin with the first.",
}
LIKED = {"low": "v2-mentor", "good": "v1"}
"""What people in these moods like."""


def decisions(n: int, seed: int = 1) -> list[LoggedDecision]:
    """What people were shown, each version as often, and how they liked it."""
    chance = random.Random(seed)
    made = []
    for number in range(n):
        mood = chance.choice([*LIKED])
        candidates = tuple(LoggedCandidate(version, 1 / len(TIPS), tip) for version, tip in TIPS.items())
        taken = chance.randrange(len(TIPS))
        likes = 0.8 if candidates[taken].prompt_version == LIKED[mood] else 0.2
        signals = {"mood": mood, "stress": chance.randint(1, 10)}
        reward = float(chance.random() < likes)
        made.append(
            LoggedDecision(f"d{number}", f"u{number % 50}", float(number), signals, {}, candidates, taken, reward, True)
        )
    return made


@cache
def policy(name: str = "tips", *, n: int = 2_000, seed: int = 1) -> bytes:
    """A policy that knows who likes what."""
    return train(decisions(n, seed), name=name)
