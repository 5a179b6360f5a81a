"""Reading of one user from an online store, as a request does it."""

import asyncio
from datetime import datetime

from ml.features.online_store import UserAggregates, open_online_store


def read_user(url: str | None, user_id: str, now: datetime) -> UserAggregates:
    """Open the store at `url`, read the aggregates of a user, and close it."""

    async def open_and_read() -> UserAggregates:
        async with open_online_store(url) as store:
            return await store.read(user_id, now)

    return asyncio.run(open_and_read())
