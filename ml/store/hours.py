"""Hours and days since 1970 (UTC), by which tips are counted. Pure."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)


def hour_of(at: datetime) -> int:
    """Return the number of whole hours from 1970 (UTC) to a time."""
    return (at - _EPOCH) // _HOUR


def day_of(at: datetime) -> int:
    """Return the number of whole days from 1970 (UTC) to a time."""
    return (at - _EPOCH) // _DAY


def start_of(hour: int) -> datetime:
    """Return the time at which an hour begins."""
    return _EPOCH + hour * _HOUR
