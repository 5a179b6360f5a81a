"""The offline store: the decision log, and what batch jobs compute from it, as Parquet files by table and day.

    manifest.json
    tip_scores/day=2026-11-30/part-3f9c…e1.parquet
    reactions/day=2026-11-30/part-3f9c…e1.parquet

The manifest names the files that count, each with its rows, its SHA-256 and its source: a text that identifies what
the file was made from. It is replaced after all new files are complete, so a reader sees the files before or after a
change, and a job that is killed leaves the earlier state. The name of a file follows from its source, and its bytes
from its content: the same sources give the same files, however many jobs wrote them.

A file belongs to the UTC day on which the tips were created, those of reactions and exposures too.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ROW_GROUP_ROWS = 16_384
"""The rows of a group in a file; a reader holds one group in memory."""
MANIFEST = "manifest.json"
_PART = re.compile(r"[^/]+/day=[^/]+/\.?part-[^/]+\.parquet")
"""The path of a file of a table, complete or not."""
_BYTES_READ = 1_048_576
_EPOCH = date(1970, 1, 1)


class OfflineStoreUnavailable(Exception):
    """The store cannot be read or written; the message is a sentence without the full stop that names it."""


class OfflineFile(BaseModel):
    """A file of the manifest. `path`: within the store. `source`: what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str
    rows: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    source: str


class Manifest(BaseModel):
    """The files of a store, by table and by day (ISO date)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Annotated[int, Field(ge=1, le=1)] = 1
    tables: dict[str, dict[str, OfflineFile]] = {}


class OfflineStore:
    """The store at a path or at an `s3://` address. All methods raise OfflineStoreUnavailable."""

    def __init__(self, files: fs.FileSystem, url: str) -> None:
        """`files`: a file system whose root is the store. `url`: for messages, without secrets."""
        self.files = files
        self.url = url
        self._manifest = self._read_manifest()

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the store at `url`, a path or `s3://BUCKET/PREFIX`; it is empty until something is written."""
        try:
            if "://" in url:
                base, root = fs.FileSystem.from_uri(url)
            else:
                base, root = fs.LocalFileSystem(), str(Path(url).resolve())
            return cls(fs.SubTreeFileSystem(root, base), url.partition("?")[0].rpartition("@")[2] or url)
        except (pa.ArrowException, OSError, ValueError):
            raise OfflineStoreUnavailable(f"{url.partition('?')[0]} cannot be opened") from None

    @property
    def is_local(self) -> bool:
        return isinstance(self.files.base_fs, fs.LocalFileSystem)

    @property
    def exists(self) -> bool:
        """Whether anything has been written to the store."""
        return bool(self._manifest.tables)

    def days(self, table: str) -> Mapping[int, OfflineFile]:
        """Return the file of each day (since 1970) of a table, in the order of days."""
        files = self._manifest.tables.get(table, {})
        return {day_of_date(date.fromisoformat(day)): files[day] for day in sorted(files)}

    @property
    def tables(self) -> Sequence[str]:
        """The names of the tables, sorted."""
        return sorted(self._manifest.tables)

    def schema(self, table: str, day: int) -> pa.Schema:
        """Return the columns of the file of a day; raises KeyError for a day without a file."""
        file = self.days(table)[day]
        with self._errors(file.path), self.files.open_input_file(file.path) as source:
            return pq.read_schema(source)

    def batches(
        self, table: str, day: int, columns: Sequence[str] | None = None, *, rows: int = ROW_GROUP_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a day, in their order, at most `rows` at a time; nothing for a day without a file."""
        file = self.days(table).get(day)
        if file is None:
            return
        with self._errors(file.path), self.files.open_input_file(file.path) as source:
            parquet = pq.ParquetFile(source)
            yield from parquet.iter_batches(batch_size=rows, columns=None if columns is None else [*columns])

    def replace(self, table: str, day: int, source: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Write the file of a day, unless it was made from the same source; `commit` makes it count.

        The sizes of the batches do not change the bytes. A day without rows has a file too.
        """
        known = self.days(table).get(day)
        if known and known.source == source:
            return
        name = hashlib.sha256(source.encode()).hexdigest()[:16]
        path = f"{_folder(table, day)}/part-{name}.parquet"
        with self._errors(path):
            self.files.create_dir(_folder(table, day), recursive=True)
            # Hidden until it is complete; an object of a bucket appears when it is complete anyway.
            written = f"{_folder(table, day)}/.part-{name}.parquet" if self.is_local else path
            rows = 0
            with self.files.open_output_stream(written) as raw:
                output = _HashedOutput(raw)
                with pq.ParquetWriter(pa.PythonFile(output, mode="w"), schema, compression="zstd") as writer:
                    for group in _row_groups(schema, batches):
                        rows += group.num_rows
                        writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            if written != path:
                self.files.move(written, path)
        file = OfflineFile(path=path, rows=rows, sha256=output.sha256, source=source)
        tables = self._manifest.tables
        of_days = {**tables.get(table, {}), date_of_day(day).isoformat(): file}
        self._manifest = Manifest(tables={**tables, table: of_days})

    def remove(self, table: str, day: int) -> None:
        """Remove the file of a day, when `commit` is called."""
        of_days = dict(self._manifest.tables.get(table, {}))
        of_days.pop(date_of_day(day).isoformat(), None)
        tables = {name: files for name, files in self._manifest.tables.items() if name != table}
        self._manifest = Manifest(tables={**tables, table: of_days} if of_days else tables)

    def commit(self) -> None:
        """Replace the manifest, then delete the files that it no longer names."""
        self.write(MANIFEST, self._manifest_bytes())
        named = {file.path for files in self._manifest.tables.values() for file in files.values()}
        for path in self.paths(""):
            if _PART.fullmatch(path) and path not in named:
                self.delete(path)

    def read(self, path: str) -> bytes | None:
        """Return the content of a file outside of the manifest; None if there is none."""
        with self._errors(path):
            if self.files.get_file_info(path).type is not fs.FileType.File:
                return None
            with self.files.open_input_stream(path) as file:
                content: bytes = file.read()
                return content

    def write(self, path: str, content: bytes) -> None:
        """Write a file outside of the manifest: a reader sees the old or the new content."""
        folder, _, name = path.rpartition("/")
        with self._errors(path):
            if folder:
                self.files.create_dir(folder, recursive=True)
            elif self.is_local:
                self.files.base_fs.create_dir(self.files.base_path, recursive=True)
            written = f"{folder}/.{name}".lstrip("/") if self.is_local else path
            with self.files.open_output_stream(written) as file:
                file.write(content)
            if written != path:
                self.files.move(written, path)

    def paths(self, folder: str) -> list[str]:
        """Return the paths of all files below a folder, "" for the whole store, sorted."""
        with self._errors(folder):
            found = self.files.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
            return sorted(info.path for info in found if info.type is fs.FileType.File)

    def delete(self, path: str) -> None:
        """Delete a file outside of the manifest."""
        with self._errors(path):
            self.files.delete_file(path)

    def damaged(self) -> Iterator[str]:
        """Yield the path of each file of the manifest that is missing or has other bytes than were written."""
        for files in self._manifest.tables.values():
            for file in files.values():
                if self._sha256(file.path) != file.sha256:
                    yield file.path

    def _sha256(self, path: str) -> str | None:
        with self._errors(path):
            if self.files.get_file_info(path).type is not fs.FileType.File:
                return None
            with self.files.open_input_stream(path) as file:
                digest = hashlib.sha256()
                while content := file.read(_BYTES_READ):
                    digest.update(content)
                return digest.hexdigest()

    def reload(self) -> None:
        """Read the manifest again; changes that are not committed are dropped."""
        self._manifest = self._read_manifest()

    def _read_manifest(self) -> Manifest:
        content = self.read(MANIFEST)
        try:
            return Manifest() if content is None else Manifest.model_validate_json(content)
        except ValidationError:
            raise OfflineStoreUnavailable(f"{self.url}/{MANIFEST} is not the manifest of an offline store") from None

    def _manifest_bytes(self) -> bytes:
        tables = {name: dict(sorted(files.items())) for name, files in sorted(self._manifest.tables.items())}
        return Manifest(tables=tables).model_dump_json(indent=1).encode() + b"\n"

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError):
            raise OfflineStoreUnavailable(f"{self.url}/{path} cannot be read or written") from None


class _HashedOutput:
    """A stream that writes to another one and computes the SHA-256 of what it writes."""

    closed = False

    def __init__(self, output: Any) -> None:
        self._output = output
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, content: Any) -> int:
        self._hash.update(content)
        self._output.write(content)
        return len(content)

    def flush(self) -> None: ...


def day_of_date(day: date) -> int:
    """Return the number of a day since 1970."""
    return (day - _EPOCH).days


def date_of_day(day: int) -> date:
    """Return the date of a day since 1970."""
    return _EPOCH + timedelta(days=day)


def start_of_day(day: int) -> datetime:
    """Return the first instant of a day since 1970, in UTC."""
    return datetime.combine(date_of_day(day), time(), UTC)


def _folder(table: str, day: int) -> str:
    return f"{table}/day={date_of_day(day)}"


def _row_groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the same rows in groups of `ROW_GROUP_ROWS`; the last one may have fewer."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= ROW_GROUP_ROWS:
            table = pa.Table.from_batches(waiting, schema)
            full = rows - rows % ROW_GROUP_ROWS
            for start in range(0, full, ROW_GROUP_ROWS):
                yield table.slice(start, ROW_GROUP_ROWS).combine_chunks()
            waiting = table.slice(full).to_batches()
            rows -= full
    if rows:
        yield pa.Table.from_batches(waiting, schema).combine_chunks()
