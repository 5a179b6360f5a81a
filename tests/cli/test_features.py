"""`tips features`, on a database with tips of simulated users."""

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from ml.features.online_store import open_online_store
from tests.process import TIPS, run


def test_the_aggregates_of_every_user_are_written_and_forgotten_with_the_user(
    settings: Mapping[str, str], tmp_path: Path
) -> None:
    ended = run(TIPS, "features", **settings)
    assert ended.returncode == 0, ended.stderr
    with closing(sqlite3.connect(tmp_path / "tips.db")) as connection:
        (user_id, tips), *_ = connection.execute(
            "select user_id, count(*) from tip_scores where shown and created_at > datetime('now', '-7 days')"
            " group by user_id order by 2 desc"
        ).fetchall()
        ((users,),) = connection.execute("select count(distinct user_id) from tip_scores")
    assert ended.stdout == f"written: {users} users of {tmp_path}/tips.db to {tmp_path}/features.db\n"
    with open_online_store(settings["ONLINE_STORE_URL"]) as store:
        aggregates = asyncio.run(store.read(user_id, datetime.now(UTC)))
        assert aggregates["tips_7d"] == tips
        assert 0 <= aggregates["reward_rate_30d"] <= 1
        assert run(TIPS, "forget", user_id, **settings).returncode == 0
        assert asyncio.run(store.read(user_id, datetime.now(UTC))) == {}


def test_a_missing_online_store_url_is_reported(settings: Mapping[str, str]) -> None:
    ended = run(TIPS, "features", **{**settings, "ONLINE_STORE_URL": ""})
    assert ended.returncode == 1
    assert ended.stderr == "ONLINE_STORE_URL: must name the store to write, such as sqlite:///features.db.\n"


def test_an_online_store_that_cannot_be_written_is_reported(settings: Mapping[str, str]) -> None:
    ended = run(TIPS, "features", **{**settings, "ONLINE_STORE_URL": "sqlite:////no/such/folder/f.db"})
    assert (ended.returncode, ended.stderr) == (1, "ONLINE_STORE_URL: /no/such/folder/f.db cannot be written.\n")
