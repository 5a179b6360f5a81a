"""Whether a user is new or returning when a tip is stored, as a segment of the tip."""

from collections.abc import Collection

from sqlalchemy import JSON, bindparam, exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.store.database import Database
from ml.store.tables import tip_scores

NEW, RETURNING = "visits:new", "visits:returning"
"""The segments of users without and with an earlier tip in the store."""


class Visits:
    """Finds out which users have an earlier tip.

    Nothing is cached: another process may delete a user's tips, and a user who was forgotten is new.
    """

    def __init__(self, database: Database) -> None:
        elements = func.json_each if database.is_sqlite else func.json_array_elements_text
        asked = elements(bindparam("ids", type_=JSON)).table_valued("value")
        # One look-up in the index for each user; with IN, all tips of each user would be read.
        self._returning = select(asked.c.value).where(exists().where(tip_scores.c.user_id == asked.c.value))

    async def of_users(self, connection: AsyncConnection, user_ids: Collection[str]) -> dict[str, str]:
        """Return the segment of each user, before the tips of this transaction are inserted."""
        found = dict.fromkeys(user_ids, NEW)
        if found:
            returning = await connection.execute(self._returning, {"ids": [*found]})
            found |= dict.fromkeys(returning.scalars(), RETURNING)
        return found
