"""Leases: of several replicas, one holds the lease of a task, until it gives it up or stops renewing it."""

from datetime import datetime, timedelta

from sqlalchemy import delete, select, update

from ml.store.database import Database
from ml.store.tables import leases


class Lease:
    """A lease in the table `leases`, for one replica. All methods raise StorageUnavailable."""

    def __init__(self, database: Database, name: str, holder: str, duration: timedelta) -> None:
        """`name`: of the task. `holder`: the id of this replica. `duration`: until another one may take the lease."""
        self._database = database
        self._name = name
        self._holder = holder
        self._duration = duration
        self._insert = database.upsert(leases).on_conflict_do_nothing()

    async def acquire(self, now: datetime) -> bool:
        """Take or renew the lease; return whether this replica holds it until `now` + duration."""
        mine = {"holder": self._holder, "until": now + self._duration}
        is_of_task = leases.c.name == self._name
        async with self._database.writing() as connection:
            await connection.execute(self._insert, {"name": self._name, **mine})
            row = (await connection.execute(select(leases).where(is_of_task).with_for_update())).mappings().one()
            if row["holder"] != self._holder and row["until"] > now:
                return False
            await connection.execute(update(leases).where(is_of_task).values(mine))
        return True

    async def release(self) -> None:
        """Give the lease up, if this replica holds it."""
        async with self._database.writing() as connection:
            await connection.execute(delete(leases).where(leases.c.name == self._name, leases.c.holder == self._holder))
