"""Leases: of several replicas, one holds the lease of a task, until it gives it up or stops renewing it."""

from datetime import datetime, timedelta

from sqlalchemy import bindparam, delete, or_

from ml.store.database import Database
from ml.store.tables import UtcTime, leases


class Lease:
    """A lease in the table `leases`, for one replica. All methods raise StorageUnavailable."""

    def __init__(self, database: Database, name: str, holder: str, duration: timedelta) -> None:
        """`name`: of the task. `holder`: the id of this replica. `duration`: until another one may take the lease.

        It should be longer than the clocks of replicas differ.
        """
        self._database = database
        self._name = name
        self._holder = holder
        self._duration = duration
        upsert = database.upsert(leases)
        is_free = or_(leases.c.holder == upsert.excluded.holder, leases.c.until <= bindparam("now", type_=UtcTime))
        self._take = upsert.on_conflict_do_update(
            index_elements=[leases.c.name],
            set_={"holder": upsert.excluded.holder, "until": upsert.excluded["until"]},
            where=is_free,
        ).returning(leases.c.name)

    async def acquire(self, now: datetime) -> bool:
        """Take or renew the lease; return whether this replica holds it until `now` + duration."""
        values = {"name": self._name, "holder": self._holder, "until": now + self._duration, "now": now}
        async with self._database.writing() as connection:
            return (await connection.execute(self._take, values)).first() is not None

    async def release(self) -> None:
        """Give the lease up, if this replica holds it."""
        async with self._database.writing() as connection:
            await connection.execute(delete(leases).where(leases.c.name == self._name, leases.c.holder == self._holder))
