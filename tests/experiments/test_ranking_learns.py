"""Ranking where the right answer is known: how much of it is earned while it is still being learned."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.exploration import SquareCB
from ml.experiments.ranking import Learner, RankingPolicy
from tests.experiments.test_assignment import DECISIONS, fits

Floats = npt.NDArray[np.float64]

KINDS, CANDIDATES, ROUNDS = 6, 12, 8_000
ONE_HOT = np.eye(KINDS)
MATCHING, NEIGHBOURING, OTHER = 0.85, 0.30, 0.10


@dataclass(frozen=True)
class Played:
    """The policy at the end, and what was to be expected each round: of the tip chosen, of the best, of any."""

    policy: bytes
    earned: Floats
    best: Floats
    uniform: Floats


@cache
def played(seed: int) -> Played:
    """Each round, somebody of one of six kinds gets one of twelve tips, each with one of six topics, drawn anew.

    What is learned counts from the next round on.
    """
    rng = np.random.default_rng(seed)
    learner = Learner([f"kind={kind}" for kind in range(KINDS)], [f"topic={topic}" for topic in range(KINDS)])
    earned = np.empty((3, ROUNDS))
    for round_ in range(ROUNDS):
        kind = rng.integers(KINDS)
        topics = rng.integers(KINDS, size=CANDIDATES)
        worth = np.select([topics == kind, topics == (kind + 1) % KINDS], [MATCHING, NEIGHBOURING], OTHER)
        scores = learner.scores(ONE_HOT[kind], ONE_HOT[topics])
        probabilities = SquareCB(10 * math.sqrt(round_ + 1)).distribution(scores)
        taken = rng.choice(CANDIDATES, p=probabilities)
        earned[:, round_] = worth[taken], worth.max(), worth.mean()
        learner.learn(ONE_HOT[kind], ONE_HOT[topics[taken]], float(rng.random() < worth[taken]))
    policy = learner.policy("learned", versions=[], learned_from=ROUNDS, trained_until=0.0)
    return Played(policy, *earned)


@pytest.mark.parametrize("seed", [1, 2])
def test_ranking_earns_nine_tenths_of_what_an_oracle_does_where_uniform_earns_a_third(seed: int) -> None:
    game = played(seed)
    assert game.uniform.sum() / game.best.sum() == pytest.approx(0.328, abs=0.01)
    assert game.earned.sum() / game.best.sum() >= 0.9
    assert game.earned[-1_000:].sum() / game.best[-1_000:].sum() >= 0.95


@pytest.mark.parametrize("kind", [0, 3])
def test_what_was_learned_is_drawn_as_often_as_its_probabilities_say(kind: int) -> None:
    policy = RankingPolicy.load(played(1).policy)
    # Two of each topic: ties among the best, and among the others.
    probabilities = policy.rank(ONE_HOT[kind], np.tile(ONE_HOT, (2, 1))).probabilities
    claimed = {str(place): float(probability) for place, probability in enumerate(probabilities)}
    seen = Counter(
        draw_weighted(claimed, hash_to_unit_interval("score", f"{kind}-{n}")).option for n in range(DECISIONS)
    )
    assert fits(seen, claimed)
