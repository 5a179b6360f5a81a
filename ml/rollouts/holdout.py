"""What rollouts have changed as a whole: users who follow them, compared with held-out users."""

import math
from dataclasses import dataclass
from datetime import timedelta

from scipy import special

from ml.experiments.statistics import Interval, Sample
from ml.platform.clock import Clock
from ml.store.database import Database
from ml.store.holdout import rewards_by_group
from ml.store.rollup import hour_of, start_of

ALPHA = 0.05
MIN_USERS = 20
"""The users of each group below which there is no figure."""


@dataclass(frozen=True, slots=True)
class HoldoutComparison:
    """The mean reward of users who follow rollouts minus that of held-out users, each user counting once.

    `difference`: with a 95 % interval for one look; None with fewer than `MIN_USERS` in a group. `held_out`,
    `following`: the numbers of users. `words`: the comparison as a sentence.
    """

    difference: Interval | None
    held_out: int
    following: int
    words: str


@dataclass(frozen=True, slots=True)
class HoldoutReader:
    """Reads the comparison from the store. `exposure_reported`: only tips that were seen count."""

    database: Database
    reaction_window: timedelta
    exposure_reported: bool
    clock: Clock

    async def compare(self) -> HoldoutComparison:
        """Compare both groups over their mature tips. It reads tips, not counts. Raises StorageUnavailable."""
        mature_before = start_of(hour_of(self.clock() - self.reaction_window))
        held_out, following = await rewards_by_group(self.database, mature_before, seen_only=self.exposure_reported)
        users = f"{following.n:,} users who follow rollouts and {held_out.n:,} held-out users"
        if min(held_out.n, following.n) < MIN_USERS:
            words = f"Not known: there are {users} with mature tips, and {MIN_USERS} of each are needed."
            return HoldoutComparison(None, held_out.n, following.n, words)
        difference = _difference(following, held_out)
        estimate, low, high = (
            f"{100 * value:+.1f}" for value in (difference.estimate, difference.low, difference.high)
        )
        words = (
            f"Following rollouts changes the mean reward by {estimate} points, between {low} and {high} (95 %, for one "
            f"look), over {users}, each user counting once."
        )
        return HoldoutComparison(difference, held_out.n, following.n, words)


def _difference(following: Sample, held_out: Sample) -> Interval:
    """Return the difference of two means with its interval (Welch, "The generalization of Student's problem when
    several different population variances are involved", Biometrika 1947)."""
    groups = (following, held_out)
    errors = [max(each.squares / each.n - each.mean**2, 0.0) / (each.n - 1) for each in groups]
    error = sum(errors)
    estimate = following.mean - held_out.mean
    if not error:
        return Interval(estimate, estimate, estimate)
    freedom = error**2 / sum(part**2 / (each.n - 1) for part, each in zip(errors, groups, strict=True))
    half_width = float(special.stdtrit(freedom, 1 - ALPHA / 2)) * math.sqrt(error)
    return Interval(estimate, max(estimate - half_width, -1.0), min(estimate + half_width, 1.0))
