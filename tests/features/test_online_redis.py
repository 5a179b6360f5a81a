"""The online store on a real Redis: what only a server that is shared, slow or gone can show."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
import redis
from structlog.testing import capture_logs

from ml.features import online_redis
from ml.features.feast_layout import FIELDS, TIME_FIELDS, VALUE_FIELDS, encode_aggregates, encode_time, user_key
from ml.features.online_store import (
    OnlineStoreUnavailable,
    UserAggregates,
    check_online_store,
    forget_user,
    open_online_store,
    replace_all,
)
from tests.databases import REDIS_URL
from tests.online_stores import read_user

NOW = datetime(2026, 3, 1, tzinfo=UTC)
VALUES = {"reward_rate_30d": 0.25, "tips_7d": 3.0}
UNREACHABLE = "redis://:s3cret@127.0.0.1:1/0"


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    """Access to the database without the code under test."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


class Relay:
    """A server between a client and Redis, which counts connections and requests, and can hold answers back."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.requests: list[bytes] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def serve(self, target: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        redis_reader, redis_writer = await asyncio.open_connection(*target)

        async def answer() -> None:
            while data := await redis_reader.read(65_536):
                await self.answers.wait()
                writer.write(data)

        answering = asyncio.create_task(answer())
        while data := await reader.read(65_536):
            self.requests.append(data)
            redis_writer.write(data)
        answering.cancel()
        redis_writer.close()
        writer.close()


@asynccontextmanager
async def relayed(url: str) -> AsyncIterator[Relay]:
    """Start a relay to the Redis database at `url`."""
    parts, relay = urlsplit(url), Relay()
    target = (parts.hostname or "", parts.port or 6379)
    async with await asyncio.start_server(lambda *streams: relay.serve(target, *streams), "127.0.0.1", 0) as server:
        relay.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}{parts.path}"
        yield relay


def test_a_read_is_one_round_trip_on_a_connection_that_is_kept(redis_url: str) -> None:
    replace_all(redis_url, [("u", VALUES)], NOW)

    async def check() -> None:
        async with relayed(redis_url) as relay, open_online_store(relay.url) as store:
            await store.read("u", NOW)
            relay.requests.clear()
            for _ in range(5):
                assert await store.read("u", NOW) == UserAggregates(VALUES, NOW)
            assert relay.connections == 1
            assert len(relay.requests) == 5
            assert all(b"HMGET" in request for request in relay.requests)

    asyncio.run(check())


def test_a_connection_that_the_server_closed_while_it_was_idle_is_replaced(
    redis_url: str, client: "redis.Redis"
) -> None:
    replace_all(redis_url, [("u", VALUES)], NOW)

    async def check() -> None:
        async with open_online_store(redis_url) as store:
            await store.read("u", NOW)
            db = urlsplit(redis_url).path[1:]
            (reader,) = [c for c in client.client_list() if c["db"] == db and c["cmd"] == "hmget"]
            client.client_kill_filter(_id=reader["id"])
            assert (await store.read("u", NOW)).values == VALUES

    asyncio.run(check())


def test_keys_expire_when_the_last_value_is_too_old(redis_url: str, client: "redis.Redis") -> None:
    week = timedelta(days=7).total_seconds()
    replace_all(redis_url, [("u", VALUES)], NOW)
    assert week - 60 < client.ttl(user_key("u")) <= week
    client.expire(user_key("u"), 1_000)
    replace_all(redis_url, [("u", VALUES)], NOW)
    assert week - 60 < client.ttl(user_key("u")) <= week


def test_values_of_different_times_have_their_own_ages_and_no_common_time(
    redis_url: str, client: "redis.Redis"
) -> None:
    yesterday = NOW - timedelta(days=1)
    client.hset(user_key("u"), mapping=encode_aggregates(VALUES, NOW))  # type: ignore[arg-type]
    client.hset(user_key("u"), TIME_FIELDS["tips_7d"], encode_time(yesterday))
    assert read_user(redis_url, "u", NOW) == UserAggregates(VALUES, None)
    later = NOW + timedelta(hours=30)  # tips_7d can be used for two days
    assert read_user(redis_url, "u", later) == UserAggregates({"reward_rate_30d": 0.25}, NOW)


def test_what_others_keep_there_stays(redis_url: str, client: "redis.Redis") -> None:
    other_project = user_key("u").removesuffix(b"tips") + b"mytips"
    client.hset(other_project, mapping=encode_aggregates(VALUES, NOW))  # type: ignore[arg-type]
    client.set("another", "key")
    for user_id in ("kept", "removed"):
        client.hset(user_key(user_id), "field of another feature view", "x")
    replace_all(redis_url, [("kept", VALUES), ("removed", VALUES)], NOW)
    replace_all(redis_url, [("kept", VALUES)], NOW + timedelta(days=1))
    assert client.hmget(other_project, FIELDS) == [*encode_aggregates(VALUES, NOW).values()]
    assert client.get("another") == b"key"
    assert client.hgetall(user_key("removed")) == {b"field of another feature view": b"x"}
    assert client.hlen(user_key("kept")) == 5


def test_a_user_who_is_not_in_the_batch_is_removed_although_feast_wrote_the_values(
    redis_url: str, client: "redis.Redis"
) -> None:
    values = encode_aggregates(VALUES, NOW)
    null = {VALUE_FIELDS["reward_rate_30d"]: b"", TIME_FIELDS["reward_rate_30d"]: encode_time(NOW)}
    client.hset(user_key("of Feast"), mapping=values)  # type: ignore[arg-type]
    client.hset(user_key("of Feast, null"), mapping=null)  # type: ignore[arg-type]
    replace_all(redis_url, [("u", VALUES)], NOW + timedelta(days=1))
    assert client.exists(user_key("of Feast"), user_key("of Feast, null")) == 0


@pytest.fixture
def hanging_server() -> Iterator[socket.socket]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def url_of(server: socket.socket) -> str:
    return f"redis://:s3cret@127.0.0.1:{server.getsockname()[1]}/0"


def test_a_redis_that_does_not_answer_is_given_up_soon_and_not_asked_for_a_while(
    hanging_server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_redis, "PAUSE_SECONDS", 3_600)

    async def check() -> None:
        async with open_online_store(url_of(hanging_server)) as store:
            for _ in range(5):
                with pytest.raises(OnlineStoreUnavailable) as raised:
                    await store.read("u", NOW)
                assert "s3cret" not in str(raised.value)

    with capture_logs() as logs:
        asyncio.run(check())
    assert logs == [{"event": "online_store_unavailable", "log_level": "warning", "exception": "TimeoutError"}]
    hanging_server.accept()[0].close()
    hanging_server.settimeout(0)
    with pytest.raises(BlockingIOError):
        hanging_server.accept()


def test_an_answer_that_came_too_late_is_not_taken_for_that_of_another_user(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_redis, "PAUSE_SECONDS", 0)
    replace_all(redis_url, [("slow", VALUES), ("u", {"tips_7d": 9.0})], NOW)

    async def check() -> None:
        async with relayed(redis_url) as relay, open_online_store(relay.url) as store:
            await store.read("u", NOW)
            relay.answers.clear()
            with monkeypatch.context() as patch:
                patch.setattr(online_redis, "READ_SECONDS", 0.01)
                with pytest.raises(OnlineStoreUnavailable):
                    await store.read("slow", NOW)
            relay.answers.set()
            assert (await store.read("u", NOW)).values == {"tips_7d": 9.0}
            assert (await store.read("slow", NOW)).values == VALUES

    asyncio.run(check())


def test_a_redis_that_does_not_answer_does_not_prevent_the_start(
    hanging_server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_redis, "_CHECK_SECONDS", 0.01)
    for url, exception in ((UNREACHABLE, "ConnectionError"), (url_of(hanging_server), "TimeoutError")):
        with capture_logs() as logs:
            check_online_store(url)
        assert logs == [{"event": "online_store_unavailable", "log_level": "warning", "exception": exception}]


@pytest.fixture
def user(client: "redis.Redis") -> Iterator[str]:
    """The name of a user of Redis with the password `s3cret`, who may only read hashes."""
    name = f"tips-test-{uuid.uuid4().hex}"
    client.acl_setuser(name, enabled=True, passwords=["+s3cret"], keys=["*"], commands=["+hmget", "+select"])
    yield name
    client.acl_deluser(name)


def with_login(url: str, login: str) -> str:
    return url.replace("redis://", f"redis://{login}@")


def test_a_password_is_used(redis_url: str, user: str) -> None:
    replace_all(redis_url, [("u", VALUES)], NOW)
    url = with_login(redis_url, f"{user}:s3cret")
    check_online_store(url)
    assert read_user(url, "u", NOW).values == VALUES
    with pytest.raises(OnlineStoreUnavailable, match=rf"^{redis_url} does not answer, or cannot be written$"):
        replace_all(url, [("u", {})], NOW)


def test_a_wrong_password_or_database_is_refused_without_showing_it(redis_url: str, user: str) -> None:
    wrong_database = f"{REDIS_URL}/9999"
    for url, name in (
        (with_login(redis_url, f"{user}:wr0ng"), redis_url),
        (with_login(redis_url, f":wr0ng{user}"), redis_url),
        (wrong_database, wrong_database),
    ):
        with pytest.raises(OnlineStoreUnavailable) as raised:
            check_online_store(url)
        assert str(raised.value) == f"{name} refuses the user, the password or the database"


def test_a_redis_that_cannot_be_written_is_named_without_its_password() -> None:
    sentence = "^redis://127.0.0.1:1/0 does not answer, or cannot be written$"
    with pytest.raises(OnlineStoreUnavailable, match=sentence):
        replace_all(UNREACHABLE, [("u", VALUES)], NOW)
    with pytest.raises(OnlineStoreUnavailable, match=sentence):
        forget_user(UNREACHABLE, "u")
