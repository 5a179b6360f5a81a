"""Trained ranking policies for tests."""

import random
from dataclasses import replace
from functools import cache

from ml.experiments.decisions import InMemoryDecisionLog, LoggedCandidate, LoggedDecision
from ml.pipelines.training import train

TIPS = {
    "v1": "Dim the lights now and leave your phone in another room.",
    "v2-mentor": "Take ten slow breaths at the open window.",
    "v3-few-shot": "Write down your three tasks, and begin with the first.",
}
LIKED = {"low": "v2-mentor", "good": "v1"}
"""The prompt version that users prefer, by their mood."""


def decisions(n: int, seed: int = 1) -> list[LoggedDecision]:
    """Return `n` ranked decisions with equal propensities, with rewards by the preferences of `LIKED`."""
    chance = random.Random(seed)
    log = []
    for number in range(n):
        mood = chance.choice([*LIKED])
        candidates = tuple(LoggedCandidate(version, 1 / len(TIPS), tip) for version, tip in TIPS.items())
        chosen = chance.randrange(len(TIPS))
        expected_reward = 0.8 if candidates[chosen].prompt_version == LIKED[mood] else 0.2
        signals = {"mood": mood, "stress": chance.randint(1, 10)}
        reward = float(chance.random() < expected_reward)
        log.append(
            LoggedDecision(
                f"d{number}", f"u{number % 50}", float(number), signals, {}, candidates, chosen, reward, reward, True
            )
        )
    return log


@cache
def policy_with_figures() -> bytes:
    """Return a policy that is trained on six days, so that its card has figures of the three newest ones."""
    log = decisions(600)
    days = [replace(one, at=one.at + 86_400.0 * (number // 100)) for number, one in enumerate(log)]
    return train(InMemoryDecisionLog(days))


@cache
def policy(name: str = "tips", *, n: int = 2_000, seed: int = 1) -> bytes:
    """Return a policy that is trained on `decisions`."""
    return train(InMemoryDecisionLog(decisions(n, seed)), name=name)
