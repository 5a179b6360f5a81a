"""The database, SQLite or PostgreSQL: its transactions, its schema, and its failures as ours."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

import structlog
from sqlalchemy import Connection, Table, event, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ml.platform.errors import StorageUnavailable
from ml.platform.settings import ConfigurationError
from ml.store import tables as schema

log = structlog.get_logger()

LOCKED_SECONDS = 5
"""How long to wait for another writer, or for a connection."""

_DATA_EXCEPTION = "22"
"""The class of SQLSTATE for values that cannot be stored; SQLAlchemy has no error of its own for asyncpg's."""


class Database:
    """Connections to what a URL names. Whatever fails there raises StorageUnavailable."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection that sees one state of the data."""
        with _storage_errors():
            async with self.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction, which is durable once the block has ended."""
        with _storage_errors():
            async with self.engine.execution_options(writes=True).begin() as connection:
                yield connection

    def upsert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """Return an insert that can say what to do about rows that are there already."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    async def ping(self) -> None:
        """Raise StorageUnavailable unless the database answers."""
        async with self.reading() as connection:
            await connection.execute(select(literal(1)))

    async def migrate_database(self) -> None:
        """Bring it up to the newest schema."""
        if self.is_sqlite:
            self._open_once()
        async with self.writing() as connection:
            await connection.run_sync(schema.migrate)

    async def prepare_database(self) -> None:
        """Migrate an SQLite database; raise ConfigurationError for another one that has not the newest schema."""
        if self.is_sqlite:
            await self.migrate()
            return
        async with self.reading() as connection:
            if not await connection.run_sync(schema.is_current):
                raise ConfigurationError("DATABASE_URL: the database has an older schema, or none; run `tips migrate`.")

    def _open_once(self) -> None:
        """Find out whether the file can be opened, with no thread: a failing driver would leave one without a loop."""
        with _storage_errors(), closing(sqlite3.connect(self.engine.url.database or "")) as connection:
            connection.execute("PRAGMA schema_version")

    async def wipe(self) -> None:
        """Leave no bytes of what was deleted: write SQLite's file anew (`secure_delete` misses some), empty its log."""
        if self.is_sqlite:
            async with self.reading() as connection:
                raw: Any = (await connection.get_raw_connection()).driver_connection
                await raw.execute("VACUUM")
                await raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    async def close(self) -> None:
        """Give back all connections."""
        await self.engine.dispose()


def prepare_database(url: str) -> None:
    """Make sure, before anything is served, that the database can be used. Raises ConfigurationError."""
    _at_once(url, Database.prepare)


def migrate_database(url: str) -> None:
    """Bring the database that `url` names up to the newest schema. Raises ConfigurationError."""
    _at_once(url, Database.migrate)


def _at_once(url: str, work: Any) -> None:
    async def open_once() -> None:
        database = Database(url)
        try:
            await work(database)
        finally:
            await database.close()

    try:
        # In a thread, since a program's event loop may be running already.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(open_once())).result()
    except StorageUnavailable:
        raise ConfigurationError("DATABASE_URL: the database cannot be opened or reached.") from None


def _engine(url: str) -> AsyncEngine:
    if not url.startswith("sqlite"):
        # A connection that has gone is noticed before it is used; nobody waits for ever for one that hangs.
        limits = {"timeout": LOCKED_SECONDS, "command_timeout": 2 * LOCKED_SECONDS}
        return create_async_engine(url, pool_pre_ping=True, pool_timeout=LOCKED_SECONDS, connect_args=limits)
    engine = create_async_engine(url, connect_args={"timeout": LOCKED_SECONDS})

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        cursor = connection.cursor()
        # 32 MB of cache, and as much of log before it is moved into the file: pages that change often are written less.
        speed = ("cache_size=-32768", "wal_autocheckpoint=8192")
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", *speed):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and then writes could fail half-way, when another has written meanwhile.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Map what the database and its drivers raise; a defect of ours passes through, to be seen as one."""
    try:
        yield
    except (DataError, IntegrityError, ProgrammingError):
        raise
    except (DBAPIError, PoolTimeout, OSError, sqlite3.Error) as error:
        if str(getattr(getattr(error, "orig", None), "sqlstate", "")).startswith(_DATA_EXCEPTION):
            raise
        log.error("storage_unavailable", exception=type(getattr(error, "orig", None) or error).__name__)
        raise StorageUnavailable(
            "The database is locked, full or cannot be reached; it is safe to send this again.", retry_after=1
        ) from None
