"""Samples of rewards, and intervals."""

from dataclasses import dataclass


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
