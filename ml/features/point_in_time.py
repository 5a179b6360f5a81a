"""The aggregates of users as of given times, from what was known then: the definition, on arrays.

A tip counts from the moment at which it is known until it is too old, so a number of tips is the number that has
entered by a time, less the number that has left by then; a sum of rewards is the same with weights. Both are running
sums over a time line of all users, one user after the other, which are read by binary search: what sorting costs,
however many tips a user has. Rewards are integers (multiples of 2^-14), so sums are exact, in any order.

Times are integers: microseconds since 1970.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NEVER = np.iinfo(np.int64).max
DAY = 86_400_000_000
REWARD_RATE_PERIOD = 30 * DAY
"""How old a tip may be that is part of `reward_rate_30d`; older ones are part of no aggregate."""
TIP_COUNT_PERIOD = 7 * DAY
REWARD_UNITS = 2**14
_MAX_KEY = 2**62


@dataclass(frozen=True, slots=True, eq=False)
class TipTimeline:
    """Shown tips, and when what about them became known.

    `user`: the index of the user, `created_at`, and `exposed_at`, when the exposure was received (NEVER without one):
    one value for each tip. `changed_tip`, `changed_at`, `change`: the changes of rewards, as `reward_changes` returns
    them; a tip begins with a reward of 0.
    """

    user: Int64s
    created_at: Int64s
    exposed_at: Int64s
    changed_tip: Int64s
    changed_at: Int64s
    change: Int64s

    def select(self, tips: npt.NDArray[np.bool_]) -> Self:
        """Return these tips, with their changes."""
        index = np.cumsum(tips) - 1
        kept = tips[self.changed_tip]
        return type(self)(
            self.user[tips],
            self.created_at[tips],
            self.exposed_at[tips],
            index[self.changed_tip[kept]],
            self.changed_at[kept],
            self.change[kept],
        )


def reward_changes(
    tip: Int64s, at: Int64s, kind: Int64s, received_at: Int64s, reward: Floats
) -> tuple[Int64s, Int64s, Int64s]:
    """Return how reactions change the rewards of tips: the tip, the time of the change, and its size in 2^-14.

    Of the reactions that have been received, the greatest by (`at`, `kind`) is effective; `kind` is the place of the
    kind in the alphabet. `reward`: in [0, 1]. The arguments have one value for each reaction, in any order.
    """
    by_greatness = np.lexsort((kind, at))
    rank = np.empty_like(tip)
    rank[by_greatness] = np.arange(tip.size)
    by_arrival = np.lexsort((received_at, tip))
    tip, received_at = tip[by_arrival], received_at[by_arrival]
    # The tip is the higher digit, so the running maximum starts again with each tip.
    effective = np.maximum.accumulate(tip * tip.size + rank[by_arrival]) - tip * tip.size
    rewards = np.rint(reward * REWARD_UNITS).astype(np.int64)[by_greatness][effective]
    change = np.diff(rewards, prepend=0)
    is_first = np.diff(tip, prepend=-1) != 0
    change[is_first] = rewards[is_first]
    changed = change != 0
    return tip[changed], received_at[changed], change[changed]


def aggregates_as_of(
    tips: TipTimeline, users: Int64s, as_of: Int64s, *, reaction_window: timedelta, seen_only: bool
) -> dict[str, Floats]:
    """Return the aggregates of `users` as of times, by name, each of the shape of `users`; NaN for a missing one.

    They depend on tips, exposures and reactions before `as_of` only. `reward_rate_30d`: the mean reward of the tips of
    the 30 days before that are older than the reaction window, as known then. `tips_7d`: the number of tips of the
    seven days before; missing without any in 30 days. `seen_only`: of tips whose exposure was received within the
    reaction window. A user is an index from 0; `tips` need not be in any order.
    """
    window = reaction_window // timedelta(microseconds=1)
    if seen_only:
        tips = tips.select(tips.exposed_at - tips.created_at <= window)
    aggregates = {name: np.full(users.size, np.nan) for name in ("reward_rate_30d", "tips_7d")}
    if not (users.size and tips.user.size):
        return aggregates
    start = int(min(tips.created_at.min(), as_of.min())) - REWARD_RATE_PERIOD
    span = int(max(tips.created_at.max(), as_of.max())) + REWARD_RATE_PERIOD + 1 - start
    n_users, users_at_once = int(users.max()) + 1, _MAX_KEY // span
    for first in range(0, n_users, users_at_once):
        if n_users <= users_at_once:
            asked, of_users = np.ones(users.size, bool), tips
        else:
            asked = (users >= first) & (users < first + users_at_once)
            of_users = tips.select((tips.user >= first) & (tips.user < first + users_at_once))
        line = _Line(first, start, span)
        keys, inverse = np.unique(line.keys(users[asked], as_of[asked]), return_inverse=True)
        of_keys = _aggregates(of_users, line, keys, min(window, REWARD_RATE_PERIOD), seen_only=seen_only)
        for name, values in of_keys.items():
            aggregates[name][asked] = values[inverse]
    return aggregates


@dataclass(frozen=True, slots=True)
class _Line:
    """The time line of users from `first_user`, one after the other: `span` microseconds from `start` for each."""

    first_user: int
    start: int
    span: int

    def keys(self, users: Int64s, at: Int64s) -> Int64s:
        """Return the places of times on the line."""
        return (users - self.first_user) * self.span + (at - self.start)


def _aggregates(tips: TipTimeline, line: _Line, asked: Int64s, window: int, *, seen_only: bool) -> dict[str, Floats]:
    """Return the aggregates at these places of the line, which are sorted."""
    created = entered = entered_recent = np.sort(line.keys(tips.user, tips.created_at))
    if seen_only:
        known_at = np.maximum(tips.created_at, tips.exposed_at)
        # A tip that is seen when it is too old leaves when it enters.
        entered = np.sort(line.keys(tips.user, np.minimum(known_at, tips.created_at + REWARD_RATE_PERIOD)))
        entered_recent = np.sort(line.keys(tips.user, np.minimum(known_at, tips.created_at + TIP_COUNT_PERIOD)))
    left = np.searchsorted(created, asked - REWARD_RATE_PERIOD)
    n = np.searchsorted(entered, asked) - left
    n_recent = np.searchsorted(entered_recent, asked) - np.searchsorted(created, asked - TIP_COUNT_PERIOD)
    # A tip that was seen within the window is known to be seen when it is mature.
    n_mature = np.searchsorted(created, asked - window) - left
    users, created_at = tips.user[tips.changed_tip], tips.created_at[tips.changed_tip]
    counted_at = np.maximum(tips.changed_at, created_at + window)
    entries = line.keys(users, np.minimum(counted_at, created_at + REWARD_RATE_PERIOD))
    total = _running_sum(entries, tips.change, asked)
    total -= _running_sum(line.keys(users, created_at), tips.change, asked - REWARD_RATE_PERIOD)
    rate = np.full(asked.size, np.nan)
    np.divide(total, n_mature * REWARD_UNITS, out=rate, where=n_mature > 0)
    return {"reward_rate_30d": rate, "tips_7d": np.where(n > 0, n_recent, np.nan)}


def _running_sum(keys: Int64s, weights: Int64s, asked: Int64s) -> Int64s:
    """Return the sum of the weights whose keys are below each of `asked`."""
    order = np.argsort(keys)
    sums = np.zeros(keys.size + 1, np.int64)
    np.cumsum(weights[order], out=sums[1:])
    return sums[np.searchsorted(keys[order], asked)]
