"""The aggregates of a user as the online store returns them, and the rule by which stored values are missing."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ml.features.definitions import AGGREGATES


class OnlineStoreUnavailable(Exception):
    """The store cannot be opened, read or written; the message names it, and is a sentence without the full stop."""


@dataclass(frozen=True, slots=True)
class UserAggregates:
    """The aggregates of a user by name, and the time as of which they were computed.

    `computed_at`: None without values, and for values that were computed as of different times.
    """

    values: Mapping[str, float]
    computed_at: datetime | None


NO_AGGREGATES = UserAggregates({}, None)


def fresh_aggregates(stored: Iterable[tuple[str, float, datetime]], now: datetime) -> UserAggregates:
    """Return the stored values (name, value, time as of which it was computed) that can be used at `now`.

    Missing are unknown names, values that are older than their `max_age`, and those that are not finite.
    """
    values, times = {}, set()
    for name, value, computed_at in stored:
        if name in AGGREGATES and now - computed_at <= AGGREGATES[name].max_age and math.isfinite(value):
            values[name] = value
            times.add(computed_at)
    return UserAggregates(values, times.pop() if len(times) == 1 else None)


def check_names(values: Mapping[str, float]) -> None:
    """Raise KeyError for values that are not in `AGGREGATES`."""
    if unknown := values.keys() - AGGREGATES.keys():
        raise KeyError(*sorted(unknown))
