"""The online feature store: a batch writes the aggregates of users, requests read them. The URL names its adapter."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Protocol
from urllib.parse import urlsplit

from ml.features import online_sqlite
from ml.features.user_aggregates import NO_AGGREGATES, OnlineStoreUnavailable, UserAggregates
from ml.platform.settings import has_valid_port

__all__ = [
    "OnlineStore",
    "OnlineStoreUnavailable",
    "UserAggregates",
    "check_online_store",
    "check_store_url",
    "forget_user",
    "open_online_store",
    "replace_all",
    "store_name",
]

_SQLITE = re.compile(r"sqlite:///[^?]+")
_REDIS = re.compile(r"rediss?://[^\s/?#]+(/[0-9]{0,4})?")


class OnlineStore(Protocol):
    """Reads the aggregates of a user."""

    async def read(self, user_id: str, now: datetime) -> UserAggregates:
        """Return the user's aggregates that are stored and not too old. Raises OnlineStoreUnavailable, soon."""


class _Adapter(Protocol):
    """The module of one kind of store."""

    def store_name(self, url: str) -> str: ...

    def check_store(self, url: str) -> None: ...

    def open_store(self, url: str) -> AbstractAsyncContextManager[OnlineStore]: ...

    def replace_all(self, url: str, users: Iterable[tuple[str, Mapping[str, float]]], computed_at: datetime) -> int: ...

    def forget_user(self, url: str, user_id: str) -> int: ...


class EmptyOnlineStore:
    """The store of a service without one."""

    async def read(self, user_id: str, now: datetime) -> UserAggregates:  # noqa: ARG002
        return NO_AGGREGATES


def check_store_url(value: str) -> str:
    """Return the URL of a store unchanged; raise ValueError, whose message is the end of a sentence, for other URLs."""
    if _SQLITE.fullmatch(value) or (_REDIS.fullmatch(value) and has_valid_port(value) and urlsplit(value).hostname):
        return value
    raise ValueError("should be sqlite:///FILE or redis://[:PASSWORD@]HOST:PORT/DB, with rediss:// for TLS")


def check_online_store(url: str) -> None:
    """Raise OnlineStoreUnavailable if the store at `url` can never work as it is set.

    That is a file that does not exist or is not such a store, and a Redis that refuses the password or the database.
    A Redis that does not answer is a warning in the log: requests are ranked without aggregates until it does.
    """
    _adapter(url).check_store(url)


@asynccontextmanager
async def open_online_store(url: str | None) -> AsyncIterator[OnlineStore]:
    """Open the store at `url` for reading; an empty one for None.

    Raises OnlineStoreUnavailable for a file that does not exist or is not such a store.
    """
    if url is None:
        yield EmptyOnlineStore()
        return
    async with _adapter(url).open_store(url) as store:
        yield store


def store_name(url: str) -> str:
    """Return the path of the store's file, or the URL of Redis without the user and the password, for messages."""
    return _adapter(url).store_name(url)


def replace_all(url: str, users: Iterable[tuple[str, Mapping[str, float]]], computed_at: datetime) -> int:
    """Replace the contents of the store at `url` by these aggregates of each user; return the number of users.

    `computed_at`: the time as of which they were computed. A concurrent reader sees a user's old or new values, never
    some of both. In a file, all users change at once, and a batch that fails changes nothing; in Redis, one user after
    another, then users who are not in the batch are removed, and repeating a failed batch completes it. Only one batch
    may run at a time. Raises KeyError for a feature that is not in `AGGREGATES`, and OnlineStoreUnavailable when the
    store cannot be written.
    """
    return _adapter(url).replace_all(url, users, computed_at)


def forget_user(url: str, user_id: str) -> int:
    """Remove one user from the store at `url`; return the number of aggregates that were removed.

    Raises OnlineStoreUnavailable when the store does not exist, does not answer or cannot be written.
    """
    return _adapter(url).forget_user(url, user_id)


def _adapter(url: str) -> _Adapter:
    if not url.startswith("redis"):
        return online_sqlite
    try:
        from ml.features import online_redis  # its client is optional, and takes 0.2 s to import
    except ModuleNotFoundError as error:
        raise OnlineStoreUnavailable(f"{error.name} is missing: Redis needs the `redis` extra") from None
    return online_redis
