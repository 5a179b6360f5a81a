"""`tips export`, and the offline store under `tips forget` and `tips purge`."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from ml.features.offline_store import OfflineStore
from ml.pipelines.export import export
from ml.platform.clock import utc_now
from ml.store.database import migrate_database
from ml.store.reactions import Reaction
from ml.store.tips import open_tip_store
from tests.cli.commands import database_url, tips_without
from tests.example_tips import WINDOW, a_tip
from tests.process import TIPS, run


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, str]:
    """The settings of a database with three tips of two users on two days, and of an offline store."""
    settings = {"DATABASE_URL": database_url(tmp_path), "OFFLINE_STORE": str(tmp_path / "offline")}
    migrate_database(settings["DATABASE_URL"])
    asyncio.run(store_tips(settings["DATABASE_URL"]))
    return settings


@pytest.fixture
def exported(stored: dict[str, str]) -> dict[str, str]:
    """The same, after an export."""
    export(stored["DATABASE_URL"], OfflineStore.open(stored["OFFLINE_STORE"]))
    return stored


async def store_tips(url: str) -> None:
    async with open_tip_store(url, utc_now, reaction_window=WINDOW) as store:
        new, old, other = (
            a_tip(user_id=user, created_at=utc_now() - timedelta(days=days))
            for user, days in (("one", 0), ("one", 9), ("two", 9))
        )
        await store.add(new, old, other)
        await store.react([Reaction(other.tip_id, "saved")])


def users(settings: dict[str, str]) -> set[str]:
    store = OfflineStore.open(settings["OFFLINE_STORE"])
    days = store.days("tip_scores")
    return {row for day in days for batch in store.batches("tip_scores", day) for row in batch["user_id"].to_pylist()}


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Let nothing be written to a folder, also by the superuser: it is a file until the block ends."""
    folder.rename(folder.with_name("moved"))
    folder.write_text("")
    yield
    folder.unlink()
    folder.with_name("moved").rename(folder)


def test_days_are_written_once_and_files_are_checked(stored: dict[str, str], tmp_path: Path) -> None:
    for written, unchanged in ((2, 0), (0, 2)):
        ended = run(TIPS, "export", **stored)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == (
            f"exported: {tmp_path}/tips.db to {tmp_path}/offline: {written} days written, {unchanged} unchanged, "
            "0 removed; it has 3 tips, 1 reactions and 0 exposures\n"
        )
    ended = run(TIPS, "export", "--check", **stored)
    assert (ended.returncode, ended.stdout) == (0, f"checked: 6 files of {tmp_path}/offline\n")
    first, second, *_ = sorted((tmp_path / "offline").rglob("tip_scores/*/*.parquet"))
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.unlink()
    ended = run(TIPS, "export", "--check", **stored)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"{first} is missing or damaged.\n{second} is missing or damaged.\n"
        "Delete manifest.json there, and run `tips export`: it writes all files again.\n"
    )


def test_a_user_is_forgotten_in_the_offline_store_too(exported: dict[str, str], tmp_path: Path) -> None:
    ended = run(TIPS, "forget", "one", **exported)
    assert (ended.returncode, ended.stdout) == (
        0,
        f"removed: 2 tips from {tmp_path}/tips.db\nremoved: 2 rows from {tmp_path}/offline\n",
    )
    assert users(exported) == {"two"}
    ended = run(TIPS, "forget", "one", **exported)
    assert ended.returncode == 1
    assert ended.stderr == f"There is no data of the user 'one' in {tmp_path}/tips.db or {tmp_path}/offline.\n"


def test_tips_are_purged_in_the_offline_store_too(exported: dict[str, str], tmp_path: Path) -> None:
    ended = run(TIPS, "purge", "--older-than", "5d", **exported)
    assert (ended.returncode, ended.stdout) == (
        0,
        f"removed: 2 tips from {tmp_path}/tips.db\nremoved: the same tips from {tmp_path}/offline\n",
    )
    assert users(exported) == {"one"}


def test_what_a_failed_deletion_leaves_is_removed_by_the_next_one(exported: dict[str, str], tmp_path: Path) -> None:
    (day, *_) = (tmp_path / "offline/tip_scores").iterdir()
    with unwritable(day):
        ended = run(TIPS, "forget", "one", **exported)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(
        f"The data is removed from {tmp_path}/tips.db, but not from OFFLINE_STORE; run this again. OFFLINE_STORE: "
    )
    assert users(exported) == {"one", "two"}
    ended = run(TIPS, "forget", "one", **exported)
    assert (ended.returncode, ended.stdout) == (
        0,
        f"removed: 0 tips from {tmp_path}/tips.db\nremoved: 2 rows from {tmp_path}/offline\n",
    )
    assert users(exported) == {"two"}


def test_without_the_extra_one_sentence_names_it_and_nothing_is_removed(exported: dict[str, str]) -> None:
    for library, *command in (("adbc_driver_manager", "export"), ("pyarrow", "forget", "one")):
        ended = run(*tips_without(library), *command, **exported)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == f"{library} is missing: this needs the `pipelines` extra.\n"
    assert users(exported) == {"one", "two"}


def test_without_an_offline_store_a_deletion_needs_no_extra(stored: dict[str, str], tmp_path: Path) -> None:
    ended = run(*tips_without("pyarrow", "adbc_driver_manager"), "forget", "one", **stored)
    assert (ended.returncode, ended.stdout) == (0, f"removed: 2 tips from {tmp_path}/tips.db\n")
    assert not (tmp_path / "offline").exists()
