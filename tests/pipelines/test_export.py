"""The export: incremental, after kills, deletions and late reactions, it gives the files of a full export."""

import asyncio
import multiprocessing
import os
import random
import shutil
import signal
import time
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.features.offline_store import OfflineStore, OfflineStoreUnavailable, day_of_date
from ml.pipelines import export as pipeline
from ml.pipelines.export import ExportSummary, export
from ml.pipelines.offline_lease import hold_offline_store
from ml.platform.errors import Busy
from ml.store.export import SCHEMAS
from ml.store.transfer import copy_tips
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock
from tests.fixtures import ON_SQLITE
from tests.pipelines.stored_tips import CHANGES, TIPS, Change, created_at, files, files_of_new_export, make_changes

SHORT = timedelta(milliseconds=200)
"""A lease that ends soon after its job was killed."""

SOME_TIPS: list[Change] = [
    ("add", {*range(TIPS)}),
    *(("react", number, kind, 1) for number in range(0, TIPS, 2) for kind in ("helpful", "not_helpful")),
    *(("expose", number) for number in range(0, TIPS, 3)),
]


class FailingStore(OfflineStore):
    """A store whose disk fails after some files."""

    left = 0

    def replace(self, *arguments: Any) -> None:
        if self.left == 0:
            raise OfflineStoreUnavailable("the disk is full")
        self.left -= 1
        super().replace(*arguments)


def check_changes(database: Database, directory: Path, steps: list[tuple[list[Change], int]]) -> None:
    """Make changes and export after each step, of which some fail after some files; compare with a full export."""
    clock, folder = SetClock(NOW + timedelta(days=1)), directory / "incremental"
    for changes, files_before_failure in steps:
        make_changes(database.url, changes, clock)
        store = FailingStore.open(str(folder))
        store.left = files_before_failure
        try:
            export(database.url, store)
        except OfflineStoreUnavailable:
            continue
    export(database.url, OfflineStore.open(str(folder)))
    assert files(folder) == files_of_new_export(database.url, directory / "full")
    tips = sum(file.rows for file in OfflineStore.open(str(folder)).days("tip_scores").values())
    assert tips == database.count("tip_scores")
    shutil.rmtree(directory)


STEPS = st.lists(st.tuples(st.lists(CHANGES, max_size=5), st.sampled_from((-1, -1, 0, 1, 4))), min_size=2, max_size=4)


@ON_SQLITE
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_changes_between_exports_give_the_files_of_a_full_export(
    steps: list[tuple[list[Change], int]], database: Database, tmp_path: Path
) -> None:
    copy = Database(f"sqlite+aiosqlite:///{tmp_path}/copy.db")
    shutil.copy(database.file, copy.file)
    check_changes(copy, tmp_path / "offline", steps)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_day_is_exported_again_after_each_kind_of_change(database: Database, tmp_path: Path) -> None:
    changes: list[Change] = [
        ("add", {1}),
        ("react", 4, "dismissed", 0),  # not effective
        ("expose", 5),
        ("forget", 0),
        ("purge", 30),
    ]
    steps = [([("add", {*range(2, TIPS)}), *SOME_TIPS[1:]], -1), *(([each], -1) for each in changes)]
    check_changes(database, tmp_path / "offline", steps)


@pytest.mark.usefixtures("postgres_server")
def test_both_databases_give_the_same_bytes(
    sqlite_database: Database, postgresql_database: Database, tmp_path: Path
) -> None:
    make_changes(sqlite_database.url, SOME_TIPS, SetClock(NOW + timedelta(days=1)))
    asyncio.run(copy_tips(sqlite_database.url, postgresql_database.url, WINDOW))
    written = {}
    for database in (sqlite_database, postgresql_database):
        folder = tmp_path / database.url.partition(":")[0]
        names = files_of_new_export(database.url, folder)
        written[database] = {
            (name.partition("/part-")[0], content) for name, content in names.items() if name.endswith(".parquet")
        }
    assert written[sqlite_database] == written[postgresql_database]
    assert len(written[sqlite_database]) == 9


def test_rows_are_those_of_the_database_in_order(database: Database, tmp_path: Path) -> None:
    make_changes(database.url, SOME_TIPS, SetClock(NOW + timedelta(days=1)))
    store = OfflineStore.open(str(tmp_path / "offline"))
    assert export(database.url, store) == ExportSummary(
        3, 0, 0, {"tip_scores": TIPS, "reactions": TIPS, "exposures": TIPS // 3}
    )
    for table, order in (
        ("tip_scores", ("created_at", "tip_id")),
        ("reactions", ("tip_id", "received_at", "at", "reaction")),
        ("exposures", ("tip_id",)),
    ):
        days = store.days(table)
        exported = [row for day in days for batch in store.batches(table, day) for row in batch.to_pylist()]
        for day in days:
            rows = [row for batch in store.batches(table, day) for row in batch.to_pylist()]
            assert rows == sorted(rows, key=lambda row: [row[name] for name in order])
            assert {day_of_date(created_at(UUID(row["tip_id"]).int).date()) for row in rows} <= {day}
        expected = [{name: as_exported(table, name, row[name]) for name in row} for row in rows_of(database, table)]
        assert sorted(exported, key=str) == sorted(expected, key=str)
        assert store.schema(table, min(days)) == SCHEMAS[table]


def rows_of(database: Database, table: str) -> list[dict[str, Any]]:
    return database.rows(f"SELECT * FROM {table}")


def as_exported(table: str, name: str, value: Any) -> Any:
    type_ = SCHEMAS[table].field(name).type
    if value is None:
        return None
    if name in {"tip_id", "decision_id"}:
        return str(UUID(str(value)))
    if pa.types.is_timestamp(type_):
        at = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return at.replace(tzinfo=UTC)
    return bool(value) if pa.types.is_boolean(type_) else value


def test_a_second_export_reads_and_writes_nothing(database: Database, tmp_path: Path) -> None:
    make_changes(database.url, SOME_TIPS, SetClock())
    store = OfflineStore.open(str(tmp_path))
    export(database.url, store)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.parquet")}
    summary = export(database.url, OfflineStore.open(str(tmp_path)))
    assert (summary.written, summary.unchanged, summary.removed) == (0, 3, 0)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.parquet")} == before


def test_tips_of_a_release_without_revisions_are_exported(database: Database, tmp_path: Path) -> None:
    make_changes(database.url, SOME_TIPS, SetClock())
    before = files_of_new_export(database.url, tmp_path / "before")
    database.rows("DELETE FROM day_revisions WHERE day <> (SELECT max(day) FROM day_revisions)")
    after = files_of_new_export(database.url, tmp_path / "after")
    assert {*map(hash, before.values())} & {*map(hash, after.values())}
    assert sorted(map(len, before.values())) == sorted(map(len, after.values()))
    assert database.count("day_revisions") == 3


@ON_SQLITE
def test_an_empty_database_gives_an_empty_store(database: Database, tmp_path: Path) -> None:
    store = OfflineStore.open(str(tmp_path))
    assert export(database.url, store) == ExportSummary(0, 0, 0, dict.fromkeys(SCHEMAS, 0))
    assert not store.exists


@ON_SQLITE
def test_statistics_of_changed_days_are_removed(database: Database, tmp_path: Path) -> None:
    make_changes(database.url, SOME_TIPS, SetClock())
    store = OfflineStore.open(str(tmp_path))
    export(database.url, store)
    for number in range(3):
        store.write(f"stats/1/day={created_at(number).date()}.npz", b"sums")
    make_changes(database.url, [("react", 1, "done", 5)], SetClock())
    export(database.url, store)
    assert store.paths("stats") == sorted(f"stats/1/day={created_at(number).date()}.npz" for number in (0, 2))


@ON_SQLITE
def test_one_job_at_a_time_writes_to_the_store(database: Database, tmp_path: Path) -> None:
    make_changes(database.url, SOME_TIPS, SetClock())
    store = OfflineStore.open(str(tmp_path))
    with hold_offline_store(database.url, store, timedelta(minutes=1)), pytest.raises(Busy, match="Another job"):
        export(database.url, OfflineStore.open(str(tmp_path)), lease=SHORT)
    assert export(database.url, OfflineStore.open(str(tmp_path))).written == 3


@ON_SQLITE
def test_a_job_that_has_lost_its_lease_commits_nothing(database: Database, tmp_path: Path) -> None:
    make_changes(database.url, SOME_TIPS, SetClock())
    store = OfflineStore.open(str(tmp_path))
    with (
        hold_offline_store(database.url, store, SHORT) as slow,
        hold_offline_store(database.url, OfflineStore.open(str(tmp_path)), timedelta(minutes=1)),
        pytest.raises(Busy),
    ):
        pipeline.export_days(database.url, store, slow)
    assert files(tmp_path).keys() & {"manifest.json"} == set()


def export_when_told(url: str, folder: str, commands: Connection) -> None:
    """Fork an export for each message; kill it after as many seconds as the message says."""
    while (delay := commands.recv()) is not None:
        child = os.fork()
        if not child:
            export(url, OfflineStore.open(folder), lease=SHORT)
            os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        commands.send("killed")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_after_kill_9_the_next_export_gives_the_files_of_a_full_one(database: Database, tmp_path: Path) -> None:
    rng, clock, folder = random.Random(3), SetClock(), tmp_path / "offline"
    context = multiprocessing.get_context("spawn")
    commands, other_end = context.Pipe()
    process = context.Process(target=export_when_told, args=(database.url, str(folder), other_end))
    process.start()
    try:
        for _ in range(5):
            make_changes(database.url, [("add", {*rng.sample(range(TIPS), 4)}), ("react", 1, "done", 1)], clock)
            commands.send(rng.random() * 0.3)
            assert commands.poll(60)
            commands.recv()
        commands.send(None)
        process.join(timeout=10)
    finally:
        process.kill()
        process.join()
    export(database.url, OfflineStore.open(str(folder)), lease=SHORT)
    assert files(folder) == files_of_new_export(database.url, tmp_path / "full")
