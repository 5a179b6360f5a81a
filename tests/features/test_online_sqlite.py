"""The online store in an SQLite file: what only a file can show."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ml.features.online_store import (
    OnlineStoreUnavailable,
    check_online_store,
    forget_user,
    open_online_store,
    replace_all,
)
from tests.online_stores import read_user

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
VALUES = {"reward_rate_30d": 0.25, "tips_7d": 3.0}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/features.db"


def test_no_bytes_of_a_forgotten_user_remain(url: str) -> None:
    replace_all(url, [("forgotten-user", VALUES), ("u", VALUES)], NOW)
    forget_user(url, "forgotten-user")
    assert read_user(url, "u", NOW).values == VALUES
    files = Path(url.removeprefix("sqlite:///")).parent.iterdir()
    assert not any(b"forgotten-user" in file.read_bytes() for file in files)


@pytest.mark.parametrize("name", ["text", "missing"])
def test_a_file_that_is_not_a_store_is_refused_when_it_is_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "text").write_text("not a database")
    url = f"sqlite:///{tmp_path}/{name}"
    sentence = rf"^{tmp_path}/{name} is not an online feature store; `tips features materialize` creates one$"
    with pytest.raises(OnlineStoreUnavailable, match=sentence):
        check_online_store(url)
    with pytest.raises(OnlineStoreUnavailable, match=sentence):
        read_user(url, "u", NOW)
    assert not (tmp_path / "missing").exists()


def test_a_store_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OnlineStoreUnavailable, match=rf"^{tmp_path}/missing/features.db cannot be written$"):
        replace_all(f"sqlite:///{tmp_path}/missing/features.db", [("u", VALUES)], NOW)


def test_a_store_that_fails_while_it_is_read_says_so(url: str) -> None:
    replace_all(url, [("u", VALUES)], NOW)

    async def read_after_closing() -> None:
        async with open_online_store(url) as store:
            pass
        with pytest.raises(OnlineStoreUnavailable, match=r"features.db cannot be read$"):
            await store.read("u", NOW)

    asyncio.run(read_after_closing())
