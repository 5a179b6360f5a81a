"""The export: tips, reactions and exposures of the database as Parquet files of the offline store, by day.

Only days whose revision has changed are read (`ml.store.day_revisions`). The files are a function of the database:
after a killed export, late reactions, or a deletion, the next export gives the same files as one into an empty store.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

from ml.features.offline_store import OfflineStore, date_of_day
from ml.pipelines.offline_lease import LEASE, OfflineLease, hold_offline_store
from ml.store.database import Database, run_once
from ml.store.day_revisions import DayRevisions
from ml.store.export import SCHEMAS, TipExport, open_export

STATISTICS = "stats"
"""The folder of statistics of single days, in files that have the day in their name."""

_TIPS_PER_COMMIT = 1_000_000
_FORMATS = {name: hashlib.sha256(str(schema).encode()).hexdigest()[:16] for name, schema in SCHEMAS.items()}
"""A text that changes when the columns of a table do, so that all days are exported anew."""


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """The days with tips that were written and unchanged, the days that were removed, and the rows of each table."""

    written: int
    unchanged: int
    removed: int
    rows: Mapping[str, int]


def export(
    database_url: str,
    offline: OfflineStore,
    *,
    show: Callable[[int], None] = lambda _: None,
    lease: timedelta = LEASE,
) -> ExportSummary:
    """Bring the files of the offline store up to date with the database at `database_url`.

    An SQLite file may not be open elsewhere in this process (see `ml.store.export`). `show`: is called with the number
    of days that have been written. A killed export keeps what it has committed, about each million tips. Raises Busy
    while another job writes to the store, StorageUnavailable, ConfigurationError and OfflineStoreUnavailable.
    """
    with hold_offline_store(database_url, offline, lease) as held:
        return export_days(database_url, offline, held, show)


def export_days(
    database_url: str, offline: OfflineStore, held: OfflineLease, show: Callable[[int], None] = lambda _: None
) -> ExportSummary:
    """Do what `export` does, with a lease that the caller holds."""
    run_once(database_url, _add_missing_revisions)
    with open_export(database_url) as source:
        revisions = source.revisions()
    stored = {day for name in SCHEMAS for day in offline.days(name)}
    gone = stored - revisions.keys()
    _remove(offline, gone)
    pending = deque(day for day, revision in revisions.items() if not _is_exported(offline, day, revision))
    written = 0
    while True:
        with open_export(database_url) as source:
            changed = _write_some(source, offline, pending, held)
        written += len(changed)
        held.renew()
        # Before the commit: if this is killed, the next export finds the same days changed.
        _delete_statistics(offline, {*changed} | gone)
        offline.commit()
        show(written)
        if not pending:
            break
    rows = {name: sum(file.rows for file in offline.days(name).values()) for name in SCHEMAS}
    return ExportSummary(written, len(revisions) - written, len(gone), rows)


def _write_some(source: TipExport, offline: OfflineStore, pending: deque[int], held: OfflineLease) -> list[int]:
    """Write pending days until it is time to commit; return these days."""
    changed: list[int] = []
    tips = 0
    while pending and not (changed and (tips >= _TIPS_PER_COMMIT or held.is_due)):
        day = pending.popleft()
        changed.append(day)
        with source.day(day) as tips_of_day:
            if tips_of_day.revision is None:  # deleted in the meantime
                _remove(offline, [day])
                continue
            for name, schema in SCHEMAS.items():
                with closing(tips_of_day.batches(name)) as batches:
                    offline.replace(name, day, _source(name, tips_of_day.revision), schema, batches)
        tips += offline.days("tip_scores")[day].rows
    return changed


async def _add_missing_revisions(database: Database) -> None:
    async with database.writing() as connection:
        await DayRevisions(database).add_missing(connection)


def _is_exported(offline: OfflineStore, day: int, revision: str) -> bool:
    files = {name: offline.days(name).get(day) for name in SCHEMAS}
    return all(file is not None and file.source == _source(name, revision) for name, file in files.items())


def _source(name: str, revision: str) -> str:
    return f"{revision} {_FORMATS[name]}"


def _remove(offline: OfflineStore, days: Iterable[int]) -> None:
    for name in SCHEMAS:
        for day in days:
            offline.remove(name, day)


def _delete_statistics(offline: OfflineStore, days: Iterable[int]) -> None:
    names = {f"day={date_of_day(day)}" for day in days}
    for path in offline.paths(STATISTICS) if names else ():
        if path.rpartition("/")[2].partition(".")[0] in names:
            offline.delete(path)
