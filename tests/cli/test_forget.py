"""`tips forget`."""

from datetime import UTC, datetime
from pathlib import Path

from ml.features.online_store import replace_all
from ml.store.database import migrate_database
from tests.cli.commands import database_url, model_settings
from tests.process import TIPS, run, service
from tests.upstream import Upstream


def test_the_data_of_one_user_is_deleted(upstream: Upstream, tmp_path: Path) -> None:
    settings = model_settings(upstream, DATABASE_URL=database_url(tmp_path))
    with service(**settings) as both:
        for user_id in ("one", "one", "two"):
            assert both.http.post("/tips", json={"user_id": user_id}).status_code == 200
        ended = run(TIPS, "forget", "one", **settings)
        assert (ended.returncode, ended.stdout) == (0, "removed: 2 tips\n")
        assert [variant["tips"] for variant in both.http.get("/rewards").json()["variants"]] == [1]
    assert run(TIPS, "forget", "two", **settings).stdout == "removed: 1 tips\n"


def test_no_bytes_of_the_user_remain_in_the_online_store(tmp_path: Path) -> None:
    store = tmp_path / "features.db"
    settings = {"DATABASE_URL": database_url(tmp_path), "ONLINE_STORE_URL": f"sqlite:///{store}"}
    migrate_database(settings["DATABASE_URL"])
    replace_all(settings["ONLINE_STORE_URL"], [("forgotten-user", {"tips_7d": 1.0})], datetime.now(UTC))
    ended = run(TIPS, "forget", "forgotten-user", **settings)
    assert (ended.returncode, ended.stdout) == (0, "removed: 0 tips\n")
    assert b"forgotten-user" not in store.read_bytes()


def test_an_online_store_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    settings = {"DATABASE_URL": database_url(tmp_path), "ONLINE_STORE_URL": f"sqlite:///{tmp_path}/missing/features.db"}
    migrate_database(settings["DATABASE_URL"])
    ended = run(TIPS, "forget", "u", **settings)
    assert ended.returncode == 1
    assert ended.stderr == "ONLINE_STORE_URL: the file cannot be written; 0 tips are removed.\n"
