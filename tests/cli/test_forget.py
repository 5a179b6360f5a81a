"""`tips forget`."""

from datetime import UTC, datetime
from pathlib import Path

from ml.features.online_store import replace_all
from ml.store.database import migrate_database
from tests.cli.commands import database_url, model_settings
from tests.online_stores import read_user
from tests.process import TIPS, run, service
from tests.upstream import Upstream


def test_the_data_of_one_user_is_deleted(upstream: Upstream, tmp_path: Path) -> None:
    settings = model_settings(upstream, DATABASE_URL=database_url(tmp_path))
    with service(**settings) as both:
        for user_id in ("one", "one", "two"):
            assert both.http.post("/tips", json={"user_id": user_id}).status_code == 200
        ended = run(TIPS, "forget", "one", **settings)
        assert (ended.returncode, ended.stdout) == (0, f"removed: 2 tips from {tmp_path}/tips.db\n")
        assert [variant["tips"] for variant in both.http.get("/rewards").json()["variants"]] == [1]
    ended = run(TIPS, "forget", "one", **settings)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"There is no data of the user 'one' in {tmp_path}/tips.db.\n"


def test_no_bytes_of_the_user_remain_in_the_online_store(tmp_path: Path) -> None:
    store = tmp_path / "features.db"
    settings = {"DATABASE_URL": database_url(tmp_path), "ONLINE_STORE_URL": f"sqlite:///{store}"}
    migrate_database(settings["DATABASE_URL"])
    replace_all(settings["ONLINE_STORE_URL"], [("forgotten-user", {"tips_7d": 1.0})], datetime.now(UTC))
    ended = run(TIPS, "forget", "forgotten-user", **settings)
    assert (ended.returncode, ended.stdout) == (
        0,
        f"removed: 0 tips from {tmp_path}/tips.db\nremoved: 1 aggregates from {store}\n",
    )
    assert b"forgotten-user" not in store.read_bytes()


def test_the_user_is_removed_from_redis(tmp_path: Path, redis_url: str) -> None:
    settings = {"DATABASE_URL": database_url(tmp_path), "ONLINE_STORE_URL": redis_url}
    migrate_database(settings["DATABASE_URL"])
    now = datetime.now(UTC)
    replace_all(redis_url, [("forgotten-user", {"tips_7d": 1.0}), ("u", {"tips_7d": 2.0})], now)
    ended = run(TIPS, "forget", "forgotten-user", **settings)
    assert (ended.returncode, ended.stdout) == (
        0,
        f"removed: 0 tips from {tmp_path}/tips.db\nremoved: 1 aggregates from {redis_url}\n",
    )
    assert read_user(redis_url, "forgotten-user", now).values == {}
    assert read_user(redis_url, "u", now).values == {"tips_7d": 2.0}


def test_while_redis_does_not_answer_nothing_is_removed(tmp_path: Path) -> None:
    settings = {"DATABASE_URL": database_url(tmp_path), "ONLINE_STORE_URL": "redis://:s3cret@127.0.0.1:1/0"}
    migrate_database(settings["DATABASE_URL"])
    ended = run(TIPS, "forget", "u", **settings)
    assert ended.returncode == 1
    assert ended.stderr == (
        "ONLINE_STORE_URL: redis://127.0.0.1:1/0 does not answer, or cannot be written; nothing is removed.\n"
    )


def test_without_the_file_of_the_online_store_nothing_is_removed(tmp_path: Path) -> None:
    settings = {"DATABASE_URL": database_url(tmp_path), "ONLINE_STORE_URL": f"sqlite:///{tmp_path}/missing/features.db"}
    migrate_database(settings["DATABASE_URL"])
    ended = run(TIPS, "forget", "u", **settings)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"ONLINE_STORE_URL: {tmp_path}/missing/features.db is not an online feature store; `tips features materialize` "
        "creates one; nothing is removed.\n"
    )
    assert not (tmp_path / "missing").exists()
