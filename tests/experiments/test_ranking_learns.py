"""The share of an oracle's reward that ranking earns while it learns, on simulated users with known preferences."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from ml.experiments.arrays import Floats
from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.exploration import SquareCB
from ml.experiments.linear import DayAdjustedStatistics, LinearModel, fit
from ml.experiments.regression_statistics import RegressionStatistics
from tests.experiments.test_assignment import DECISIONS, matches_distribution

PERSONAS, CANDIDATES, ROUNDS, ROUNDS_PER_DAY = 6, 12, 8_000, 100
ONE_HOT = np.eye(PERSONAS)
MATCHING, NEIGHBOURING, OTHER = 0.85, 0.30, 0.10
CONTEXT, CANDIDATE = ([f"{name}={persona}" for persona in range(PERSONAS)] for name in ("persona", "topic"))


@dataclass(frozen=True)
class SimulationResult:
    """The final model, and by round the expected reward of the chosen tip, of the best, and the mean of all."""

    model: LinearModel
    earned: Floats
    best: Floats
    uniform: Floats


@cache
def simulate(seed: int) -> SimulationResult:
    """In each round, a user of one of six personas gets one of twelve tips, each with a random one of six topics.

    The model is fitted after each day.
    """
    rng = np.random.default_rng(seed)
    statistics = DayAdjustedStatistics.of_day(RegressionStatistics.empty(CONTEXT, CANDIDATE))
    model = None
    earned: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS // ROUNDS_PER_DAY):
        exploration = SquareCB(10 * math.sqrt(statistics.total.n + 1))
        personas = rng.integers(PERSONAS, size=ROUNDS_PER_DAY)
        topics = rng.integers(PERSONAS, size=(ROUNDS_PER_DAY, CANDIDATES))
        shown, rewards = np.empty(ROUNDS_PER_DAY, np.intp), np.empty(ROUNDS_PER_DAY)
        for round_, (persona, offered) in enumerate(zip(personas, topics, strict=True)):
            rewards_by_candidate = np.select(
                [offered == persona, offered == (persona + 1) % PERSONAS], [MATCHING, NEIGHBOURING], OTHER
            )
            scores = model.predict(ONE_HOT[persona], ONE_HOT[offered]) if model else np.zeros(CANDIDATES)
            chosen = rng.choice(CANDIDATES, p=exploration.distribution(np.clip(scores, 0, 1)))
            earned.append((rewards_by_candidate[chosen], rewards_by_candidate.max(), rewards_by_candidate.mean()))
            shown[round_], rewards[round_] = offered[chosen], rng.random() < rewards_by_candidate[chosen]
        statistics += DayAdjustedStatistics.of_day(
            RegressionStatistics.from_rows(CONTEXT, CANDIDATE, ONE_HOT[personas], ONE_HOT[shown], rewards)
        )
        model = fit(statistics)
    assert model
    return SimulationResult(model, *np.array(earned).T)


@pytest.mark.parametrize("seed", [1, 2])
def test_ranking_earns_over_nine_tenths_of_the_oracle_where_uniform_earns_a_third(seed: int) -> None:
    result = simulate(seed)
    assert result.uniform.sum() / result.best.sum() == pytest.approx(0.328, abs=0.01)
    assert result.earned.sum() / result.best.sum() >= 0.93
    assert result.earned[-1_000:].sum() / result.best[-1_000:].sum() >= 0.96


@pytest.mark.parametrize("persona", [0, 3])
def test_candidates_of_a_learned_ranking_are_drawn_with_the_frequency_of_their_propensities(persona: int) -> None:
    # Two candidates of each topic, so that the best score and the other scores occur twice.
    scores = np.clip(simulate(1).model.predict(ONE_HOT[persona], np.tile(ONE_HOT, (2, 1))), 0, 1)
    probabilities = SquareCB(10 * math.sqrt(ROUNDS)).distribution(scores)
    distribution = {str(index): float(probability) for index, probability in enumerate(probabilities)}
    counts = Counter(
        draw_weighted(distribution, hash_to_unit_interval("score", f"{persona}-{n}")).option for n in range(DECISIONS)
    )
    assert matches_distribution(counts, distribution)
