"""Thompson sampling over prompt versions."""

from collections.abc import Mapping
from dataclasses import dataclass

from ml.experiments.exploration import FLOOR
from ml.experiments.statistics import Sample, probability_best


@dataclass(frozen=True, slots=True)
class ThompsonSampling:
    """Thompson sampling over a small number of arms: each is drawn with the posterior probability that it is the best.

    The posteriors are Beta distributions with a uniform prior, and the probabilities are exact (`probability_best`), so
    that they can be logged as propensities and computed once for many decisions. Rewards are additive sums, so they may
    arrive late; a new arm has no rewards. `floor`, in [0, 1): the minimum probability of each arm; with k arms,
    k * `floor` must be below 1. Raises ValueError for another floor. Source: Chapelle & Li, "An empirical evaluation of
    Thompson sampling", NeurIPS 2011.
    """

    floor: float = FLOOR

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError("floor must be in [0, 1)")

    def distribution(self, rewards: Mapping[str, Sample]) -> dict[str, float]:
        """Return the probability of each arm: floor + (1 - k * floor) * P(best).

        Raises ValueError without arms, and if the floors of all arms add up to 1 or more.
        """
        above_floor = 1 - len(rewards) * self.floor
        if not rewards or above_floor <= 0:
            raise ValueError("there must be at least one arm, and fewer than 1 / floor")
        best = probability_best([*rewards.values()])
        return {arm: self.floor + above_floor * share for arm, share in zip(rewards, best, strict=True)}
