"""`tips recount`."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ml.store.database import migrate_database
from ml.store.tips import open_tip_store
from tests.cli.commands import database_url
from tests.example_tips import WINDOW, a_tip
from tests.process import TIPS, run


async def store_tips(url: str, n: int) -> None:
    now = datetime.now(UTC)
    async with open_tip_store(url, lambda: now, reaction_window=WINDOW) as store:
        await store.add(*(a_tip(created_at=now - timedelta(hours=hour)) for hour in range(n)))


def test_another_reaction_window_stops_commands_until_the_tips_are_counted_again(tmp_path: Path) -> None:
    url = database_url(tmp_path)
    migrate_database(url)
    asyncio.run(store_tips(url, 3))
    settings = {"DATABASE_URL": url, "REACTION_WINDOW_HOURS": "36"}
    ended = run(TIPS, "purge", "--older-than", "90d", **settings)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "REACTION_WINDOW_HOURS: is 36, but the stored tips were counted with 24; "
        "set it back, or stop all recommenders and run `tips recount`.\n"
    )
    ended = run(TIPS, "recount", **settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == (
        f"counted: 3 tips and 0 failed generations of {tmp_path}/tips.db, with a reaction window of 36 hours\n"
    )
    assert run(TIPS, "purge", "--older-than", "90d", **settings).returncode == 0


def test_draws_of_purged_hours_with_another_window_are_removed_and_named(tmp_path: Path) -> None:
    url = database_url(tmp_path)
    migrate_database(url)
    asyncio.run(store_tips(url, 5))
    assert run(TIPS, "purge", "--older-than", "2h", DATABASE_URL=url).returncode == 0
    assert "removed:" not in run(TIPS, "recount", DATABASE_URL=url).stdout
    ended = run(TIPS, "recount", DATABASE_URL=url, REACTION_WINDOW_HOURS="36")
    assert "removed: the draws of 2 purged hours, which were counted with another window" in ended.stdout
