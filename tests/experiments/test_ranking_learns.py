"""Ranking where the right answer is known: the share of it that is earned while it is still being learned."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from ml.experiments.arrays import Floats
from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.exploration import SquareCB
from ml.experiments.linear import LinearModel, fit
from ml.experiments.regression_statistics import RegressionStatistics
from tests.experiments.test_assignment import DECISIONS, fits

KINDS, CANDIDATES, ROUNDS, ROUNDS_PER_DAY = 6, 12, 8_000, 100
ONE_HOT = np.eye(KINDS)
MATCHING, NEIGHBOURING, OTHER = 0.85, 0.30, 0.10
CONTEXT, CANDIDATE = ([f"{name}={kind}" for kind in range(KINDS)] for name in ("kind", "topic"))


@dataclass(frozen=True)
class Played:
    """The model at the end, and the expected reward in each round: of the tip chosen, of the best, of any."""

    model: LinearModel
    earned: Floats
    best: Floats
    uniform: Floats


@cache
def played(seed: int) -> Played:
    """In each round, a person of one of six kinds gets one of twelve tips, each with one of six topics, drawn anew.

    The model is fitted again after each day.
    """
    rng = np.random.default_rng(seed)
    statistics = RegressionStatistics.empty(CONTEXT, CANDIDATE)
    model = None
    earned: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS // ROUNDS_PER_DAY):
        exploration = SquareCB(10 * math.sqrt(statistics.n + 1))
        kinds = rng.integers(KINDS, size=ROUNDS_PER_DAY)
        topics = rng.integers(KINDS, size=(ROUNDS_PER_DAY, CANDIDATES))
        shown, rewards = np.empty(ROUNDS_PER_DAY, np.intp), np.empty(ROUNDS_PER_DAY)
        for round_, (kind, offered) in enumerate(zip(kinds, topics, strict=True)):
            worth = np.select([offered == kind, offered == (kind + 1) % KINDS], [MATCHING, NEIGHBOURING], OTHER)
            scores = model.predict(ONE_HOT[kind], ONE_HOT[offered]) if model else np.zeros(CANDIDATES)
            taken = rng.choice(CANDIDATES, p=exploration.distribution(np.clip(scores, 0, 1)))
            earned.append((worth[taken], worth.max(), worth.mean()))
            shown[round_], rewards[round_] = offered[taken], rng.random() < worth[taken]
        statistics += RegressionStatistics.from_rows(CONTEXT, CANDIDATE, ONE_HOT[kinds], ONE_HOT[shown], rewards)
        model = fit(statistics)
    assert model
    return Played(model, *np.array(earned).T)


@pytest.mark.parametrize("seed", [1, 2])
def test_ranking_earns_nine_tenths_of_what_an_oracle_does_where_uniform_earns_a_third(seed: int) -> None:
    game = played(seed)
    assert game.uniform.sum() / game.best.sum() == pytest.approx(0.328, abs=0.01)
    assert game.earned.sum() / game.best.sum() >= 0.93
    assert game.earned[-1_000:].sum() / game.best[-1_000:].sum() >= 0.96


@pytest.mark.parametrize("kind", [0, 3])
def test_what_was_learned_is_drawn_as_often_as_its_probabilities_say(kind: int) -> None:
    # Two of each topic: ties among the best, and among the others.
    scores = np.clip(played(1).model.predict(ONE_HOT[kind], np.tile(ONE_HOT, (2, 1))), 0, 1)
    probabilities = SquareCB(10 * math.sqrt(ROUNDS)).distribution(scores)
    claimed = {str(place): float(probability) for place, probability in enumerate(probabilities)}
    seen = Counter(
        draw_weighted(claimed, hash_to_unit_interval("score", f"{kind}-{n}")).option for n in range(DECISIONS)
    )
    assert fits(seen, claimed)
