"""The online feature store: port and SQLite adapter. A batch writes the aggregates of users; requests read them."""

import math
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

import structlog

from ml.features.definitions import AGGREGATES

log = structlog.get_logger()

_SCHEME = "sqlite:///"

_CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS online_features (
    user_id TEXT NOT NULL, feature TEXT NOT NULL, value REAL NOT NULL, computed_at REAL NOT NULL,
    PRIMARY KEY (user_id, feature)
) WITHOUT ROWID
"""
_SELECT_USER = "SELECT feature, value, computed_at FROM online_features WHERE user_id = ?"
_INSERT = "INSERT OR REPLACE INTO online_features VALUES (?, ?, ?, ?)"


def check_store_url(value: str) -> str:
    """Return the URL of a store unchanged; raise ValueError, whose message is the end of a sentence, for other URLs."""
    if not re.fullmatch(rf"{_SCHEME}[^?]+", value):
        raise ValueError(f"should be {_SCHEME}FILE")
    return value


class OnlineStoreUnavailable(Exception):
    """The store cannot be opened or written; the message names its file, and is a sentence without the full stop."""


class OnlineStore(Protocol):
    """Reads the aggregates of a user."""

    async def read(self, user_id: str, now: datetime) -> dict[str, float]:
        """Return the user's aggregates that are stored and not too old; none if the store fails."""


class EmptyOnlineStore:
    """The store of a service without one."""

    async def read(self, user_id: str, now: datetime) -> dict[str, float]:  # noqa: ARG002
        return {}


class SQLiteOnlineStore:
    """A store in an SQLite file, read in the event loop: a read takes less time than a switch to a thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def read(self, user_id: str, now: datetime) -> dict[str, float]:
        try:
            rows = self._connection.execute(_SELECT_USER, (user_id,)).fetchall()
        except sqlite3.Error as error:
            log.warning("online_store_unavailable", exception=type(error).__name__)
            return {}
        return {
            feature: value
            for feature, value, computed_at in rows
            if feature in AGGREGATES
            and now.timestamp() - computed_at <= AGGREGATES[feature].max_age.total_seconds()
            and math.isfinite(value)
        }


@contextmanager
def open_online_store(url: str | None) -> Iterator[OnlineStore]:
    """Open the store at `sqlite:///FILE` for reading; an empty one for None.

    Raises OnlineStoreUnavailable when the file does not exist or is not such a store.
    """
    if url is None:
        yield EmptyOnlineStore()
        return
    file = store_name(url)
    not_a_store = f"{file} is not an online feature store; `tips features` creates one"
    try:
        connection = sqlite3.connect(f"{Path(file).as_uri()}?mode=ro", uri=True, timeout=0, check_same_thread=False)
    except sqlite3.Error:
        raise OnlineStoreUnavailable(not_a_store) from None
    with closing(connection):
        try:
            connection.execute(_SELECT_USER, ("",)).close()
        except sqlite3.Error:
            raise OnlineStoreUnavailable(not_a_store) from None
        yield SQLiteOnlineStore(connection)


def store_name(url: str) -> str:
    """Return the path of the store's file, for messages."""
    return str(Path(url.removeprefix(_SCHEME)).resolve())


def replace_all(url: str, users: Iterable[tuple[str, Mapping[str, float]]], computed_at: datetime) -> int:
    """Replace the contents of the store at `url` by these aggregates of each user; return the number of users.

    A concurrent reader sees all old values or all new values. Raises KeyError for a feature that is not in
    `AGGREGATES`, and OnlineStoreUnavailable when the file cannot be written.
    """
    timestamp, count = computed_at.timestamp(), 0

    def rows() -> Iterable[tuple[str, str, float, float]]:
        nonlocal count
        for user_id, values in users:
            count += 1
            if unknown := values.keys() - AGGREGATES.keys():
                raise KeyError(*sorted(unknown))
            for feature, value in values.items():
                yield user_id, feature, value, timestamp

    with _write_transaction(url) as connection:
        connection.execute("DELETE FROM online_features")
        connection.executemany(_INSERT, rows())
    return count


def forget_user(url: str, user_id: str) -> int:
    """Remove one user from the store at `url`; return the number of aggregates that were removed.

    Raises OnlineStoreUnavailable when the file does not exist, is not such a store or cannot be written.
    """
    with open_online_store(url):
        pass  # closed before the deletion: while another connection is open, the log keeps the deleted bytes
    with _write_transaction(url) as connection:
        return connection.execute("DELETE FROM online_features WHERE user_id = ?", (user_id,)).rowcount


@contextmanager
def _write_transaction(url: str) -> Iterator[sqlite3.Connection]:
    """Yield a connection in a transaction; create the file if necessary. Readers do not wait (write-ahead log)."""
    try:
        with closing(sqlite3.connect(url.removeprefix(_SCHEME), isolation_level=None)) as connection:
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA secure_delete=ON", "BEGIN IMMEDIATE", _CREATE_TABLE):
                connection.execute(statement)
            yield connection
            connection.execute("COMMIT")
    except sqlite3.Error:
        raise OnlineStoreUnavailable(f"{store_name(url)} cannot be written") from None
