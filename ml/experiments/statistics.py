"""Samples of rewards, and intervals."""

import math
from dataclasses import dataclass

from scipy import special


@dataclass(frozen=True, slots=True)
class Sample:
    """The rewards of one arm, in [0, 1]: their number, their sum and the sum of their squares. Samples are additive."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(self.n + other.n, self.total + other.total, self.squares + other.squares)

    def centred(self, centre: float) -> "Sample":
        """Return the number, the sum and the sum of squares of the rewards minus `centre`."""
        squares = self.squares - 2 * centre * self.total + self.n * centre**2
        return Sample(self.n, self.total - self.n * centre, max(squares, 0.0))  # rounding can make it negative

    @property
    def mean(self) -> float:
        """The mean reward; 0 without rewards."""
        return self.total / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its lower and upper limit."""

    estimate: float
    low: float
    high: float


def difference_of_means(first: Sample, second: Sample, *, alpha: float = 0.05) -> Interval | None:
    """Return the mean of `first` minus that of `second`, with an interval for one look; None below two values in each.

    For samples of independent values in [0, 1], such as the mean rewards of different users. Welch's t interval, with
    the degrees of freedom of Satterthwaite (Welch, "The generalization of 'Student's' problem", Biometrika 1947).
    """
    if first.n <= 1 or second.n <= 1:
        return None
    estimate = first.mean - second.mean
    variances = [sample.centred(sample.mean).squares / (sample.n - 1) / sample.n for sample in (first, second)]
    variance = sum(variances)
    half_width = 0.0
    if variance:
        terms = [v**2 / (sample.n - 1) for v, sample in zip(variances, (first, second), strict=True)]
        half_width = float(special.stdtrit(variance**2 / sum(terms), 1 - alpha / 2)) * math.sqrt(variance)
    return Interval(estimate, max(estimate - half_width, -1.0), min(estimate + half_width, 1.0))
