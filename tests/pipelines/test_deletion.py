"""The deletion of a person's data from the offline store, in exported and in derived tables."""

from datetime import timedelta
from pathlib import Path

import pyarrow as pa

from ml.features.offline_store import OfflineStore, day_of_date
from ml.pipelines.deletion import forget_user, purge
from ml.pipelines.export import export
from tests.databases import Database
from tests.example_tips import NOW, SetClock
from tests.fixtures import ON_SQLITE
from tests.pipelines.stored_tips import TIPS, created_at, make_changes

DERIVED = pa.schema([("user_id", pa.string()), ("tips_7d", pa.int64())])
TODAY = day_of_date(NOW.date())


def exported(database: Database, directory: Path) -> OfflineStore:
    """Return a store with tips of three users, and tables that are derived from them, also of days without tips."""
    make_changes(database.url, [("add", {*range(TIPS)})], SetClock(NOW))
    store = OfflineStore.open(str(directory / "offline"))
    export(database.url, store)
    for day in range(TODAY - 2, TODAY + 2):
        users = ["u-0", "u-1", "u-1"] if day % 2 else ["u-2"]
        batch = pa.record_batch([users, range(len(users))], schema=DERIVED)
        store.replace("snapshots", day, "source", DERIVED, [batch])
        store.replace("sums", day, "source", pa.schema([("n", pa.int64())]), [])
    store.commit()
    return store


def users(store: OfflineStore, table: str) -> set[str]:
    return {
        user for day in store.days(table) for each in store.batches(table, day) for user in each["user_id"].to_pylist()
    }


def test_a_forgotten_user_is_removed_from_all_tables(database: Database, tmp_path: Path) -> None:
    store = exported(database, tmp_path)
    make_changes(database.url, [("forget", 1)], SetClock(NOW))
    assert forget_user(database.url, store, "u-1") == TIPS // 3 + 4
    assert users(store, "tip_scores") == users(store, "snapshots") == {"u-0", "u-2"}
    sources = {day: file.source for day, file in store.days("snapshots").items()}
    assert {day for day, source in sources.items() if source != "source"} == {TODAY - 1, TODAY + 1}
    assert [*store.damaged()] == []
    assert forget_user(database.url, store, "u-1") == 0
    assert {day: file.source for day, file in store.days("snapshots").items()} == sources
    assert {file.source for file in store.days("sums").values()} == {"source"}


@ON_SQLITE
def test_a_user_with_derived_rows_only_is_forgotten_as_after_a_failure(database: Database, tmp_path: Path) -> None:
    store = exported(database, tmp_path)
    make_changes(database.url, [("forget", 1)], SetClock(NOW))
    export(database.url, store)
    assert forget_user(database.url, store, "u-1") == 4
    assert users(store, "snapshots") == {"u-0", "u-2"}


def test_purged_days_are_removed_from_all_tables(database: Database, tmp_path: Path) -> None:
    store = exported(database, tmp_path)
    before = created_at(1) + timedelta(hours=6)
    make_changes(database.url, [("purge", (NOW - before) // timedelta(hours=1))], SetClock(NOW))
    purge(database.url, store, before)
    kept = {day_of_date(created_at(number).date()) for number in range(TIPS) if created_at(number) >= before}
    assert kept == {*store.days("tip_scores")} == {TODAY - 1, TODAY}
    assert [*store.days("snapshots")] == [*store.days("sums")] == [TODAY, TODAY + 1], "a part of a day is gone, too"
    rows = sum(file.rows for file in store.days("tip_scores").values())
    assert rows == database.count("tip_scores") < TIPS
