"""The clock, as a function that is passed in, so that tests and simulations can set the time."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the present time, in UTC."""


def utc_now() -> datetime:
    """Return the present time, in UTC."""
    return datetime.now(UTC)
