"""Each change of tips, reactions or exposures replaces the revisions of their days, and of no others."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from ml.platform.idempotency_key import IdempotencyKey
from ml.store.database import Database as Store
from ml.store.database import migrate_database
from ml.store.day_revisions import DayRevisions
from ml.store.exposures import Exposure
from ml.store.hours import day_of
from ml.store.reactions import Reaction, UnknownTipsError
from ml.store.recount import recount_database
from ml.store.tip_records import TipRecord
from ml.store.tips import TipStore, open_tip_store
from ml.store.transfer import copy_tips
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_failure, a_tip

TODAY = day_of(NOW)
YESTERDAY = TODAY - 1


class Revisions:
    """The days whose revisions have changed since the last look; at first, all that have one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[int, str] = {}

    def _read(self) -> dict[int, str]:
        return {row["day"]: str(row["revision"]) for row in self._database.rows("SELECT * FROM day_revisions")}

    async def changed(self) -> set[int]:
        """Return the days with another revision, and those with none any more."""
        before, self._known = self._known, await asyncio.to_thread(self._read)
        return {day for day, _ in before.items() ^ self._known.items()}


async def two_days(store: TipStore) -> tuple[TipRecord, TipRecord]:
    old, new = a_tip(created_at=NOW - timedelta(days=1), user_id="old"), a_tip(user_id="new")
    await store.add(old)
    await store.add(new)
    return old, new


def test_every_change_replaces_the_revision_of_its_day(database: Database) -> None:
    async def run() -> None:
        clock, revisions = SetClock(), Revisions(database)
        async with open_tip_store(database.url, clock, reaction_window=WINDOW) as store:
            old, new = await two_days(store)
            assert await revisions.changed() == {YESTERDAY, TODAY}
            await store.react([Reaction(old.tip_id, "helpful", NOW)])
            assert await revisions.changed() == {YESTERDAY}
            await store.react([Reaction(old.tip_id, "saved", NOW - timedelta(hours=1))], IdempotencyKey("k", "b"))
            assert await revisions.changed() == {YESTERDAY}, "a reaction that is not effective is exported, too"
            clock.go(days=9)
            await store.expose([Exposure(new.tip_id)])
            assert await revisions.changed() == {TODAY}, "a late exposure"
            await store.react([Reaction(tip.tip_id, "done") for tip in (old, new)])
            assert await revisions.changed() == {YESTERDAY, TODAY}, "late reactions"
            await store.forget("new")
            assert await revisions.changed() == {TODAY}
            await store.add(a_tip(created_at=NOW - timedelta(days=1, hours=4)))
            assert await revisions.changed() == {YESTERDAY}
            await store.purge(NOW - timedelta(days=1, hours=2))
            assert await revisions.changed() == {YESTERDAY}
            assert await asyncio.to_thread(database.count, "day_revisions") == 1
            await store.purge(clock.now)
            assert await asyncio.to_thread(database.count, "day_revisions") == 0, "days without tips have none"

    asyncio.run(run())


def test_what_changes_no_exported_row_replaces_no_revision(database: Database) -> None:
    async def run() -> None:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            _, new = await two_days(store)
            await store.react([Reaction(new.tip_id, "done", NOW)])
            await store.expose([Exposure(new.tip_id)])
            revisions = Revisions(database)
            await revisions.changed()
            await store.react([Reaction(new.tip_id, "done", NOW)])
            await store.expose([Exposure(new.tip_id)])
            await store.add_failures([a_failure()])
            await store.forget("nobody")
            with pytest.raises(UnknownTipsError):
                await store.react([Reaction(a_tip().tip_id, "done")])
            async with store.reserve(IdempotencyKey("k", "b"), "u-1", [], timedelta(seconds=9)):
                pass
            assert await revisions.changed() == set()

    asyncio.run(run())


def test_a_recount_replaces_the_revisions_of_days_with_other_rows_now(database: Database) -> None:
    async def run() -> None:
        clock = SetClock(NOW + timedelta(hours=30))
        async with open_tip_store(database.url, clock, reaction_window=WINDOW) as store:
            _, new = await two_days(store)
            await store.expose([Exposure(new.tip_id)])

    asyncio.run(run())
    revisions = Revisions(database)
    asyncio.run(revisions.changed())
    recount_database(database.url, timedelta(hours=48), lambda _: None)
    assert asyncio.run(revisions.changed()) == {TODAY}


def test_a_copy_replaces_the_revisions_of_the_copied_days(database: Database, tmp_path: Path) -> None:
    async def run(url: str) -> None:
        async with open_tip_store(url, SetClock(), reaction_window=WINDOW) as store:
            await two_days(store)

    source = f"sqlite+aiosqlite:///{tmp_path}/source.db"
    migrate_database(source)
    for url in (source, database.url):
        asyncio.run(run(url))
    revisions = Revisions(database)
    asyncio.run(revisions.changed())
    asyncio.run(copy_tips(source, database.url, WINDOW))
    assert asyncio.run(revisions.changed()) == {YESTERDAY, TODAY}


def test_days_that_have_tips_but_no_revision_get_one(database: Database) -> None:
    async def run() -> None:
        ages = (0, 1, 2, 700, 9_000)
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            await store.add(*(a_tip(created_at=NOW - timedelta(days=age)) for age in ages))
        expected = {TODAY - age for age in ages}
        for kept in ((), (TODAY,), (TODAY - 700, TODAY - 1), (*expected,)):
            days = ", ".join(map(str, (0, *kept)))
            await asyncio.to_thread(database.rows, f"DELETE FROM day_revisions WHERE day NOT IN ({days})")
            revisions, opened = Revisions(database), Store(database.url)
            await revisions.changed()
            async with opened.writing() as connection:
                await DayRevisions(opened).add_missing(connection)
            await opened.close()
            assert await revisions.changed() == expected - {*kept}

    asyncio.run(run())


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_day_keeps_its_revision_while_tips_are_added_and_forgotten_at_once(database: Database) -> None:
    async def run() -> None:
        async with (
            open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as adding,
            open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as forgetting,
        ):
            for number in range(15):
                await adding.add(a_tip(user_id=f"u-{number}"))
                await asyncio.gather(adding.add(a_tip(user_id="kept")), forgetting.forget(f"u-{number}"))
                assert await asyncio.to_thread(database.count, "day_revisions") == 1
                await forgetting.forget("kept")
                assert await asyncio.to_thread(database.count, "day_revisions") == 0

    asyncio.run(run())
