"""The best choice for a simulated person by their signals, without knowing their kind."""

import random
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from ml.experiments.arrays import Floats
from ml.simulation.people import _OUT_OF_CHARACTER, PERSONAS, TASTES

DRAWS = 20_000
BINS = {"sleep_hours": 2.0, "steps_today": 1 / 500, "open_tasks": 1 / 2}
"""Bins per unit of the signals that have many values."""


def expected_rewards(signals: Mapping[str, Any]) -> Floats:
    """Return the expected reward of each version of `TASTES`, given a person's signals: no policy can know more.

    By Bayes' theorem, since all kinds are equally common and signals are independent given the kind, with the
    frequencies of simulated signals as their probabilities.
    """
    log_likelihood = np.zeros(len(PERSONAS))
    for name, of_kinds in _frequencies().items():
        if name in signals:
            drawn = np.array([of_kind.get(_bin(name, signals[name]), 0.5 / DRAWS) for of_kind in of_kinds])
            log_likelihood += np.log((1 - _OUT_OF_CHARACTER) * drawn + _OUT_OF_CHARACTER * drawn.mean())
    posterior = np.exp(log_likelihood - log_likelihood.max())
    rewards: Floats = posterior / posterior.sum() @ [[kind.taste(version) for version in TASTES] for kind in PERSONAS]
    return rewards


@cache
def _frequencies() -> dict[str, list[dict[Any, float]]]:
    """The share of each value of each signal, in bins, for each kind of people."""
    chance = random.Random(1)
    return {
        name: [
            {value: count / DRAWS for value, count in Counter(_bin(name, draw(chance)) for _ in range(DRAWS)).items()}
            for draw in (kind.says[name] for kind in PERSONAS)
        ]
        for name in PERSONAS[0].says
    }


def _bin(name: str, value: Any) -> Any:
    return int(value * BINS[name]) if name in BINS else value
