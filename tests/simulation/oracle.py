"""The expected rewards for a simulated user given the signals only, without the persona."""

import random
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from ml.experiments.arrays import Floats
from ml.simulation.people import _SIGNAL_OF_ANY_PERSONA, LISTED_VERSIONS, PERSONAS

DRAWS = 20_000
BINS = {"sleep_hours": 2.0, "steps_today": 1 / 500, "open_tasks": 1 / 2}
"""Bins per unit, for signals with many values."""


def expected_rewards(signals: Mapping[str, Any]) -> Floats:
    """Return the expected reward of each prompt version in `LISTED_VERSIONS`, given a user's signals.

    Choosing the version with the highest value is optimal for a policy that knows the signals only.
    By Bayes' theorem: all personas are equally common, and signals are independent given the persona. The frequencies
    of simulated signals are used as their probabilities.
    """
    log_likelihood = np.zeros(len(PERSONAS))
    for name, frequencies_by_persona in _frequencies().items():
        if name in signals:
            likelihoods = np.array(
                [frequencies.get(_bin(name, signals[name]), 0.5 / DRAWS) for frequencies in frequencies_by_persona]
            )
            log_likelihood += np.log(
                (1 - _SIGNAL_OF_ANY_PERSONA) * likelihoods + _SIGNAL_OF_ANY_PERSONA * likelihoods.mean()
            )
    posterior = np.exp(log_likelihood - log_likelihood.max())
    rewards: Floats = (
        posterior
        / posterior.sum()
        @ [[persona.preference(version) for version in LISTED_VERSIONS] for persona in PERSONAS]
    )
    return rewards


@cache
def _frequencies() -> dict[str, list[dict[Any, float]]]:
    """Return the frequency of each binned value of each signal, by persona."""
    chance = random.Random(1)
    return {
        name: [
            {value: count / DRAWS for value, count in Counter(_bin(name, draw(chance)) for _ in range(DRAWS)).items()}
            for draw in (persona.signals[name] for persona in PERSONAS)
        ]
        for name in PERSONAS[0].signals
    }


def _bin(name: str, value: Any) -> Any:
    return int(value * BINS[name]) if name in BINS else value
