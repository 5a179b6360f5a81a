"""The online store in an SQLite file."""

import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog

from ml.features.user_aggregates import OnlineStoreUnavailable, UserAggregates, check_names, fresh_aggregates

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


class SQLiteOnlineStore:
    """A store in an SQLite file, read in the event loop: a read takes less time than a switch to a thread."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    async def read(self, user_id: str, now: datetime) -> UserAggregates:
        try:
            rows = self._connection.execute(_SELECT_USER, (user_id,)).fetchall()
        except sqlite3.Error as error:
            log.warning("online_store_unavailable", exception=type(error).__name__)
            raise OnlineStoreUnavailable(f"{self._name} cannot be read") from None
        return fresh_aggregates(
            ((feature, value, datetime.fromtimestamp(computed_at, UTC)) for feature, value, computed_at in rows), now
        )


def store_name(url: str) -> str:
    """Return the path of the store's file."""
    return str(Path(url.removeprefix(_SCHEME)).resolve())


def check_store(url: str) -> None:
    """Raise OnlineStoreUnavailable when the file does not exist or is not such a store."""
    with _reading(url):
        pass


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[SQLiteOnlineStore]:
    """Open the store for reading; raises what `check_store` raises."""
    with _reading(url) as connection:
        yield SQLiteOnlineStore(connection, store_name(url))


def replace_all(url: str, users: Iterable[tuple[str, Mapping[str, float]]], computed_at: datetime) -> int:
    """Replace the contents in one transaction; return the number of users."""
    timestamp, count = computed_at.timestamp(), 0

    def rows() -> Iterable[tuple[str, str, float, float]]:
        nonlocal count
        for user_id, values in users:
            count += 1
            check_names(values)
            for feature, value in values.items():
                yield user_id, feature, value, timestamp

    with _write_transaction(url) as connection:
        connection.execute("DELETE FROM online_features")
        connection.executemany(_INSERT, rows())
    return count


def forget_user(url: str, user_id: str) -> int:
    """Remove one user; return the number of aggregates that were removed."""
    check_store(url)  # its connection is closed by now: while another one is open, the log keeps the deleted bytes
    with _write_transaction(url) as connection:
        return connection.execute("DELETE FROM online_features WHERE user_id = ?", (user_id,)).rowcount


@contextmanager
def _reading(url: str) -> Iterator[sqlite3.Connection]:
    """Yield a connection to an existing store, which never waits for a writer; only opening it does."""
    file = store_name(url)
    not_a_store = f"{file} is not an online feature store; `tips features materialize` creates one"
    try:
        connection = sqlite3.connect(f"{Path(file).as_uri()}?mode=ro", uri=True, check_same_thread=False)
    except sqlite3.Error:
        raise OnlineStoreUnavailable(not_a_store) from None
    with closing(connection):
        try:
            # A writer that ends locks the file for a moment (checkpoint), if nothing else has it open.
            connection.execute(_SELECT_USER, ("",)).close()
            connection.execute("PRAGMA busy_timeout = 0").close()
        except sqlite3.Error:
            raise OnlineStoreUnavailable(not_a_store) from None
        yield connection


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
