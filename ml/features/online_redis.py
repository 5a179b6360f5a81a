"""The online store in Redis, in the layout of Feast (`ml.features.feast_layout`)."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from itertools import chain, islice
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio
import structlog
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.retry import Retry

from ml.features.definitions import AGGREGATES
from ml.features.feast_layout import (
    FIELDS,
    KEY_PATTERN,
    TIME_FIELDS,
    VALUE_FIELDS,
    decode_aggregates,
    decode_time,
    encode_aggregates,
    is_user_key,
    user_key,
)
from ml.features.user_aggregates import OnlineStoreUnavailable, UserAggregates, check_names, fresh_aggregates

log = structlog.get_logger()

READ_SECONDS = 0.05
"""The time for a read, with its connection; after it, the request is ranked without aggregates."""

PAUSE_SECONDS = 1.0
"""The time after a failed read without another one, so that only few requests wait for a Redis that does not answer."""

_CHECK_SECONDS, _WRITE_SECONDS = 1.0, 10.0
_CHUNK_USERS = 500
"""The users of one transaction, which takes Redis about 2 ms, in which it answers nobody."""

_KEY_SECONDS = int(max(aggregate.max_age for aggregate in AGGREGATES.values()).total_seconds())
"""The time to live of a key: then the last of its values is too old."""

_DEFAULT_PORT = 6379


class RedisOnlineStore:
    """A store in Redis, one round trip a read."""

    def __init__(self, client: "redis.asyncio.Redis", name: str) -> None:
        self._client = client
        self._name = name
        self._paused_until = -math.inf

    async def read(self, user_id: str, now: datetime) -> UserAggregates:
        clock = asyncio.get_running_loop().time
        if clock() < self._paused_until:
            raise OnlineStoreUnavailable(f"{self._name} did not answer")
        try:
            async with asyncio.timeout(READ_SECONDS):
                contents: list[Any] = await self._client.hmget(user_key(user_id), FIELDS)
        except (RedisError, OSError) as error:
            self._paused_until = clock() + PAUSE_SECONDS
            log.warning("online_store_unavailable", exception=type(error).__name__)
            raise OnlineStoreUnavailable(f"{self._name} does not answer") from None
        return fresh_aggregates(decode_aggregates(contents), now)


def store_name(url: str) -> str:
    """Return the URL without the user and the password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or _DEFAULT_PORT}/{parts.path.strip('/') or 0}"


def check_store(url: str) -> None:
    """Raise OnlineStoreUnavailable if Redis refuses the read; if it does not answer, log a warning."""
    try:
        with _client(url, _CHECK_SECONDS, retries=0) as client:
            client.hmget(user_key(""), FIELDS)
    except (AuthenticationError, ResponseError):
        raise OnlineStoreUnavailable(f"{store_name(url)} refuses the user, the password or the database") from None
    except (RedisError, OSError) as error:
        log.warning("online_store_unavailable", exception=type(error).__name__)


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[RedisOnlineStore]:
    """Open the store for reading. Connections are made by reads, and kept."""
    # The only timeout is that of the whole read. A connection that was closed while idle is replaced at once.
    client = redis.asyncio.Redis.from_url(
        url,
        protocol=2,
        socket_timeout=None,
        socket_connect_timeout=None,
        socket_keepalive=True,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 1),
    )
    async with client:
        yield RedisOnlineStore(client, store_name(url))


def replace_all(url: str, users: Iterable[tuple[str, Mapping[str, float]]], computed_at: datetime) -> int:
    """Replace the values of these users, then remove those of all other users; return the number of users."""
    count, remaining = 0, iter(users)
    with _writing(url) as client:
        while chunk := list(islice(remaining, _CHUNK_USERS)):
            with client.pipeline() as transaction:
                for user_id, values in chunk:
                    check_names(values)
                    _replace(transaction, user_key(user_id), encode_aggregates(values, computed_at))
                transaction.execute()
            count += len(chunk)
        _remove_others(client, computed_at)
    return count


def forget_user(url: str, user_id: str) -> int:
    """Remove one user; return the number of aggregates that were removed."""
    key = user_key(user_id)
    with _writing(url) as client, client.pipeline() as transaction:
        transaction.hmget(key, [*VALUE_FIELDS.values()])
        transaction.delete(key)
        values, _ = transaction.execute()
    return sum(bool(value) for value in values)


def _replace(transaction: "redis.client.Pipeline", key: bytes, fields: Mapping[bytes, bytes]) -> None:
    """Give a hash these values of aggregates and no others; fields of others in the same Feast project stay."""
    if fields:
        transaction.hset(key, items=[*chain.from_iterable(fields.items())])
    if missing := [field for field in FIELDS if field not in fields]:
        transaction.hdel(key, *missing)
    transaction.expire(key, _KEY_SECONDS)


def _remove_others(client: "redis.Redis", computed_at: datetime) -> None:
    """Remove the aggregates that were computed as of another time: those of users who were not in the batch."""
    keys = (key for key in client.scan_iter(KEY_PATTERN, count=_CHUNK_USERS) if is_user_key(key))
    while chunk := list(islice(keys, _CHUNK_USERS)):
        with client.pipeline(transaction=False) as pipeline:
            for key in chunk:
                pipeline.hmget(key, [*TIME_FIELDS.values()])
            times = pipeline.execute()
            for key, of_user in zip(chunk, times, strict=True):
                if any(time is not None and decode_time(time) != computed_at for time in of_user):
                    pipeline.hdel(key, *FIELDS)
            pipeline.execute()


@contextmanager
def _writing(url: str) -> Iterator["redis.Redis"]:
    """Yield a client that waits and tries again; the same writes can be repeated."""
    try:
        with _client(url, _WRITE_SECONDS, retries=2) as client:
            yield client
    except RedisError:
        raise OnlineStoreUnavailable(f"{store_name(url)} does not answer, or cannot be written") from None


def _client(url: str, timeout: float, *, retries: int) -> "redis.Redis":
    retry = Retry(ExponentialBackoff(cap=1, base=0.1), retries)
    return redis.Redis.from_url(url, protocol=2, socket_timeout=timeout, socket_connect_timeout=timeout, retry=retry)
