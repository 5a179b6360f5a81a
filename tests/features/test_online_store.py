"""The online feature store, in a real SQLite file."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ml.features.definitions import AGGREGATES
from ml.features.online_store import OnlineStoreUnavailable, forget_user, open_online_store, replace_all

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
VALUES = {"reward_rate_30d": 0.25, "tips_7d": 3.0}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/features.db"


def read(url: str, user_id: str, now: datetime = NOW) -> dict[str, float]:
    with open_online_store(url) as store:
        return asyncio.run(store.read(user_id, now))


def test_stored_aggregates_of_a_user_are_read(url: str) -> None:
    assert replace_all(url, [("u", VALUES), ("o'; DROP TABLE x", {"tips_7d": 1.0})], NOW) == 2
    assert read(url, "u") == VALUES
    assert read(url, "o'; DROP TABLE x") == {"tips_7d": 1.0}
    assert read(url, "unknown") == {}


@pytest.mark.parametrize("feature", AGGREGATES)
def test_a_value_older_than_its_maximal_age_is_missing(url: str, feature: str) -> None:
    replace_all(url, [("u", VALUES)], NOW)
    max_age = AGGREGATES[feature].max_age
    assert feature in read(url, "u", NOW + max_age)
    assert feature not in read(url, "u", NOW + max_age + timedelta(seconds=1))


def test_an_open_store_reads_the_new_batch_after_it_was_replaced(url: str) -> None:
    replace_all(url, [("removed", VALUES), ("kept", VALUES)], NOW)
    with open_online_store(url) as store:
        replace_all(url, [("kept", {"tips_7d": 9.0})], NOW)
        assert asyncio.run(store.read("kept", NOW)) == {"tips_7d": 9.0}
        assert asyncio.run(store.read("removed", NOW)) == {}


def test_a_failed_batch_leaves_the_old_values(url: str) -> None:
    replace_all(url, [("u", VALUES)], NOW)
    with pytest.raises(KeyError, match="shoe_size"):
        replace_all(url, [("v", VALUES), ("w", {"shoe_size": 43.0})], NOW)
    assert read(url, "u") == VALUES
    assert read(url, "v") == {}


def test_no_bytes_of_a_forgotten_user_remain(url: str) -> None:
    replace_all(url, [("forgotten-user", VALUES), ("u", VALUES)], NOW)
    forget_user(url, "forgotten-user")
    assert read(url, "forgotten-user") == {}
    assert read(url, "u") == VALUES
    files = Path(url.removeprefix("sqlite:///")).parent.iterdir()
    assert not any(b"forgotten-user" in file.read_bytes() for file in files)


@pytest.mark.parametrize("name", ["text", "missing"])
def test_a_file_that_is_not_a_store_is_refused_when_it_is_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "text").write_text("not a database")
    with (
        pytest.raises(
            OnlineStoreUnavailable,
            match=rf"^{tmp_path}/{name} is not an online feature store; `tips features` creates one$",
        ),
        open_online_store(f"sqlite:///{tmp_path}/{name}"),
    ):
        pass
    assert not (tmp_path / "missing").exists()


def test_a_store_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OnlineStoreUnavailable, match=rf"^{tmp_path}/missing/features.db cannot be written$"):
        replace_all(f"sqlite:///{tmp_path}/missing/features.db", [("u", VALUES)], NOW)


def test_a_store_that_fails_while_it_is_read_returns_no_aggregates(url: str) -> None:
    replace_all(url, [("u", VALUES)], NOW)
    with open_online_store(url) as store:
        pass
    assert asyncio.run(store.read("u", NOW)) == {}


def test_without_a_url_every_aggregate_is_missing() -> None:
    with open_online_store(None) as store:
        assert asyncio.run(store.read("u", NOW)) == {}
