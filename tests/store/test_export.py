"""The export of a day: one snapshot, and errors without secrets. `tests/pipelines/test_export.py` has its rows."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from ml.platform.errors import StorageUnavailable
from ml.store.export import SCHEMAS, open_export
from ml.store.export import _libpq_parameters as libpq_parameters
from ml.store.hours import day_of
from ml.store.tips import open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_tip

# In a process of its own: SQLite must not open the file twice in one.
ADD_TIP = """
import asyncio, sys
from ml.store.tips import open_tip_store
from tests.example_tips import WINDOW, SetClock, a_tip
async def run():
    async with open_tip_store(sys.argv[1], SetClock(), reaction_window=WINDOW) as store:
        await store.add(a_tip())
asyncio.run(run())
"""


def add_tip(database: Database) -> None:
    subprocess.run([sys.executable, "-c", ADD_TIP, database.url], check=True, cwd=Path(__file__).parents[2])


def test_a_day_is_one_snapshot_while_tips_are_added(database: Database) -> None:
    async def add() -> None:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            await store.add(a_tip())

    asyncio.run(add())
    with open_export(database.url) as export:
        (day,) = before = export.revisions()
        with export.day(day) as tips:
            assert tips.revision == before[day]
            add_tip(database)
            assert sum(batch.num_rows for batch in tips.batches("tip_scores")) == 1
            assert all(batch.schema == SCHEMAS["reactions"] for batch in tips.batches("reactions"))
        assert day == day_of(NOW)
        with export.day(day) as tips:
            assert tips.revision != before[day]
            assert sum(batch.num_rows for batch in tips.batches("tip_scores")) == 2
        with export.day(day - 1) as tips:
            assert tips.revision is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://tips:geheim@127.0.0.1:1/tips",
        "postgresql+asyncpg://tips:geheim@no-such-host.invalid/tips",
        "sqlite+aiosqlite:////no/such/folder/geheim.db",
    ],
)
def test_the_error_of_an_unreachable_database_has_no_secret(url: str) -> None:
    with pytest.raises(StorageUnavailable) as raised, open_export(url):
        pass
    assert "geheim" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_the_parameters_of_a_url_are_those_of_libpq() -> None:
    url = "postgresql+asyncpg://a%20b:p%40+'%5C@db/tips?ssl=require&prepared_statement_cache_size=5"
    assert libpq_parameters(make_url(url)) == (
        r"host='db' user='a b' password='p@+\'\\' dbname='tips' sslmode='require' connect_timeout='5'"
    )
    url = "postgresql+asyncpg://u@/tips?host=a:1&host=b:2"
    assert libpq_parameters(make_url(url)) == "host='a,b' port='1,2' user='u' dbname='tips' connect_timeout='5'"
