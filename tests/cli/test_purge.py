"""`tips purge`."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ml.store.database import migrate_database
from ml.store.tips import open_tip_store
from tests.cli.commands import database_url
from tests.example_tips import WINDOW, a_tip
from tests.process import TIPS, run


async def store_tips(url: str, *ages: timedelta) -> None:
    now = datetime.now(UTC)
    async with open_tip_store(url, lambda: now, reaction_window=WINDOW) as store:
        await store.add(*(a_tip(created_at=now - age) for age in ages))


def test_tips_older_than_the_age_are_deleted_and_others_are_kept(tmp_path: Path) -> None:
    url = database_url(tmp_path)
    migrate_database(url)
    asyncio.run(store_tips(url, timedelta(days=3), timedelta(days=2), timedelta(hours=20)))
    ended = run(TIPS, "purge", "--older-than", "36h", DATABASE_URL=url)
    assert (ended.returncode, ended.stdout) == (0, f"removed: 2 tips from {tmp_path}/tips.db\n")
    ended = run(TIPS, "purge", "--older-than", "1d", DATABASE_URL=url)
    assert (ended.returncode, ended.stdout) == (0, f"removed: 0 tips from {tmp_path}/tips.db\n")


def test_a_wrong_age_is_refused() -> None:
    ended = run(TIPS, "purge", "--older-than", "90", COLUMNS="200")
    assert ended.returncode == 2
    assert "should be a number of days or hours, such as 90d or 36h" in ended.stderr
