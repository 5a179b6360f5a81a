"""The deletion of data of persons from the offline store, after it was deleted from the database.

Exported tables are exported again. All other tables are derived from them: of those with a `user_id`, the rows of a
forgotten user are removed; purged days are removed from all. The files are then those of no source that a job knows, so
the next job that writes the table computes them anew. Repeated after a failure, a deletion completes what is left.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from ml.features.offline_store import OfflineStore, start_of_day
from ml.pipelines.export import export_days
from ml.pipelines.offline_lease import LEASE, hold_offline_store
from ml.store.export import SCHEMAS
from ml.store.hours import hour_of, start_of


def forget_user(database_url: str, offline: OfflineStore, user_id: str, *, lease: timedelta = LEASE) -> int:
    """Remove a user who was forgotten in the database; return the number of rows with their id that were removed.

    Raises the errors of `export`.
    """
    with hold_offline_store(database_url, offline, lease) as held:
        found = {key: rows for key in _files_with_users(offline) if (rows := _rows_of_user(offline, *key, user_id))}
        export_days(database_url, offline, held)
        for table, day in found:
            if table not in SCHEMAS:
                schema = offline.schema(table, day)
                offline.replace(table, day, str(uuid4()), schema, _of_others(offline, table, day, user_id))
        held.renew()
        offline.commit()
    return sum(found.values())


def purge(database_url: str, offline: OfflineStore, before: datetime, *, lease: timedelta = LEASE) -> None:
    """Remove what was purged in the database: the tips of all full hours before `before`, with all that is derived.

    Of derived tables, whole days are removed, also the one of which a part was purged. Raises the errors of `export`.
    """
    end = start_of(hour_of(before))
    with hold_offline_store(database_url, offline, lease) as held:
        export_days(database_url, offline, held)
        for table in offline.tables:
            for day in offline.days(table) if table not in SCHEMAS else ():
                if start_of_day(day) < end:
                    offline.remove(table, day)
        held.renew()
        offline.commit()


def _files_with_users(offline: OfflineStore) -> Iterator[tuple[str, int]]:
    for table in offline.tables:
        for day in offline.days(table):
            if "user_id" in offline.schema(table, day).names:
                yield table, day


def _rows_of_user(offline: OfflineStore, table: str, day: int, user_id: str) -> int:
    batches = offline.batches(table, day, ["user_id"])
    return sum(pc.sum(pc.equal(batch["user_id"], user_id)).as_py() or 0 for batch in batches)


def _of_others(offline: OfflineStore, table: str, day: int, user_id: str) -> Iterator[pa.RecordBatch]:
    for batch in offline.batches(table, day):
        yield batch.filter(pc.not_equal(batch["user_id"], user_id))
