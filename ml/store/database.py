"""The database, SQLite or PostgreSQL: transactions, schema, and the mapping of its failures to StorageUnavailable."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Table, event, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ml.platform.errors import StorageUnavailable
from ml.platform.settings import ConfigurationError
from ml.store import schema

log = structlog.get_logger()

T = TypeVar("T")

LOCK_TIMEOUT_SECONDS = 5
"""The time to wait for another writer, or for a connection."""

MAX_PARAMETERS = 5_000
"""The ids in one statement; databases limit the number of parameters."""

_DATA_EXCEPTION = "22"
"""The SQLSTATE class of values that cannot be stored; SQLAlchemy has no exception of its own for asyncpg's."""


class Database:
    """Connections to the database at a URL. All failures of the database raise StorageUnavailable."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection with a consistent snapshot of the data."""
        with _storage_errors():
            async with self.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction, which is durable when the block has ended."""
        with _storage_errors():
            async with self.engine.execution_options(writes=True).begin() as connection:
                yield connection

    def upsert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """Return an insert statement for `table` that supports ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    async def ping(self) -> None:
        """Raise StorageUnavailable unless the database answers."""
        async with self.reading() as connection:
            await connection.execute(select(literal(1)))

    async def migrate(self) -> None:
        """Migrate to the newest schema."""
        if self.is_sqlite:
            self._check_file()
        async with self.writing() as connection:
            await connection.run_sync(schema.migrate)

    async def prepare(self) -> None:
        """Migrate an SQLite database; raise ConfigurationError for PostgreSQL without the newest schema."""
        if self.is_sqlite:
            await self.migrate()
            return
        async with self.reading() as connection:
            if not await connection.run_sync(schema.is_current):
                raise ConfigurationError("DATABASE_URL: the database has an older schema, or none; run `tips migrate`.")

    def _check_file(self) -> None:
        """Open the file without the driver: if that fails, the driver's thread outlives its event loop."""
        with _storage_errors(), closing(sqlite3.connect(self.engine.url.database or "")) as connection:
            connection.execute("PRAGMA schema_version")

    async def wipe_deleted(self) -> None:
        """Leave no bytes of deleted rows: rewrite SQLite's file (`secure_delete` misses some) and truncate its log."""
        if self.is_sqlite:
            async with self.reading() as connection:
                raw: Any = (await connection.get_raw_connection()).driver_connection
                await raw.execute("VACUUM")
                await raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


def migrate_database(url: str) -> None:
    """Migrate the database at `url` to the newest schema; `prepare` counts what it finds. Raises ConfigurationError."""
    run_once(url, Database.migrate)


def existing_database(url: str) -> str:
    """Return the name of the database at `url`: the path of SQLite's file, or the URL without its password.

    Raises ConfigurationError if that file does not exist or has no tables of this project; nothing is created.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return parsed.set(query={}).render_as_string(hide_password=True)
    file = Path(parsed.database or "").resolve()
    if not file.is_file():
        raise ConfigurationError(f"DATABASE_URL: there is no database {file}.")
    query = "SELECT 1 FROM sqlite_master WHERE name = ?"
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute(query, (schema.VERSION_TABLE,)).fetchone()
    except sqlite3.OperationalError:
        raise ConfigurationError(f"DATABASE_URL: the database {file} cannot be opened.") from None
    except sqlite3.DatabaseError:
        found = None
    if not found:
        raise ConfigurationError(f"DATABASE_URL: {file} is not a database of tips.")
    return str(file)


def run_once(url: str, work: Callable[[Database], Awaitable[T]]) -> T:
    """Return the result of `work` with the database at `url`. Raises ConfigurationError if it cannot be opened."""

    async def open_and_work() -> T:
        database = Database(url)
        try:
            return await work(database)
        finally:
            await database.close()

    try:
        # In a thread, since the program's event loop may be running already.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(open_and_work())).result()
    except StorageUnavailable:
        raise ConfigurationError("DATABASE_URL: the database cannot be opened or reached.") from None


def _engine(url: str) -> AsyncEngine:
    if not url.startswith("sqlite"):
        # A broken connection is replaced before it is used, and a hanging one times out.
        limits = {"timeout": LOCK_TIMEOUT_SECONDS, "command_timeout": 2 * LOCK_TIMEOUT_SECONDS}
        return create_async_engine(url, pool_pre_ping=True, pool_timeout=LOCK_TIMEOUT_SECONDS, connect_args=limits)
    engine = create_async_engine(url, connect_args={"timeout": LOCK_TIMEOUT_SECONDS})

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        cursor = connection.cursor()
        # 32 MB of cache, and as much log before a checkpoint, so that pages that change often are written less often.
        speed = ("cache_size=-32768", "wal_autocheckpoint=8192")
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", *speed):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later fails when another one has written in between.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Map errors of the database and its drivers; errors in the statements themselves are defects and pass through."""
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
