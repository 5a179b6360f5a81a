"""Who gets which option: every assignment comes with the probability that it had."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Assignment:
    """The option taken, its probability (propensity), and the whole distribution that it was drawn from."""

    option: str
    probability: float
    distribution: Mapping[str, float]


def weighted(weights: Mapping[str, float], u: float) -> Assignment:
    """Draw an option with probability proportional to its weight.

    `weights`: at least one, all above zero. `u`: uniform in [0, 1), the only source of chance: the same `u` gives the
    same assignment (inverse transform sampling).
    """
    whole = sum(weights.values())
    distribution = {option: weight / whole for option, weight in weights.items()}
    ends = accumulate(distribution.values())
    taken = next((option for option, end in zip(weights, ends, strict=True) if u < end), [*weights][-1])
    return Assignment(taken, distribution[taken], distribution)
