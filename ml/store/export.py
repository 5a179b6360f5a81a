"""The export of stored tips as Arrow record batches, one day at a time, through ADBC.

SQLite and PostgreSQL give the same batches for the same rows: times with their zone, UUIDs as text of 36 characters,
JSON as the text that is stored. ADBC's driver has an SQLite library of its own. While a process has a file open in two
such libraries, closing it in one ends the locks of the other (sqlite.org/howtocorrupt.html, section 2.2.1): a program
that opens an SQLite file here has closed its other connections to it.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import adbc_driver_manager
import adbc_driver_postgresql.dbapi
import adbc_driver_sqlite.dbapi
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Float,
    Integer,
    Select,
    SelectBase,
    String,
    Table,
    Text,
    Uuid,
    cast,
    collate,
    literal,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.types import TypeEngine

from ml.platform.errors import StorageUnavailable
from ml.store.database import LOCK_TIMEOUT_SECONDS
from ml.store.hours import start_of
from ml.store.tables import UtcTime, day_revisions, exposures, reactions, tip_scores

log = structlog.get_logger()

_TIME = pa.timestamp("us", "UTC")
_TYPES = {UtcTime: _TIME, Float: pa.float64(), Integer: pa.int64(), Boolean: pa.bool_()}
_TYPES |= dict.fromkeys((Uuid, JSON, String, Text), pa.string())
_ORDER: Mapping[Table, tuple[str, ...]] = {
    tip_scores: ("created_at", "tip_id"),
    reactions: ("tip_id", "received_at", "at", "reaction"),
    exposures: ("tip_id",),
}
_TABLES = {table.name: table for table in _ORDER}

SCHEMAS: Mapping[str, pa.Schema] = {
    name: pa.schema([(column.name, _TYPES[type(column.type)]) for column in table.columns])
    for name, table in _TABLES.items()
}
"""The columns of each exported table. Rows are in the order of `_ORDER`."""


class DayExport:
    """The tips of one day, in one snapshot. `revision`: of the day; None if it has no tips any more."""

    def __init__(self, connection: "_Connection", day: int) -> None:
        self._connection = connection
        self._day = day
        self.revision = connection.revisions(_REVISIONS.where(day_revisions.c.day == day)).get(day)

    def batches(self, name: str) -> Generator[pa.RecordBatch, None, None]:
        """Yield the rows of a table. Close the generator if it is not read to its end. Raises StorageUnavailable."""
        table, schema = _TABLES[name], SCHEMAS[name]
        created_at = tip_scores.c.created_at
        query = select(*(_as_text(column) for column in table.columns)).order_by(
            *(_sort_key(table.c[column], self._connection.collation) for column in _ORDER[table])
        )
        query = query.where(start_of(24 * self._day) <= created_at, created_at < start_of(24 * (self._day + 1)))
        if table is not tip_scores:
            query = query.join_from(tip_scores, table, table.c.tip_id == tip_scores.c.tip_id)
        for batch in self._connection.read(query):
            arrays = [self._connection.array(batch[column.name], column) for column in table.columns]
            yield pa.record_batch(arrays, schema=schema)


class TipExport:
    """An open export. All methods raise StorageUnavailable."""

    def __init__(self, connection: "_Connection") -> None:
        self._connection = connection

    def revisions(self) -> dict[int, str]:
        """Return the revision of each day with tips, in the order of days."""
        return self._connection.revisions(_REVISIONS)

    @contextmanager
    def day(self, day: int) -> Iterator[DayExport]:
        """Yield the tips of a day, all read in one transaction."""
        self._connection.execute(self._connection.begin)
        try:
            yield DayExport(self._connection, day)
        finally:
            self._connection.execute("ROLLBACK")


@contextmanager
def open_export(url: str) -> Iterator[TipExport]:
    """Open the database at `url`, which has the newest schema, until the block ends. Raises StorageUnavailable."""
    parsed = make_url(url)
    connection = (_SQLite if parsed.get_backend_name() == "sqlite" else _PostgreSQL)(parsed)
    with closing(connection):
        yield TipExport(connection)


def _as_text(column: Column[Any]) -> ColumnElement[Any]:
    return cast(column, Text).label(column.name) if isinstance(column.type, Uuid | JSON) else column


_REVISIONS = select(day_revisions.c.day, _as_text(day_revisions.c.revision)).order_by(day_revisions.c.day)


class _Connection:
    """A connection through ADBC, in which each statement is a transaction unless one was begun.

    `begin`: begins a transaction with one snapshot. `options`: of statements that read. `collation`: compares bytes.
    """

    begin: ClassVar[str]
    options: ClassVar[Mapping[str, str]]
    collation: ClassVar[str]

    def __init__(self, url: URL) -> None:
        self._dialect: Dialect = url.get_dialect()()
        with _adbc_errors():
            self._connection = self._connect(url)

    def revisions(self, query: Select[Any]) -> dict[int, str]:
        columns = [[column.to_pylist() for column in batch.columns] for batch in self.read(query)]
        return {day: str(UUID(text)) for days, texts in columns for day, text in zip(days, texts, strict=True)}

    def execute(self, sql: str) -> None:
        with _adbc_errors(), closing(self._connection.cursor()) as cursor:
            cursor.execute(sql)

    def read(self, query: Select[Any]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a query. Reader, cursor and connection are closed in this order, as ADBC demands."""
        with _adbc_errors():
            cursor = self._connection.cursor()
        with closing(cursor):
            with _adbc_errors():
                cursor.adbc_statement.set_options(**self.options)
                sql = self._typed(query).compile(dialect=self._dialect, compile_kwargs={"literal_binds": True})
                cursor.execute(str(sql))
                reader = cursor.fetch_record_batch()
            with closing(reader):
                yield from self._rows(reader)

    def array(self, array: pa.Array, column: Column[Any]) -> pa.Array:
        """Return the values of a column with its type in `SCHEMAS`."""
        return array.cast(_TYPES[type(column.type)])

    def close(self) -> None:
        with _adbc_errors():
            self._connection.close()

    def _connect(self, url: URL) -> Any:
        raise NotImplementedError

    def _typed(self, query: Select[Any]) -> SelectBase:
        """Return a query whose columns have types that the driver knows."""
        return query

    def _rows(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        while (batch := _next_batch(reader)) is not None:
            yield batch


class _PostgreSQL(_Connection):
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    options: ClassVar = {"adbc.postgresql.batch_size_hint_bytes": "4194304"}
    collation = "C"

    def _connect(self, url: URL) -> Any:
        return adbc_driver_postgresql.dbapi.connect(_libpq_parameters(url), autocommit=True)


class _SQLite(_Connection):
    begin = "BEGIN"
    options: ClassVar = {"adbc.sqlite.query.batch_rows": "8192"}
    collation = "BINARY"

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.execute(f"PRAGMA busy_timeout = {1000 * LOCK_TIMEOUT_SECONDS}")

    def _connect(self, url: URL) -> Any:
        file = Path(url.database or "").resolve()
        return adbc_driver_sqlite.dbapi.connect(f"{file.as_uri()}?mode=ro", autocommit=True)

    def array(self, array: pa.Array, column: Column[Any]) -> pa.Array:
        match column.type:
            case Uuid():  # stored without hyphens
                ends = (0, 8, 12, 16, 20, 32)
                parts = [pc.utf8_slice_codeunits(array, start, end) for start, end in pairwise(ends)]
                return pc.binary_join_element_wise(*parts, "-")
            case UtcTime():  # stored without a zone
                return array.cast(pa.timestamp("us")).cast(_TIME)
        return super().array(array, column)

    def _typed(self, query: Select[Any]) -> SelectBase:
        """Put a row of the right types before those of the query: the driver takes the types of the first rows."""
        columns = query.selected_columns.items()
        first = select(*(literal(_value_of(column.type)).label(name) for name, column in columns))
        # With a limit, SQLite keeps the order of the inner query.
        return first.union_all(select(query.limit(-1).subquery()))

    def _rows(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        for index, batch in enumerate(super()._rows(reader)):
            yield batch if index else batch.slice(1)


def _value_of(of: TypeEngine[Any]) -> float | int | str:
    if isinstance(of, Float):
        return 0.0
    return 0 if isinstance(of, Integer | Boolean) else ""


def _sort_key(column: Column[Any], collation: str) -> ColumnElement[Any]:
    return collate(column, collation) if isinstance(column.type, String) else column


def _libpq_parameters(url: URL) -> str:
    """Return the parameters of a URL for asyncpg as libpq takes them (PostgreSQL's documentation, section 32.1.1)."""
    (_, given) = url.get_dialect()().create_connect_args(url)
    names = {
        "host": "host",
        "port": "port",
        "user": "user",
        "password": "password",
        "database": "dbname",
        "ssl": "sslmode",
    }
    values = {libpq: given[name] for name, libpq in names.items() if name in given}
    values["connect_timeout"] = LOCK_TIMEOUT_SECONDS
    texts = {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in values.items()
    }
    return " ".join(f"{name}={_quoted(text)}" for name, text in texts.items())


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _next_batch(reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    with _adbc_errors():
        try:
            return reader.read_next_batch()
        except StopIteration:
            return None


@contextmanager
def _adbc_errors() -> Iterator[None]:
    """Map the errors of the databases; errors in the statements themselves are defects and pass through."""
    try:
        yield
    except adbc_driver_manager.ProgrammingError:
        raise
    except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
        log.error("storage_unavailable", exception=type(error).__name__)
        raise StorageUnavailable("The database is locked, full or cannot be reached.", retry_after=1) from None
