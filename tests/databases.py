"""The databases that the services are tested on, with access that does not use the code under test."""

import asyncio
import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import redis

Row = dict[str, Any]

SERVER_URL = os.environ.get("TEST_POSTGRES_URL", "postgresql+asyncpg://postgres@127.0.0.1:5432/postgres")
"""The URL of a database on a PostgreSQL server whose user may create databases."""


REDIS_URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379")
"""The URL of a Redis server, without a database; the tests use databases of it that are empty."""

_MARK, _LOCK = "tips-test", "tips-test-lock"
_LOCK_SECONDS = 900


class Database:
    """One database: its URL, and direct access by SQL."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    @property
    def file(self) -> Path:
        """The file of an SQLite database."""
        return Path(self.url.removeprefix("sqlite+aiosqlite:///"))

    @property
    def name(self) -> str:
        """The name of a PostgreSQL database."""
        return self.url.rpartition("/")[2]

    def rows(self, sql: str) -> list[Row]:
        """Run one statement, durably, and return its rows."""
        if not self.is_sqlite:
            return asyncio.run(_fetch(self.url, sql))
        with closing(sqlite3.connect(self.file)) as connection:
            connection.row_factory = sqlite3.Row
            rows = [dict(row) for row in connection.execute(sql)]
            connection.commit()
            return rows

    def count(self, table: str) -> int:
        """Return the number of rows of a table."""
        (row,) = self.rows(f"SELECT count(*) AS n FROM {table}")
        return int(row["n"])


@contextmanager
def postgres(template: str = "template0") -> Iterator[Database]:
    """Create a database on the server, a copy of `template`, and drop it when the block ends."""
    name = f"tips_test_{uuid.uuid4().hex}"
    on_server(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield Database(f"{SERVER_URL.rpartition('/')[0]}/{name}")
    finally:
        on_server(f"DROP DATABASE {name} WITH (FORCE)")


def on_server(sql: str) -> None:
    """Run a statement on the server itself, such as CREATE DATABASE."""
    asyncio.run(_fetch(SERVER_URL, sql))


async def _fetch(url: str, sql: str) -> list[Row]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=10)
    try:
        return [dict(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


@contextmanager
def redis_database() -> Iterator[str]:
    """Reserve an empty database on the Redis server, yield its URL, and empty it when the block ends."""
    for number in range(1, 16):
        url = f"{REDIS_URL}/{number}"
        with redis.Redis.from_url(url) as client:
            # Databases with data of others are left alone; those with the mark are left over from a killed test run.
            if (client.dbsize() and not client.exists(_MARK)) or not client.set(_LOCK, 1, nx=True, ex=_LOCK_SECONDS):
                continue
            client.set(_MARK, 1)
            for key in client.scan_iter():
                if key not in {_MARK.encode(), _LOCK.encode()}:
                    client.delete(key)
            try:
                yield url
            finally:
                client.flushdb()
            return
    raise RuntimeError(f"no database of {REDIS_URL} is empty")
