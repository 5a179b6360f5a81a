"""The effect of all rollouts: users who follow them, compared with held-out users."""

from dataclasses import dataclass
from datetime import timedelta

from ml.experiments.statistics import Interval, difference_of_means
from ml.platform.clock import Clock
from ml.store.database import Database
from ml.store.holdout import rewards_by_group
from ml.store.hours import hour_of, start_of

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
        difference = difference_of_means(following, held_out, alpha=ALPHA)
        if difference is None or min(held_out.n, following.n) < MIN_USERS:
            words = f"Not known: there are {users} with mature tips, and {MIN_USERS} of each are needed."
            return HoldoutComparison(None, held_out.n, following.n, words)
        estimate, low, high = (
            f"{100 * value:+.1f}" for value in (difference.estimate, difference.low, difference.high)
        )
        words = (
            f"Following rollouts changes the mean reward by {estimate} points, between {low} and {high} (95 %, for one "
            f"look), over {users}, each user counting once."
        )
        return HoldoutComparison(difference, held_out.n, following.n, words)
