"""The online feature store: the same behaviour in a real SQLite file and on a real Redis."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Event, Thread

import pytest

from ml.features.definitions import AGGREGATES
from ml.features.online_store import (
    OnlineStoreUnavailable,
    UserAggregates,
    check_online_store,
    check_store_url,
    forget_user,
    open_online_store,
    replace_all,
    store_name,
)
from tests.online_stores import read_user

NOW = datetime(2026, 3, 1, 12, 0, 0, 123_457, tzinfo=UTC)
VALUES = {"reward_rate_30d": 0.1, "tips_7d": 0.0}
NOTHING = UserAggregates({}, None)


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store; the test runs once per kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/features.db"
    empty: str = request.getfixturevalue("redis_url")
    return empty


def read(url: str, user_id: str, now: datetime = NOW) -> UserAggregates:
    return read_user(url, user_id, now)


def test_stored_aggregates_of_a_user_are_read_with_their_time(url: str) -> None:
    others = {"o'; DROP TABLE x": {"tips_7d": 1.0}, "größe": {"reward_rate_30d": 1 / 3}, "": {"tips_7d": 2.0}}
    assert replace_all(url, [("u", VALUES), *others.items()], NOW) == 4
    for user_id, values in {"u": VALUES, **others}.items():
        assert read(url, user_id) == UserAggregates(values, NOW)
    assert read(url, "unknown") == NOTHING


def test_the_time_is_in_utc(url: str) -> None:
    replace_all(url, [("u", VALUES)], NOW.astimezone(timezone(timedelta(hours=5))))
    assert read(url, "u").computed_at == NOW
    assert str(read(url, "u").computed_at) == "2026-03-01 12:00:00.123457+00:00"


@pytest.mark.parametrize("feature", AGGREGATES)
def test_a_value_older_than_its_maximal_age_is_missing(url: str, feature: str) -> None:
    replace_all(url, [("u", VALUES)], NOW)
    max_age = AGGREGATES[feature].max_age
    assert feature in read(url, "u", NOW + max_age).values
    assert feature not in read(url, "u", NOW + max_age + timedelta(microseconds=1)).values


def test_without_a_value_that_is_fresh_there_is_no_time(url: str) -> None:
    replace_all(url, [("u", VALUES)], NOW)
    assert read(url, "u", NOW + timedelta(days=60)) == NOTHING


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_missing(url: str, value: float) -> None:
    replace_all(url, [("u", {"reward_rate_30d": 0.5, "tips_7d": value})], NOW)
    assert read(url, "u").values == {"reward_rate_30d": 0.5}


def test_an_open_store_reads_the_new_batch_after_it_was_replaced(url: str) -> None:
    replace_all(url, [("removed", VALUES), ("kept", VALUES), ("empty", VALUES)], NOW)

    async def check() -> None:
        async with open_online_store(url) as store:
            assert (await store.read("kept", NOW)).values == VALUES
            replace_all(url, [("kept", {"tips_7d": 9.0}), ("empty", {})], NOW + timedelta(hours=1))
            assert await store.read("kept", NOW) == UserAggregates({"tips_7d": 9.0}, NOW + timedelta(hours=1))
            assert await store.read("removed", NOW) == NOTHING
            assert await store.read("empty", NOW) == NOTHING

    asyncio.run(check())


def test_an_older_batch_also_replaces_a_newer_one(url: str) -> None:
    replace_all(url, [("removed", VALUES), ("kept", VALUES)], NOW)
    replace_all(url, [("kept", {"tips_7d": 9.0})], NOW - timedelta(days=1))
    assert read(url, "kept") == UserAggregates({"tips_7d": 9.0}, NOW - timedelta(days=1))
    assert read(url, "removed") == NOTHING


def test_a_batch_can_be_repeated(url: str) -> None:
    users = [(f"u-{number}", {"tips_7d": float(number)}) for number in range(1_201)]
    for _ in range(2):
        assert replace_all(url, iter(users), NOW) == 1_201
        assert [read(url, f"u-{number}").values for number in (0, 600, 1_200)] == [
            {"tips_7d": 0.0},
            {"tips_7d": 600.0},
            {"tips_7d": 1_200.0},
        ]


def test_a_feature_without_a_definition_is_refused(url: str) -> None:
    replace_all(url, [("u", VALUES)], NOW)
    with pytest.raises(KeyError, match="shoe_size"):
        replace_all(url, [("v", VALUES), ("w", {"shoe_size": 43.0})], NOW)
    assert read(url, "u").values == VALUES
    assert read(url, "v") == NOTHING


def test_a_reader_never_sees_a_part_of_a_user_s_new_values(url: str) -> None:
    later = NOW + timedelta(hours=1)
    old, new = UserAggregates(VALUES, NOW), UserAggregates({"tips_7d": 9.0}, later)
    replace_all(url, [("u", old.values)], NOW)
    ended = Event()

    def write() -> None:
        for _ in range(20):
            replace_all(url, [("u", new.values)], later)
            replace_all(url, [("u", old.values)], NOW)
        ended.set()

    async def read_until_ended() -> list[UserAggregates]:
        seen = []
        async with open_online_store(url) as store:
            while not ended.is_set():
                seen.append(await store.read("u", NOW))
                await asyncio.sleep(0)
        return seen

    writer = Thread(target=write)
    writer.start()
    seen = asyncio.run(read_until_ended())
    writer.join()
    assert {aggregates.computed_at for aggregates in seen} == {NOW, later}
    assert all(aggregates in (old, new) for aggregates in seen)


def test_a_store_can_be_opened_at_any_time_of_a_batch(url: str) -> None:
    replace_all(url, [("u", VALUES)], NOW)
    ended = Event()

    def write() -> None:
        for _ in range(40):
            replace_all(url, [("u", VALUES)], NOW)
        ended.set()

    writer = Thread(target=write)
    writer.start()
    while not ended.is_set():
        check_online_store(url)
    writer.join()


def test_a_forgotten_user_has_no_aggregates(url: str) -> None:
    replace_all(url, [("forgotten", VALUES), ("u", VALUES)], NOW)
    assert forget_user(url, "forgotten") == 2
    assert read(url, "forgotten") == NOTHING
    assert read(url, "u").values == VALUES
    assert forget_user(url, "forgotten") == 0


def test_a_store_with_data_passes_the_check(url: str) -> None:
    replace_all(url, [("u", VALUES)], NOW)
    check_online_store(url)


def test_without_a_url_every_aggregate_is_missing() -> None:
    assert read_user(None, "u", NOW) == NOTHING


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:////data/features.db", "/data/features.db"),
        ("redis://cache", "redis://cache:6379/0"),
        ("redis://:s%40cret@cache:6380/3", "redis://cache:6380/3"),
        ("rediss://tips:secret@cache.example/12", "rediss://cache.example:6379/12"),
        ("redis://[::1]:6379/0", "redis://::1:6379/0"),
    ],
)
def test_the_name_of_a_store_has_no_password(url: str, name: str) -> None:
    assert check_store_url(url) == url
    assert store_name(url) == name


@pytest.mark.parametrize(
    "url",
    [
        *("features.db", "sqlite://features.db", "sqlite:///", "sqlite:///f.db?mode=ro", "memcached://host"),
        *("redis://", "redis:///0", "redis://:secret@/0", "redis://host:99999/0", "redis://host:port/0"),
        *(
            "redis://host/name",
            "redis://host/0/1",
            "redis://host/0?password=secret",
            "redis://[::1/0",
            "Redis://host/0",
        ),
    ],
)
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^should be sqlite:///FILE or redis://\[:PASSWORD@\]HOST:PORT/DB, with "):
        check_store_url(url)


def test_redis_without_its_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("ml.features.online_redis")
    monkeypatch.delitem(sys.modules, "ml.features.online_redis")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(OnlineStoreUnavailable, match=r"^redis(\.asyncio)? is missing: Redis needs the `redis` extra$"):
        check_online_store("redis://127.0.0.1:1/0")
