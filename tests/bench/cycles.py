"""Cycles of collecting decisions, training, evaluation and deployment of a ranking policy, on simulated users.

    python -m tests.bench.cycles [--seeds 5] [--users 300] [--days 14] [--exploration squarecb]

prints the table of docs/benchmarks.md. It runs in process with the code of the service: three candidates per decision,
one of each prompt version, as systematic sampling draws them; `train`, `evaluate` and the policy are the real ones. The
first cycle is ranked uniformly. After each cycle a policy is trained on all days but the newest seven, evaluated on
these, and ranks the next cycle.

The share is that of the way from uniform ranking to an oracle, in expected reward. One oracle knows the signals only,
and is the best that any policy can be; the other one knows the persona of each user.

`--exploration thompson` draws each candidate with the posterior probability that it is the best (Thompson sampling, 256
fixed draws from the posterior of the weights, with the same floor) instead of the inverse gap weighting of the service.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import numpy as np

from ml.experiments.arrays import Floats
from ml.experiments.decisions import InMemoryDecisionLog, LoggedCandidate, LoggedDecision
from ml.experiments.regression_statistics import interaction_features
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row
from ml.pipelines.evaluation import evaluate
from ml.pipelines.targets import RankingTarget
from ml.pipelines.training import train
from ml.registry.artifacts import RankingPolicy
from ml.registry.policies import LearnedPolicy
from ml.simulation.people import LISTED_VERSIONS, Visit, visits
from tests.simulation.oracle import expected_rewards

CYCLES = 3
HELD_OUT_DAYS = 7
TIP = "Take three slow breaths before the next thing you do."
NORMAL_DRAWS = np.random.default_rng(1).standard_normal((256, len(LISTED_VERSIONS)))
_DAY = 86_400.0

Ranker = Callable[[Visit], Floats]
"""Returns the probability of each of `LISTED_VERSIONS`."""


@dataclass(frozen=True)
class CycleOutcome:
    """The outcome of the policy of one cycle.

    `of_signals`, `of_personas`: its share of the way to the oracle that knows the signals, or the personas.
    `is_predicted`: the mean observed reward is in the interval that the evaluation before the deployment predicted.
    `window_days`: that the policy was trained on; None for all days.
    """

    of_signals: float
    of_personas: float
    is_predicted: bool
    window_days: int | None


def run(seed: int, users: int, days: int, exploration: str = "squarecb") -> list[CycleOutcome]:
    """Return the outcomes of the policies of three cycles."""
    chance = random.Random(seed)
    log: list[LoggedDecision] = []
    ranker: Ranker = uniform
    outcomes: list[CycleOutcome] = []
    predicted = (0.0, 1.0)
    window: int | None = None
    for cycle in range(CYCLES + 1):
        of_cycle = [visit for day in range(days) for visit in visits(users, cycle * days + day, seed)]
        first_day = cycle * days
        decided = [
            _decide(visit, ranker(visit), first_day, chance, index // max(1, len(of_cycle) // days))
            for index, visit in enumerate(of_cycle)
        ]
        if cycle:
            observed = float(np.mean([decision.reward for decision, _ in decided]))
            probabilities = np.array([each for _, each in decided])
            outcomes.append(
                CycleOutcome(
                    share(probabilities, np.array([expected_rewards(visit.signals) for visit in of_cycle])),
                    share(
                        probabilities,
                        np.array([[visit.persona.preference(v) for v in LISTED_VERSIONS] for visit in of_cycle]),
                    ),
                    predicted[0] <= observed <= predicted[1],
                    window,
                )
            )
        log += [decision for decision, _ in decided]
        until = (first_day + days - HELD_OUT_DAYS) * _DAY
        policy = RankingPolicy.from_bytes(train(InMemoryDecisionLog(log), before=until))
        learned = LearnedPolicy(policy)
        best = evaluate(InMemoryDecisionLog(log), RankingTarget(learned), since=until).best
        predicted, window = (best.low, best.high), policy.card.window_days
        ranker = partial(ranked, learned) if exploration == "squarecb" else partial(drawn_from_posterior, policy)
    return outcomes


def ranked(policy: LearnedPolicy, visit: Visit) -> Floats:
    """Return the probabilities of a learned policy."""
    return policy.rank(visit.signals, [candidate_row(version, TIP) for version in LISTED_VERSIONS]).probabilities


def drawn_from_posterior(policy: RankingPolicy, visit: Visit) -> Floats:
    """Return the share of posterior draws in which each candidate is the best, with the floor of the policy."""
    candidates = candidate_encoder(policy.card.versions).encode_rows(
        [candidate_row(version, TIP) for version in LISTED_VERSIONS]
    )
    contexts = np.repeat(CONTEXT_ENCODER.encode_rows([visit.signals]), len(candidates), axis=0)
    features = interaction_features(contexts, candidates)
    covariance = features @ policy.model.covariance @ features.T
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(candidates)))
    drawn = features @ policy.model.weights.ravel() + NORMAL_DRAWS @ root.T
    best = np.bincount(drawn.argmax(1), minlength=len(candidates)) / len(NORMAL_DRAWS)
    mixed: Floats = (1 - policy.card.floor) * best + policy.card.floor / len(candidates)
    return mixed


def uniform(visit: Visit) -> Floats:  # noqa: ARG001
    """Give each candidate the same probability."""
    return np.full(len(LISTED_VERSIONS), 1 / len(LISTED_VERSIONS))


def share(probabilities: Floats, rewards: Floats) -> float:
    """Return the share of the way from uniform to the best option; both arguments of the shape (visits, versions)."""
    earned, lowest, highest = (
        float((probabilities * rewards).sum(1).mean()),
        float(rewards.mean()),
        float(rewards.max(1).mean()),
    )
    return (earned - lowest) / (highest - lowest)


def _decide(
    visit: Visit, probabilities: Floats, first_day: int, chance: random.Random, day: int
) -> tuple[LoggedDecision, Floats]:
    chosen = chance.choices(range(len(LISTED_VERSIONS)), probabilities.tolist())[0]
    reward = float(visit.helps(LISTED_VERSIONS[chosen]))
    at = (first_day + day) * _DAY + visit.time / timedelta(seconds=1)
    candidates = tuple(
        LoggedCandidate(version, probability, TIP)
        for version, probability in zip(LISTED_VERSIONS, probabilities.tolist(), strict=True)
    )
    decision = LoggedDecision(
        visit.id, visit.user_id, at, visit.signals, {}, candidates, chosen, reward, reward, ranked=True
    )
    return decision, probabilities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--exploration", choices=["squarecb", "thompson"], default="squarecb")
    arguments = parser.parse_args()
    runs = [run(seed, arguments.users, arguments.days, arguments.exploration) for seed in range(1, arguments.seeds + 1)]
    print("| cycle | share, oracle of signals | share, oracle of personas | observed rewards predicted | windows |")
    print("|---|---|---|---|---|")
    for cycle in range(CYCLES):
        outcomes: Sequence[CycleOutcome] = [outcomes[cycle] for outcomes in runs]
        windows = ", ".join(str(outcome.window_days or "all") for outcome in outcomes)
        print(
            f"| {cycle + 1} | {np.mean([outcome.of_signals for outcome in outcomes]):.3f} "
            f"| {np.mean([outcome.of_personas for outcome in outcomes]):.3f} "
            f"| {sum(outcome.is_predicted for outcome in outcomes)} of {len(outcomes)} | {windows} |"
        )


if __name__ == "__main__":
    main()
