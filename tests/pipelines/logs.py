"""Simulated decision logs with known mean rewards of each prompt version."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ml.experiments.arrays import Floats
from ml.experiments.decisions import InMemoryDecisionLog, LoggedCandidate, LoggedDecision
from ml.pipelines import evaluation
from ml.pipelines.evaluation_report import EvaluationReport
from ml.pipelines.targets import Target

HOUR, DAY = 3_600.0, 86_400.0
MOODS = ("great", "low")
VERSIONS = ("v1", "v2", "v3")

Rates = Mapping[str, Mapping[str, float]]
"""The mean reward of each prompt version, by the mood of the user."""

ALIKE: Rates = {mood: {"v1": 0.2, "v2": 0.3, "v3": 0.4} for mood in MOODS}
APART: Rates = {"great": {"v1": 0.6, "v2": 0.3, "v3": 0.2}, "low": {"v1": 0.2, "v2": 0.3, "v3": 0.6}}


def decision(**fields: Any) -> LoggedDecision:
    """Return a decision among two prompt versions, with these fields replaced."""
    defaults: dict[str, Any] = {
        "id": "d-1",
        "user_id": "u-1",
        "at": 0.0,
        "signals": {},
        "aggregates": {},
        "candidates": (LoggedCandidate("v1", 0.5), LoggedCandidate("v2", 0.5)),
        "chosen": 0,
        "reward": 0.0,
        "ranked": False,
    }
    return LoggedDecision(**defaults | {"reward_in_window": fields.get("reward", 0.0)} | fields)


def log_of(
    n: int,
    *,
    rates: Rates = ALIKE,
    shares: Mapping[str, float] | None = None,
    users: int = 300,
    start: float = 0.0,
    seed: int = 1,
) -> list[LoggedDecision]:
    """Return `n` decisions among prompt versions, one every ten minutes. `shares`: the propensity of each version."""
    rng = np.random.default_rng(seed)
    shares = shares or dict.fromkeys(VERSIONS, 1 / 3)
    candidates = tuple(LoggedCandidate(version, share) for version, share in shares.items())
    decisions = []
    for index in range(n):
        mood = MOODS[int(rng.integers(2))]
        chosen = int(rng.choice(len(candidates), p=[*shares.values()]))
        decisions.append(
            decision(
                id=f"{seed}-{index}",
                user_id=f"u-{rng.integers(users)}",
                at=start + 600.0 * index,
                signals={"mood": mood},
                candidates=candidates,
                chosen=chosen,
                reward=float(rng.random() < rates[mood][candidates[chosen].prompt_version]),
            )
        )
    return decisions


def ranked_log_of(n: int, *, k: int = 3, users: int = 300, seed: int = 1) -> list[LoggedDecision]:
    """Return `n` decisions among 1 to `k` tips of random prompt versions, drawn with random propensities.

    Tips about sleep have higher rewards for users in a low mood, and other tips for other users.
    """
    rng = np.random.default_rng(seed)
    decisions = []
    for index in range(n):
        mood = MOODS[int(rng.integers(2))]
        size = int(rng.integers(1, k + 1))
        probabilities = rng.dirichlet(np.full(size, 2.0)) * 0.9 + 0.1 / size
        tips = ["Go to sleep early tonight." if rng.random() < 0.5 else "Take a short walk." for _ in range(size)]
        candidates = tuple(
            LoggedCandidate(VERSIONS[int(rng.integers(3))], float(p), tip)
            for p, tip in zip(probabilities, tips, strict=True)
        )
        chosen = int(rng.choice(size, p=probabilities))
        expected_reward = 0.6 if ("sleep" in tips[chosen]) == (mood == "low") else 0.2
        expected_reward += {"v1": -0.1, "v2": 0.0, "v3": 0.1}[candidates[chosen].prompt_version]
        decisions.append(
            decision(
                id=f"ranked-{seed}-{index}",
                user_id=f"u-{rng.integers(users)}",
                at=600.0 * index,
                signals={"mood": mood},
                candidates=candidates,
                chosen=chosen,
                reward=float(rng.random() < expected_reward),
                ranked=True,
            )
        )
    return decisions


def with_digests(log: Sequence[LoggedDecision], digest: str, *, reward: float | None = None) -> list[LoggedDecision]:
    """Return the decisions with the digest of the chosen prompt version, and optionally another reward."""
    return [
        replace(
            one,
            candidates=tuple(
                replace(candidate, prompt_digest=digest if index == one.chosen or one.ranked else None)
                for index, candidate in enumerate(one.candidates)
            ),
            reward=one.reward if reward is None else reward,
        )
        for one in log
    ]


def evaluate(decisions: Sequence[LoggedDecision], target: Target, *, chunk_size: int = 4_096) -> EvaluationReport:
    """Return the report of an evaluation with these decisions, which are read in chunks of `chunk_size`."""
    return evaluation.evaluate(InMemoryDecisionLog(decisions, chunk_size), target)


def distributions_of(
    target: Target, decisions: Sequence[LoggedDecision], *, chunk_size: int = 4_096
) -> list[Floats | None]:
    """Return the distribution of a target at each decision, which it is given in chunks of `chunk_size`."""
    distribute = target.replay(decisions[-1].at - decisions[0].at if decisions else 0.0)
    return [each for chunk in InMemoryDecisionLog(decisions, chunk_size).chunks() for each in distribute(chunk)]
