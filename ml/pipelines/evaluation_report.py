"""The report of an off-policy evaluation: the gain at every look, all estimates, and their wording."""

from collections.abc import Mapping
from dataclasses import dataclass

from ml.experiments.evaluation import Estimate
from ml.experiments.statistics import Interval

BEST = "sndr"
"""The recommended estimator: it is consistent whatever the reward model, and its weights are normalised."""

TABLE_ROWS = (
    "estimate",
    "mean reward",
    "   at least",
    "   at most",
    "gain in points",
    "   at least",
    "   at most",
    "effective sample size",
    "mean weight",
    "largest weight",
    "gain excludes 0",
)
"""The names of the rows of `EvaluationReport.table`; the first one is that of the row of column names."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The off-policy evaluation of one target policy.

    `policy`: its name. `decisions`, `users`: how many it was evaluated with. `earned`: the mean reward of the live
    policy at the same decisions. `gain`: the confidence sequence of the gain, which holds at every look; None if
    refused. `gain_refusal`: the reason, as the end of a sentence. `is_identical`: the policy has the probabilities of
    the log. `estimates`: those of the target policy by estimator, the recommended one first. `left_out`: sentences
    about the decisions that were left out.
    """

    policy: str
    decisions: int
    users: int
    earned: Estimate
    gain: Interval | None
    gain_refusal: str | None
    is_identical: bool
    estimates: Mapping[str, Estimate]
    left_out: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the data and the use of the estimates."""
        return (
            f"{self.decisions:,} decisions, {self.users:,} users. The estimates are for a single look, at a policy "
            f"that was chosen beforehand; use {BEST}, and snips as a check.",
            *self.left_out,
        )

    @property
    def best(self) -> Estimate:
        """The estimate of the recommended estimator."""
        return self.estimates[BEST]

    @property
    def verdict(self) -> str:
        """Sentences with the mean reward of the log, and the gain of the policy with its interval at every look."""
        log = f"The log earned {percent(self.earned.value)}."
        if self.is_identical:
            return f"{log} {self.policy} and the log are identical: they have the same probabilities, so the gain is 0."
        if self.gain is None:
            return f"{log} The gain of {self.policy} cannot be estimated: {self.gain_refusal}"
        gain = f"{_points(self.gain.estimate)} points ({_points(self.gain.low)} to {_points(self.gain.high)})"
        if self.gain.low > 0:
            found = f"{self.policy} is better in this traffic"
        elif self.gain.high < 0:
            found = f"{self.policy} is worse in this traffic"
        else:
            found = f"No difference from {self.policy} has been found so far"
        return f"{log} {found}: {gain}. This 95% interval holds at every look."

    @property
    def table(self) -> tuple[tuple[str, ...], ...]:
        """All figures as text, by row; the first row has the column names, the first column those of `TABLE_ROWS`."""
        columns = [_column("the log", self.earned, with_gain=False)]
        columns += [_column(name, estimate, with_gain=True) for name, estimate in self.estimates.items()]
        return tuple(zip(TABLE_ROWS, *columns, strict=True))


def percent(reward: float) -> str:
    """Format a reward as a percentage."""
    return f"{100 * reward:.1f}%"


def _points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def _column(name: str, estimate: Estimate, *, with_gain: bool) -> tuple[str, ...]:
    """Return a column of the table; that of the log has no gain."""
    gain = estimate.gain
    excludes_zero = "refused" if estimate.refusal else "yes" if estimate.gain_excludes_zero else "no"
    return (
        name,
        *(percent(reward) for reward in (estimate.value, estimate.low, estimate.high)),
        *(_points(points) if with_gain else "" for points in (gain.estimate, gain.low, gain.high)),
        f"{estimate.effective_sample_size:,.0f}",
        f"{estimate.mean_weight:.2f}",
        f"{estimate.largest_weight:.1f}",
        excludes_zero if with_gain else "",
    )
