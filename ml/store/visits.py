"""Whether a user is new or returning when a tip is stored, as a segment of the tip."""

from collections.abc import Collection

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.store.tables import tip_scores

NEW, RETURNING = "visits:new", "visits:returning"
"""The segments of users without and with an earlier tip in the store."""

_MAX_CACHED = 100_000
_KNOWN = select(tip_scores.c.user_id).where(tip_scores.c.user_id.in_(bindparam("ids", expanding=True))).distinct()


class Visits:
    """Finds out which users have an earlier tip; it caches those that have one."""

    def __init__(self) -> None:
        self._returning: dict[str, None] = {}

    async def of_users(self, connection: AsyncConnection, user_ids: Collection[str]) -> dict[str, str]:
        """Return the segment of each user, before the tips of this transaction are inserted."""
        unknown = sorted({*user_ids} - self._returning.keys())
        if unknown:
            known = (await connection.execute(_KNOWN, {"ids": unknown})).scalars()
            self._returning |= dict.fromkeys(known)
        found = {user_id: RETURNING if user_id in self._returning else NEW for user_id in user_ids}
        while len(self._returning) > _MAX_CACHED:
            del self._returning[next(iter(self._returning))]
        return found

    def forget(self, user_id: str) -> None:
        """Forget a user, whose tips are deleted."""
        self._returning.pop(user_id, None)
