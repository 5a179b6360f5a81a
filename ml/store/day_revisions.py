"""The revisions of days: a random id, replaced in each transaction that changes tips, reactions or exposures of a day.

An export that has written a day under a revision need not read it again while the revision is the same. The day is that
of the tip's `created_at`, also for reactions and exposures that come later.
"""

from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise
from typing import Any
from uuid import uuid4

from sqlalchemy import bindparam, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.store.database import Database
from ml.store.hours import day_of, start_of
from ml.store.tables import UtcTime, day_revisions, tip_scores

_CREATED_AT = tip_scores.c.created_at
_START, _END = bindparam("start", type_=UtcTime), bindparam("end", type_=UtcTime)
_FIRST_TIP = select(_CREATED_AT).where(_START <= _CREATED_AT, _CREATED_AT < _END).order_by(_CREATED_AT).limit(1)
_DELETE_EMPTY = delete(day_revisions).where(day_revisions.c.day == bindparam("of_day"), ~_FIRST_TIP.exists())
_MAX_DAY = 2_932_896
"""9999-12-31, the last day of a datetime."""


class DayRevisions:
    """The table `day_revisions`, in the caller's transaction."""

    def __init__(self, database: Database) -> None:
        # Built once, so that SQLAlchemy's statement cache finds them by identity.
        upsert = database.upsert(day_revisions)
        self._replace = upsert.on_conflict_do_update(
            index_elements=[day_revisions.c.day], set_={"revision": upsert.excluded.revision}
        )
        self._add = upsert.on_conflict_do_nothing()

    async def replace(self, connection: AsyncConnection, days: Iterable[int]) -> None:
        """Replace the revisions of these days.

        After all other rows that the transaction locks, and in the order of days, so that two writers cannot deadlock.
        """
        await self._write(connection, self._replace, {*days})

    async def after_deletion(self, connection: AsyncConnection, days: Iterable[int]) -> None:
        """Replace the revisions of the days of deleted tips, and remove those of days that have no tips any more."""
        days = {*days}
        # In this order: a writer that adds a tip waits for the row, and the deletion sees the tips of those before.
        await self._write(connection, self._replace, days)
        if days:
            await connection.execute(_DELETE_EMPTY, [{"of_day": day, **_limits(day, day + 1)} for day in sorted(days)])

    async def add_missing(self, connection: AsyncConnection) -> None:
        """Add revisions of days that have tips, and were stored by a release without revisions.

        Reads one tip of each such day, and none of others.
        """
        known = (await connection.execute(select(day_revisions.c.day).order_by(day_revisions.c.day))).scalars().all()
        missing: set[int] = set()
        for before, after in pairwise((-1, *known, _MAX_DAY)):
            day = before + 1
            while day < after:
                at = (await connection.execute(_FIRST_TIP, _limits(day, after))).scalar()
                if at is None:
                    break
                missing.add(day_of(at))
                day = day_of(at) + 1
        await self._write(connection, self._add, missing)

    async def _write(self, connection: AsyncConnection, statement: Any, days: set[int]) -> None:
        if days:
            await connection.execute(statement, [{"day": day, "revision": uuid4()} for day in sorted(days)])


def _limits(start: int, end: int) -> dict[str, datetime]:
    return {"start": start_of(24 * start), "end": start_of(24 * end)}
