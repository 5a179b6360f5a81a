"""The migrations make the tables that the code knows, and leave others alone."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from ml.platform.settings import ConfigurationError
from ml.store import tables as schema
from ml.store.database import Database as Store
from ml.store.database import migrate_database, prepare_database
from ml.store.tips import open_tip_store
from tests.databases import Database, postgres
from tests.example_tips import SetClock, a_tip


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        yield Database(f"sqlite+aiosqlite:///{tmp_path}/empty.db")
        return
    request.getfixturevalue("postgres_server")
    with postgres() as database:
        yield database


def differences(connection: Connection) -> list[object]:
    options = schema.configuration(connection)
    options = {name: value for name, value in options.items() if name != "connection"}
    return [*compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata)]


def test_migrations_make_the_tables_that_the_code_knows_and_leave_others_alone(empty_database: Database) -> None:
    empty_database.rows("CREATE TABLE somebody_elses (id INTEGER)")
    empty_database.rows("INSERT INTO somebody_elses VALUES (7)")

    async def run() -> list[object]:
        for _ in range(2):
            migrate_database(empty_database.url)
        engine = Store(empty_database.url).engine
        async with engine.connect() as connection:
            found: list[object] = await connection.run_sync(differences)
        await engine.dispose()
        return found

    assert asyncio.run(run()) == []
    assert empty_database.rows("SELECT id FROM somebody_elses") == [{"id": 7}]


def test_migrating_again_keeps_what_is_stored(database: Database) -> None:
    async def run() -> None:
        async with open_tip_store(database.url, SetClock()) as store:
            await store.add(a_tip())
        migrate_database(database.url)

    asyncio.run(run())
    assert database.count("tip_scores") == 1


def test_a_database_of_an_earlier_version_keeps_what_it_holds_there_and_back(empty_database: Database) -> None:
    tip = (
        "'00000000000000000000000000000001', 'u-1', '2026-01-31 21:40:00', 'uniform', '1', '{\"v1\": 1.0}', 1, 'v1',"
        f" 'g-1', 'v1', '{'a' * 64}', 'm', false, '{{}}', '[]', 'Stand up.', 1, 1, 1, false, false, NULL, NULL, NULL"
    )
    to(empty_database, "0001")
    empty_database.rows(f"INSERT INTO tip_scores VALUES ({tip})")
    empty_database.rows(
        f"INSERT INTO reward_hours VALUES ('', 1, 'v1', '{'a' * 64}', false, false, '', 1, 0, 0, 1, 1, 1, 0)"
    )
    to(empty_database, "head")
    (row,) = empty_database.rows("SELECT * FROM tip_scores")
    assert {name for name, value in row.items() if value is None} == {
        *("reaction", "reward", "reacted_at", "decision_id", "candidates", "aggregates"),
        *("score", "score_probability", "score_policy", "score_policy_version"),
    }
    assert empty_database.rows("SELECT tips, dependent FROM reward_hours") == [{"tips": 1, "dependent": 0}]
    # A recommender of that version, which does not know of the new columns, can go on.
    empty_database.rows(
        "INSERT INTO reward_hours (segment, hour, prompt_version, prompt_digest, fallback, shadow, reaction, tips,"
        " reward, reward_squared, input_tokens, output_tokens, ms, simulated)"
        " VALUES ('', 2, 'v1', 'a', false, false, '', 1, 0, 0, 1, 1, 1, 0)"
    )
    to(empty_database, "0001")
    assert empty_database.rows("SELECT user_id, tip FROM tip_scores") == [{"user_id": "u-1", "tip": "Stand up."}]
    assert empty_database.count("reward_hours") == 2


def to(database: Database, revision: str) -> None:
    """Bring a database to a version of the schema."""

    def change(connection: Connection) -> None:
        config = schema._config()
        config.attributes["connection"] = connection
        back = revision != "head" and connection.dialect.has_table(connection, "tip_scores")
        (command.downgrade if back else command.upgrade)(config, revision)

    async def run() -> None:
        store = Store(database.url)
        async with store.writing() as connection:
            await connection.run_sync(change)
        await store.close()

    asyncio.run(run())


def test_sqlite_is_migrated_by_itself(tmp_path: Path) -> None:
    prepare_database(f"sqlite+aiosqlite:///{tmp_path}/new.db")
    assert Database(f"sqlite+aiosqlite:///{tmp_path}/new.db").count("tip_scores") == 0


@pytest.mark.usefixtures("postgres_server")
def test_an_unmigrated_postgresql_says_what_to_run() -> None:
    with postgres() as database:
        with pytest.raises(ConfigurationError, match="run `tips migrate`"):
            prepare_database(database.url)
        assert database.rows("SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []


@pytest.mark.parametrize("place", ["127.0.0.1:1/tips", "no-such-host.invalid/tips"])
def test_a_database_that_cannot_be_reached_is_one_sentence_without_the_password(place: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        prepare_database(f"postgresql+asyncpg://tips:geheim@{place}")
    assert str(raised.value).startswith("DATABASE_URL: ")
    assert "geheim" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("This is not a database. " * 100)
    for path in ("text.db", "missing/folder.db"):
        with pytest.raises(ConfigurationError, match="DATABASE_URL"):
            prepare_database(f"sqlite+aiosqlite:///{tmp_path}/{path}")
