"""Fixtures of databases, the fake serving, and recommenders; `conftest.py` makes them available to all tests."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import httpx
import pytest
import redis

from ml.features import online_redis
from ml.recommender.app import create_app
from ml.recommender.settings import RecommenderSettings
from ml.store.database import migrate_database
from tests.databases import REDIS_URL, Database, on_server, postgres, redis_database
from tests.example_tips import SetClock
from tests.fake_serving import FakeServing
from tests.server import running

StartRecommender = Callable[..., httpx.Client]

REFRESH_SECONDS = 0.05
"""The interval at which the recommenders under test read the rewards, and the state of rollouts."""

ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""Marks tests that do not depend on the database, or are about SQLite only."""


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    file = tmp_path_factory.mktemp("template") / "tips.db"
    migrate_database(f"sqlite+aiosqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def postgres_server() -> None:
    """Skip where no PostgreSQL server answers, but never in CI."""
    try:
        on_server("SELECT 1")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        reason = f"no PostgreSQL server answers at TEST_POSTGRES_URL: {type(error).__name__}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_server() -> None:
    """Skip where no Redis server answers, but never in CI."""
    try:
        with redis.Redis.from_url(REDIS_URL) as client:
            client.ping()
    except redis.RedisError as error:
        reason = f"no Redis server answers at TEST_REDIS_URL: {type(error).__name__}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def redis_url(redis_server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:  # noqa: ARG001
    """The URL of an empty Redis database, and time for its reads, since the machine can be busy."""
    monkeypatch.setattr(online_redis, "READ_SECONDS", 60)
    with redis_database() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_server: None) -> Iterator[str]:  # noqa: ARG001
    """A migrated PostgreSQL database to copy."""
    with postgres() as database:
        migrate_database(database.url)
        yield database.name


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    """An empty, migrated database; the test runs once per dialect."""
    empty: Database = request.getfixturevalue(f"{request.param}_database")
    return empty


@pytest.fixture
def database_url(database: Database) -> str:
    """The URL of an empty, migrated database; the test runs once per dialect."""
    return database.url


@pytest.fixture
def sqlite_database(sqlite_template: Path, tmp_path: Path) -> Database:
    shutil.copy(sqlite_template, tmp_path / "store.db")
    return Database(f"sqlite+aiosqlite:///{tmp_path}/store.db")


@pytest.fixture
def postgresql_database(postgres_template: str) -> Iterator[Database]:
    with postgres(postgres_template) as database:
        yield database


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def fake_serving() -> Iterator[FakeServing]:
    """A running serving whose responses the test sets."""
    serving = FakeServing()
    with running(serving.app()) as serving.url:
        yield serving


@pytest.fixture
def start_recommender(database_url: str, fake_serving: FakeServing, clock: SetClock) -> Iterator[StartRecommender]:
    """A function that starts a recommender on the database and the fake serving, and returns a client for it."""
    with ExitStack() as stack:

        def start(**settings: Any) -> httpx.Client:
            settings = {"database_url": database_url, "serving_url": fake_serving.url, **settings}
            intervals = {"refresh_seconds": REFRESH_SECONDS, "poll_seconds": REFRESH_SECONDS}
            app = create_app(RecommenderSettings(**settings), clock=clock, **intervals)
            return stack.enter_context(httpx.Client(base_url=stack.enter_context(running(app)), timeout=60))

        yield start


@pytest.fixture
def recommender(start_recommender: StartRecommender) -> httpx.Client:
    return start_recommender()
