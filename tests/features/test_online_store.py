"""What was computed of people beforehand, in a real SQLite file."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ml.features import online_store as store
from ml.features.definitions import AGGREGATES
from ml.features.online_store import OnlineStoreUnavailable, SQLiteOnlineStore

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
KNOWN = {"reward_rate_30d": 0.25, "tips_7d": 3.0}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/features.db"


def read(url: str, user_id: str, now: datetime = NOW) -> dict[str, float]:
    reader = SQLiteOnlineStore.open(url)
    try:
        return asyncio.run(reader.read(user_id, now))
    finally:
        reader.close()


def test_what_was_written_of_a_person_is_read(url: str) -> None:
    assert store.replace(url, [("u", KNOWN), ("o'; DROP TABLE x", {"tips_7d": 1.0})], NOW) == 2
    assert read(url, "u") == KNOWN
    assert read(url, "o'; DROP TABLE x") == {"tips_7d": 1.0}
    assert read(url, "nobody") == {}


@pytest.mark.parametrize("feature", AGGREGATES)
def test_a_stale_value_is_missing_and_not_served(url: str, feature: str) -> None:
    store.replace(url, [("u", KNOWN)], NOW)
    good_for = AGGREGATES[feature].good_for
    assert feature in read(url, "u", NOW + good_for)
    assert feature not in read(url, "u", NOW + good_for + timedelta(seconds=1))


def test_a_new_batch_takes_the_place_of_the_old_one_while_somebody_reads(url: str) -> None:
    store.replace(url, [("gone", KNOWN), ("stays", KNOWN)], NOW)
    reader = SQLiteOnlineStore.open(url)
    store.replace(url, [("stays", {"tips_7d": 9.0})], NOW)
    assert asyncio.run(reader.read("stays", NOW)) == {"tips_7d": 9.0}
    assert asyncio.run(reader.read("gone", NOW)) == {}
    reader.close()


def test_a_batch_that_fails_leaves_the_old_values(url: str) -> None:
    store.replace(url, [("u", KNOWN)], NOW)
    with pytest.raises(KeyError, match="shoe_size"):
        store.replace(url, [("v", KNOWN), ("w", {"shoe_size": 43.0})], NOW)
    assert read(url, "u") == KNOWN
    assert read(url, "v") == {}


def test_a_forgotten_person_leaves_no_bytes(url: str) -> None:
    store.replace(url, [("somebody-secret", KNOWN), ("u", KNOWN)], NOW)
    store.forget(url, "somebody-secret")
    assert read(url, "somebody-secret") == {}
    assert read(url, "u") == KNOWN
    files = Path(url.removeprefix("sqlite:///")).parent.iterdir()
    assert not any(b"somebody-secret" in file.read_bytes() for file in files)


def test_a_file_that_is_no_store_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database")
    for name in ("text", "missing"):
        with pytest.raises(OnlineStoreUnavailable, match="is no store of features; `tips features` makes one"):
            SQLiteOnlineStore.open(f"sqlite:///{tmp_path}/{name}")
    assert not (tmp_path / "missing").exists()


def test_a_store_that_fails_while_it_is_read_knows_nothing(url: str) -> None:
    store.replace(url, [("u", KNOWN)], NOW)
    reader = SQLiteOnlineStore.open(url)
    reader.close()
    assert asyncio.run(reader.read("u", NOW)) == {}
