"""The migrations create the tables that the code expects, keep the data, and leave other tables unchanged."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from ml.platform.idempotency_key import IdempotencyKey
from ml.platform.settings import ConfigurationError
from ml.store import schema
from ml.store.database import Database as Store
from ml.store.database import migrate_database
from ml.store.evidence import EvidenceLog
from ml.store.hours import hour_of
from ml.store.leases import Lease
from ml.store.reactions import Reaction
from ml.store.recount import prepare_database
from ml.store.rollouts import RolloutLog
from ml.store.shadows import Shadows
from ml.store.tables import metadata
from ml.store.tip_records import TipRecord
from ml.store.tips import open_tip_store
from tests.databases import Database, postgres
from tests.example_tips import DIGEST, NOW, WINDOW, SetClock, a_tip
from tests.store.rebuilt_counts import check_counts
from tests.store.rollout_rows import a_move, a_shadow_ranking, a_shadow_tip


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
    return [*compare_metadata(MigrationContext.configure(connection, opts=options), metadata)]


def test_migrations_create_the_tables_of_the_code_and_leave_other_tables_unchanged(empty_database: Database) -> None:
    empty_database.rows("CREATE TABLE other_program (id INTEGER)")
    empty_database.rows("INSERT INTO other_program VALUES (7)")

    async def run() -> list[object]:
        for _ in range(2):
            migrate_database(empty_database.url)
        engine = Store(empty_database.url).engine
        async with engine.connect() as connection:
            different: list[object] = await connection.run_sync(differences)
        await engine.dispose()
        return different

    assert asyncio.run(run()) == []
    assert empty_database.rows("SELECT id FROM other_program") == [{"id": 7}]


def test_migrating_again_keeps_the_stored_tips(database: Database) -> None:
    async def run() -> None:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            await store.add(a_tip())
        migrate_database(database.url)

    asyncio.run(run())
    assert database.count("tip_scores") == 1


def test_data_of_the_first_revision_is_kept_by_upgrades_and_downgrades(empty_database: Database) -> None:
    migrate_to(empty_database, "0001")
    tip = _values(f"{uuid.UUID(int=1)}", "2026-01-31 21:40:00", "v1", shadow=False)
    empty_database.rows(f"INSERT INTO tip_scores ({_TIP_COLUMNS}) VALUES ({tip})")
    empty_database.rows(
        f"INSERT INTO reward_hours VALUES ('', 1, 'v1', '{DIGEST}', false, false, '', 1, 0, 0, 1, 1, 1, 0)"
    )
    migrate_to(empty_database, "0002")
    (row,) = empty_database.rows("SELECT * FROM tip_scores")
    assert {name for name, value in row.items() if value is None} == {
        *("reaction", "reward", "reacted_at", "decision_id", "candidates", "aggregates"),
        *("score", "score_probability", "score_policy", "score_policy_version"),
    }
    assert empty_database.rows("SELECT tips, dependent FROM reward_hours") == [{"tips": 1, "dependent": 0}]
    # A recommender of the previous release, which does not know the new columns, can still write.
    empty_database.rows(
        "INSERT INTO reward_hours (segment, hour, prompt_version, prompt_digest, fallback, shadow, reaction, tips,"
        " reward, reward_squared, input_tokens, output_tokens, ms, simulated)"
        " VALUES ('', 2, 'v1', 'a', false, false, '', 1, 0, 0, 1, 1, 1, 0)"
    )
    migrate_to(empty_database, "0005")
    assert empty_database.count("reward_hours") == 2
    migrate_to(empty_database, "0001")
    assert empty_database.rows("SELECT user_id, tip FROM tip_scores") == [{"user_id": "u-1", "tip": "Stand up."}]
    assert empty_database.count("reward_hours") == 2


def test_shadow_is_replaced_by_its_negation_shown_and_the_counts_stay_right(empty_database: Database) -> None:
    migrate_to(empty_database, "0002")
    times = ("2026-01-31 21:40:00", "2026-01-31 21:50:00", "2026-02-01 00:10:00")
    tips = [(time, version, shadow) for time in times for version in ("v1", "v2-mentor") for shadow in (False, True)]
    # Counters that differ in `shadow` only would have the same key for a moment if they were inverted in place.
    for number, (time, version, shadow) in enumerate(tips):
        tip = _values(f"{uuid.UUID(int=number)}", time, version, shadow=shadow)
        empty_database.rows(f"INSERT INTO tip_scores ({_TIP_COLUMNS}) VALUES ({tip})")
    counts = Counter(
        (segment, hour_of(datetime.fromisoformat(f"{time}Z")), version, shadow)
        for time, version, shadow in tips
        for segment in ("", "mood:low")
    )
    assert {*counts.values()} == {1, 2}
    for (segment, hour, version, shadow), n in counts.items():
        empty_database.rows(
            "INSERT INTO reward_hours (segment, hour, prompt_version, prompt_digest, fallback, shadow, reaction, tips,"
            " reward, reward_squared, input_tokens, output_tokens, ms, simulated, dependent)"
            f" VALUES ('{segment}', {hour}, '{version}', '{DIGEST}', false, {shadow}, '', {n}, 0, 0, {n}, {n}, {n},"
            " 0, 0)"
        )
    before = snapshot(empty_database)
    migrate_to(empty_database, "0005")
    migrated = snapshot(empty_database)
    migrate_to(empty_database, "head")
    rows = empty_database.rows("SELECT created_at, prompt_version, shown FROM tip_scores ORDER BY tip_id")
    assert [(str(row["created_at"])[:19], row["prompt_version"], bool(row["shown"])) for row in rows] == [
        (time, version, not shadow) for time, version, shadow in tips
    ]
    check_counts(empty_database)
    migrate_to(empty_database, "0005")
    assert snapshot(empty_database) == migrated
    migrate_to(empty_database, "0002")
    assert snapshot(empty_database) == before
    migrate_to(empty_database, "head")
    # The store adds to the migrated counters, and subtracts from them.
    at = datetime(2026, 1, 31, 21, 45, tzinfo=UTC)
    asyncio.run(store_tips(empty_database, a_tip(created_at=at, user_id="u-2"), a_tip(created_at=at, shown=False)))
    check_counts(empty_database)
    asyncio.run(forget(empty_database, "u-1"))
    check_counts(empty_database)
    assert empty_database.count("tip_scores") == 1


def test_dependent_tips_are_moved_to_counters_of_their_own_and_back(empty_database: Database) -> None:
    migrate_to(empty_database, "head")
    segments = ("mood:low", "locale:de")
    tips = [
        *(a_tip(**fields) for fields in ({}, {"segments": segments}, {"score_policy": "uniform"}, {"fallback": True})),
        *(a_tip(policy="sticky", **fields) for fields in ({}, {"segments": segments}, {"simulated": True})),
        *(a_tip(score_policy="tips", **fields) for fields in ({"segments": segments}, {"shown": False})),
        a_tip(prompt_version="v2-mentor", policy="sticky"),
    ]
    asyncio.run(store_tips(empty_database, *tips, reaction="saved"))
    migrated = snapshot(empty_database)
    migrate_to(empty_database, "0003")
    dependent = empty_database.rows(
        "SELECT prompt_version, sum(tips) AS tips, sum(dependent) AS dependent FROM reward_hours"
        " WHERE segment = '' AND reaction = '' GROUP BY prompt_version ORDER BY prompt_version"
    )
    assert [(int(row["tips"]), int(row["dependent"])) for row in dependent] == [(9, 5), (1, 1)]
    assert empty_database.rows("SELECT * FROM reward_hours WHERE reaction <> '' AND dependent <> 0") == []
    migrate_to(empty_database, "head")
    assert snapshot(empty_database) == migrated
    check_counts(empty_database)


def test_downgrading_shown_restores_shadow(empty_database: Database) -> None:
    migrate_to(empty_database, "head")
    asyncio.run(store_tips(empty_database, a_tip(), a_tip(shown=False, prompt_version="v2-mentor")))
    migrated = snapshot(empty_database)
    migrate_to(empty_database, "0002")
    assert [
        (row["prompt_version"], bool(row["shadow"]))
        for row in empty_database.rows("SELECT prompt_version, shadow FROM tip_scores ORDER BY prompt_version")
    ] == [("v1", False), ("v2-mentor", True)]
    assert {
        (row["prompt_version"], bool(row["shadow"]), row["tips"])
        for row in empty_database.rows("SELECT prompt_version, shadow, tips FROM reward_hours")
    } == {("v1", False, 1), ("v2-mentor", True, 1)}
    migrate_to(empty_database, "head")
    assert snapshot(empty_database) == migrated
    check_counts(empty_database)


def test_idempotency_keys_can_be_added_and_removed_again(empty_database: Database) -> None:
    migrate_to(empty_database, "0003")
    assert "idempotency_keys" not in table_names(empty_database)
    migrate_to(empty_database, "0004")
    key = IdempotencyKey("k" * 64, "b" * 64)

    async def tip_of_key(tip: TipRecord) -> Any:
        async with (
            open_tip_store(empty_database.url, SetClock(), reaction_window=WINDOW) as store,
            store.reserve(key, "u-1", [], timedelta(seconds=40)) as reserved,
        ):
            if isinstance(reserved, TipRecord):
                return reserved.tip_id
            await store.add(tip, claim=reserved.claim)
        return None

    first, second = a_tip(), a_tip()
    migrate_to(empty_database, "head")
    assert asyncio.run(tip_of_key(first)) is None
    assert asyncio.run(tip_of_key(second)) == first.tip_id
    migrate_to(empty_database, "0003")
    assert "idempotency_keys" not in table_names(empty_database)
    assert empty_database.count("tip_scores") == 1
    migrate_to(empty_database, "head")
    assert asyncio.run(tip_of_key(second)) is None
    assert empty_database.count("tip_scores") == 2


ROLLOUT_TABLES = (
    *("rollout_events", "rollout_evidence", "webhook_outbox", "leases"),
    *("shadow_tips", "shadow_rankings", "ranking_hours"),
)


def test_rollouts_can_be_added_and_removed_again_and_the_tips_stay(empty_database: Database) -> None:
    migrate_to(empty_database, "0006")
    assert not {*ROLLOUT_TABLES} & table_names(empty_database)
    # A tip of the previous release, which does not know the new columns.
    columns = _TIP_COLUMNS.replace("shadow", "shown")
    old = _values(f"{uuid.UUID(int=1)}", "2026-01-31 21:40:00", "v1", shadow=True)
    empty_database.rows(f"INSERT INTO tip_scores ({columns}) VALUES ({old})")
    (before, *_) = snapshot(empty_database)
    migrate_to(empty_database, "head")
    asyncio.run(store_rollouts(empty_database))
    assert [empty_database.count(table) for table in ROLLOUT_TABLES] == [1, 1, 1, 1, 1, 1, 3]
    migrate_to(empty_database, "0006")
    assert not {*ROLLOUT_TABLES} & table_names(empty_database)
    assert empty_database.count("tip_scores") == 2
    empty_database.rows("DELETE FROM tip_scores WHERE user_id = 'u-2'")
    assert snapshot(empty_database)[0] == before
    migrate_to(empty_database, "head")
    assert [empty_database.count(table) for table in ROLLOUT_TABLES] == [0] * 7
    asyncio.run(store_rollouts(empty_database))


async def store_rollouts(database: Database) -> None:
    """Store a tip with everything that belongs to rollouts: a row in each of their tables."""
    async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
        tip = a_tip(user_id="u-2", prompt_event=1, policy_asked="abc", policy_options={"uniform": 0.5, "abc": 0.5})
        await store.add(tip)
        await RolloutLog(store.database).append(a_move("initial"), expected=0, notify=True)
        await EvidenceLog(store.database).record(1, NOW, {"reward": {"low": 0.0}})
        await Lease(store.database, "monitor", "replica-1", timedelta(minutes=1)).acquire(NOW)
        await Shadows(store.database).add_tip(a_shadow_tip(tip.tip_id, user_id="u-2"))
        await Shadows(store.database).add_ranking(a_shadow_ranking(tip.tip_id, None, user_id="u-2"))


def table_names(database: Database) -> set[str]:
    tables = "sqlite_master" if database.is_sqlite else "pg_tables WHERE schemaname = 'public'"
    return {
        row["name"]
        for row in database.rows(f"SELECT {'name' if database.is_sqlite else 'tablename AS name'} FROM {tables}")
    }


_TIP_COLUMNS = (
    "tip_id, user_id, created_at, policy, policy_version, options, probability, prompt_version_asked, generation_id,"
    " prompt_version, prompt_digest, model, fallback, signals, segments, tip, input_tokens, output_tokens, ms, shadow,"
    " simulated, reaction, reward, reacted_at"
)
"""The columns of `tip_scores` in the first revision."""


def _values(tip_id: str, created_at: str, prompt_version: str, *, shadow: bool) -> str:
    """Return the values of `_TIP_COLUMNS` of a tip, as SQL."""
    return (
        f"'{tip_id.replace('-', '')}', 'u-1', '{created_at}', 'uniform', '1', '{{\"{prompt_version}\": 1.0}}', 1,"
        f" '{prompt_version}', 'g-1', '{prompt_version}', '{DIGEST}', 'm', false, '{{}}', '[\"mood:low\"]',"
        f" 'Stand up.', 1, 1, 1, {shadow}, false, NULL, NULL, NULL"
    )


async def store_tips(database: Database, *tips: TipRecord, reaction: str | None = None) -> None:
    """Store tips, each with the reaction if there is one."""
    async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
        await store.add(*tips)
        if reaction:
            await store.react([Reaction(tip.tip_id, reaction) for tip in tips])


async def forget(database: Database, user_id: str) -> None:
    async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
        await store.forget(user_id)


def snapshot(database: Database) -> list[list[str]]:
    """Return all tips and counters."""
    counters = {"reward_hours", "assignment_hours", "draw_hours", "ranking_hours", "distributions"} & table_names(
        database
    )
    return [
        sorted(str(sorted(row.items())) for row in database.rows(f"SELECT * FROM {table}"))
        for table in ("tip_scores", *sorted(counters))
    ]


def migrate_to(database: Database, revision: str) -> None:
    """Migrate a database up or down to a revision of the schema, as `tips migrate` does to the newest one."""
    if revision == "head":
        migrate_database(database.url)
        prepare_database(database.url, WINDOW)
        return

    def migrate(connection: Connection) -> None:
        config = schema._config()
        config.attributes["connection"] = connection
        context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
        is_downgrade = (context.get_current_revision() or "") > revision
        (command.downgrade if is_downgrade else command.upgrade)(config, revision)

    async def run() -> None:
        store = Store(database.url)
        async with store.writing() as connection:
            await connection.run_sync(migrate)
        await store.close()

    asyncio.run(run())


def test_sqlite_is_migrated_at_start_up(tmp_path: Path) -> None:
    prepare_database(f"sqlite+aiosqlite:///{tmp_path}/new.db", WINDOW)
    assert Database(f"sqlite+aiosqlite:///{tmp_path}/new.db").count("tip_scores") == 0


@pytest.mark.usefixtures("postgres_server")
def test_the_error_of_an_unmigrated_postgresql_names_the_command() -> None:
    with postgres() as database:
        with pytest.raises(ConfigurationError, match="run `tips migrate`"):
            prepare_database(database.url, WINDOW)
        assert database.rows("SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []


@pytest.mark.parametrize("address", ["127.0.0.1:1/tips", "no-such-host.invalid/tips"])
def test_the_error_of_an_unreachable_database_is_one_sentence_without_the_password(address: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        prepare_database(f"postgresql+asyncpg://tips:geheim@{address}", WINDOW)
    assert str(raised.value).startswith("DATABASE_URL: ")
    assert "geheim" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_the_error_of_a_file_that_is_not_a_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("This is not a database. " * 100)
    for path in ("text.db", "missing/folder.db"):
        with pytest.raises(ConfigurationError, match="DATABASE_URL"):
            prepare_database(f"sqlite+aiosqlite:///{tmp_path}/{path}", WINDOW)
