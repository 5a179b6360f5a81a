"""Policies over a few versions, which learn: from what each earned so far to the probability of each, to be logged."""

from collections.abc import Mapping
from dataclasses import dataclass

from ml.experiments.assignment import Assignment, draw_weighted
from ml.experiments.exploration import FLOOR
from ml.experiments.statistics import Sample, probability_best


@dataclass(frozen=True, slots=True)
class ThompsonSampling:
    """Thompson sampling over few arms: each is taken with the probability that it is the best one, given its rewards.

    The posteriors are Beta, from a uniform prior, and the probabilities exact (`probability_best`), so they can be
    logged, and computed once for many decisions. Rewards are additive counts and may be as late as they like; an arm
    that is new is one of no rewards. `floor`, in [0, 1): the least probability of each arm; with k arms, k times
    `floor` must stay below 1. Source: Chapelle & Li, "An empirical evaluation of Thompson sampling", NeurIPS 2011.
    """

    floor: float = FLOOR

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError("floor must be in [0, 1)")

    def distribution(self, arms: Mapping[str, Sample]) -> dict[str, float]:
        """Return the probability of each arm: floor + (1 - k * floor) * P(best).

        Raises ValueError without arms, and for so many that nothing is left above their floors.
        """
        left = 1 - len(arms) * self.floor
        if not arms or left <= 0:
            raise ValueError("there must be at least one arm, and fewer than 1 / floor")
        best = probability_best([*arms.values()])
        return {arm: self.floor + left * probability for arm, probability in zip(arms, best, strict=True)}

    def choose(self, arms: Mapping[str, Sample], u: float) -> Assignment:
        """Draw an arm; `u`, uniform in [0, 1), is the only source of chance. Raises what `distribution` does."""
        return draw_weighted(self.distribution(arms), u)
