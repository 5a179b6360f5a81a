"""What a batch counted of each person, read while they wait: the port, and SQLite behind it."""

import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Protocol, Self

import structlog

from ml.features.definitions import AGGREGATES

log = structlog.get_logger()

_SCHEME = "sqlite:///"

_TABLE = """
CREATE TABLE IF NOT EXISTS online_features (
    user_id TEXT NOT NULL, feature TEXT NOT NULL, value REAL NOT NULL, computed_at REAL NOT NULL,
    PRIMARY KEY (user_id, feature)
) WITHOUT ROWID
"""
_READ = "SELECT feature, value, computed_at FROM online_features WHERE user_id = ?"
_WRITE = "INSERT OR REPLACE INTO online_features VALUES (?, ?, ?, ?)"


class OnlineStoreUnavailable(Exception):
    """There is no store to read from; the message says it as the end of a sentence."""


class OnlineStore(Protocol):
    """Reads what is known of a person beforehand."""

    async def read(self, user_id: str, now: datetime) -> dict[str, float]:
        """Return the values of `AGGREGATES` that are known and not stale; a store that fails knows none."""

    def close(self) -> None: ...


class SQLiteOnlineStore:
    """A store in an SQLite file, read directly: it takes less time than handing the work to somebody else."""

    def __init__(self, file: str) -> None:
        """Open the file to read from it. Raises NoStore when it is none, or not such a store."""
        try:
            self._connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=0, check_same_thread=False)
            self._connection.execute(_READ, ("",)).close()
        except sqlite3.Error:
            raise OnlineStoreUnavailable("is no store of features; `tips features` makes one") from None

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the store at `sqlite:///FILE`."""
        return cls(url.removeprefix(_SCHEME))

    async def read(self, user_id: str, now: datetime) -> dict[str, float]:
        try:
            rows = self._connection.execute(_READ, (user_id,)).fetchall()
        except sqlite3.Error as error:
            log.warning("online_store_unavailable", exception=type(error).__name__)
            return {}
        return {
            feature: value
            for feature, value, computed_at in rows
            if feature in AGGREGATES
            and now.timestamp() - computed_at <= AGGREGATES[feature].good_for.total_seconds()
            and math.isfinite(value)
        }

    def close(self) -> None:
        self._connection.close()


def replace(url: str, people: Iterable[tuple[str, Mapping[str, float]]], computed_at: datetime) -> int:
    """Write what was computed of each person into the store at `url`, in place of all that was there.

    Whoever reads meanwhile sees all of the old values or all of the new ones. Returns the number of people. Raises
    KeyError for a value that is not in `AGGREGATES`, NoStore when the file cannot be written.
    """
    at, count = computed_at.timestamp(), 0

    def rows() -> Iterable[tuple[str, str, float, float]]:
        nonlocal count
        for user_id, values in people:
            count += 1
            if unknown := values.keys() - AGGREGATES.keys():
                raise KeyError(*sorted(unknown))
            for feature, value in values.items():
                yield user_id, feature, value, at

    with _writing(url) as connection:
        connection.execute("DELETE FROM online_features")
        connection.executemany(_WRITE, rows())
    return count


def forget(url: str, user_id: str) -> None:
    """Remove what the store at `url` has of one person. Raises NoStore when the file cannot be written."""
    with _writing(url) as connection:
        connection.execute("DELETE FROM online_features WHERE user_id = ?", (user_id,))


@contextmanager
def _writing(url: str) -> Iterator[sqlite3.Connection]:
    """Yield the store in one transaction; it is made if there is none. Readers do not wait (write-ahead log)."""
    try:
        with closing(sqlite3.connect(url.removeprefix(_SCHEME), isolation_level=None)) as connection:
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA secure_delete=ON", "BEGIN IMMEDIATE", _TABLE):
                connection.execute(statement)
            yield connection
            connection.execute("COMMIT")
    except sqlite3.Error:
        raise OnlineStoreUnavailable("cannot be written") from None
