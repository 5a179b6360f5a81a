"""`tips features`, on a database with tips of simulated users."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.online_stores import read_user
from tests.process import TIPS, run


def test_the_aggregates_of_every_user_are_written_and_forgotten_with_the_user(
    settings: Mapping[str, str], tmp_path: Path
) -> None:
    ended = run(TIPS, "features", "materialize", **settings)
    assert ended.returncode == 0, ended.stderr
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with closing(sqlite3.connect(tmp_path / "tips.db")) as connection:
        (user_id, tips), *_ = connection.execute(
            "select user_id, count(*) from tip_scores where shown and created_at < datetime('now', 'start of day')"
            " and created_at >= datetime('now', 'start of day', '-7 days') group by user_id order by 2 desc"
        ).fetchall()
        ((users,),) = connection.execute(
            "select count(distinct user_id) from tip_scores"
            " where shown and created_at < datetime('now', 'start of day')"
        )
    assert ended.stdout == (
        f"written: {users} users of {tmp_path}/tips.db to {tmp_path}/features.db, as of {midnight:%Y-%m-%d %H:%M} UTC\n"
    )
    aggregates = read_user(settings["ONLINE_STORE_URL"], user_id, datetime.now(UTC)).values
    assert aggregates["tips_7d"] == tips
    assert 0 <= aggregates["reward_rate_30d"] <= 1
    assert run(TIPS, "forget", user_id, **settings).returncode == 0
    assert read_user(settings["ONLINE_STORE_URL"], user_id, datetime.now(UTC)).values == {}
    earlier = run(TIPS, "features", "materialize", "--day", f"{midnight - timedelta(days=4):%Y-%m-%d}", **settings)
    assert f"as of {midnight - timedelta(days=3):%Y-%m-%d} 00:00 UTC" in earlier.stdout


def test_a_day_that_has_not_ended_is_refused(settings: Mapping[str, str]) -> None:
    ended = run(TIPS, "features", "materialize", "--day", f"{datetime.now(UTC):%Y-%m-%d}", **settings)
    assert ended.returncode == 2
    assert "has not ended" in ended.stderr


def test_a_missing_online_store_url_is_reported(settings: Mapping[str, str]) -> None:
    ended = run(TIPS, "features", "materialize", **{**settings, "ONLINE_STORE_URL": ""})
    assert ended.returncode == 1
    assert ended.stderr == "ONLINE_STORE_URL: must name the store, such as sqlite:///features.db.\n"


def test_an_online_store_that_cannot_be_written_is_reported(settings: Mapping[str, str]) -> None:
    ended = run(TIPS, "features", "materialize", **{**settings, "ONLINE_STORE_URL": "sqlite:////no/such/folder/f.db"})
    assert (ended.returncode, ended.stderr) == (1, "ONLINE_STORE_URL: /no/such/folder/f.db cannot be written.\n")
