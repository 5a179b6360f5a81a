"""A database that is locked, full or unreachable: a 503, nothing stored partially, and no restart needed afterwards."""

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from ml.platform.errors import StorageUnavailable
from ml.store import database as database_module
from ml.store.reactions import Reaction
from ml.store.tip_records import TipRecord
from ml.store.tips import open_tip_store
from tests.conftest import eventually
from tests.databases import Database, on_server
from tests.example_tips import WINDOW, SetClock, a_tip
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.store.rebuilt_counts import check_counts

ON_POSTGRESQL = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


def ask(http: httpx.Client) -> httpx.Response:
    return http.post("/tips", json={"user_id": "u-1"})


def unavailable(answer: httpx.Response) -> bool:
    if answer.status_code != 503:
        return False
    assert answer.json()["type"] == "urn:tips:problem:storage-unavailable"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    return True


@ON_SQLITE
def test_a_locked_database_is_a_503_until_it_is_unlocked(
    monkeypatch: pytest.MonkeyPatch, start_recommender: StartRecommender, database: Database
) -> None:
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT_SECONDS", 0.2)
    http = start_recommender()
    tip_id = ask(http).json()["tip_id"]
    reaction = {"tip_id": tip_id, "reaction": "done"}
    with closing(sqlite3.connect(database.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert unavailable(ask(http))
        assert unavailable(http.post("/reactions", json=reaction))
        assert http.get("/rewards").status_code == 200
        other.execute("ROLLBACK")
    assert (database.count("tip_scores"), database.count("reactions")) == (1, 0)
    assert ask(http).status_code == 200
    assert http.post("/reactions", json=reaction).json()["outcome"] == "recorded"
    check_counts(database)


@ON_SQLITE
def test_a_full_database_stores_nothing_of_an_operation_that_does_not_fit(database: Database) -> None:
    async def run() -> None:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:

            def limit(connection: Any, *_: Any) -> None:
                pages = "(SELECT page_count FROM pragma_page_count)" if full else "1073741823"
                (max_pages,) = connection.execute(f"SELECT {pages}").fetchone()
                connection.execute(f"PRAGMA max_page_count = {max_pages}")

            event.listen(store.database.engine.sync_engine, "checkout", limit)
            full = False
            await store.add(tip := a_tip())
            await store.react([Reaction(tip.tip_id, "saved")])
            full = True
            with pytest.raises(StorageUnavailable):
                await store.add(a_tip(tip="x" * 100_000))
            full = False
            await store.add(a_tip(tip="x" * 100_000))

    asyncio.run(run())
    assert (database.count("tip_scores"), database.count("reactions")) == (2, 1)
    check_counts(database)


@ON_POSTGRESQL
def test_connections_are_reopened_after_they_were_cut_or_refused(
    start_recommender: StartRecommender, database: Database
) -> None:
    http = start_recommender()
    stored = [ask(http).json()["tip_id"]]
    for refuse in (False, True):
        if refuse:
            on_server(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
        on_server(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database.name}'")
        if refuse:
            for answer in (ask(http), http.get("/rewards"), http.get("/health/ready")):
                assert unavailable(answer)
            assert http.get("/health/live").status_code == 200
            on_server(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true")

        def is_available() -> bool:
            answer = ask(http)
            assert answer.status_code == 200 or unavailable(answer)
            if answer.status_code == 200:
                stored.append(answer.json()["tip_id"])
            return answer.status_code == 200

        assert eventually(is_available, 30)
    assert {str(row["tip_id"]) for row in database.rows("SELECT tip_id FROM tip_scores")} == set(stored)
    check_counts(database)


def test_tips_that_cannot_be_stored_do_not_fail_the_other_tips(database: Database) -> None:
    async def run() -> list[Any]:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            duplicate = a_tip()
            tips: list[TipRecord] = [duplicate, a_tip(), duplicate, a_tip(prompt_version=None), a_tip()]
            return await asyncio.gather(*(store.add(tip) for tip in tips), return_exceptions=True)

    outcomes = asyncio.run(run())
    assert [outcome is None for outcome in outcomes] == [True, True, False, False, True]
    assert database.count("tip_scores") == 3
    check_counts(database)


@ON_POSTGRESQL
def test_a_text_that_the_database_refuses_does_not_fail_the_other_tips(database: Database) -> None:
    async def run() -> list[Any]:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            tips = [a_tip(), a_tip(user_id="a\x00b"), a_tip(user_id="x" * 129), a_tip()]
            return await asyncio.gather(*(store.add(tip) for tip in tips), return_exceptions=True)

    outcomes = asyncio.run(run())
    assert [outcome is None for outcome in outcomes] == [True, False, False, True]
    assert database.count("tip_scores") == 2


def test_an_invalid_segment_is_not_a_failure_of_the_database(recommender: httpx.Client) -> None:
    for segment in ("%00", "mood:%00low", "%ED%A0%80", "'"):
        answer = recommender.get(f"/rewards?segment={segment}")
        assert answer.status_code in {200, 422}, answer.text


def test_more_concurrent_reactions_than_one_statement_may_have_are_all_stored(database: Database) -> None:
    async def run() -> None:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            tips = [a_tip(segments=(), options={"v1": 1.0}) for _ in range(70 * 500)]
            for start in range(0, len(tips), 5000):
                await asyncio.gather(*(store.add(tip) for tip in tips[start : start + 5000]))
            first = asyncio.create_task(store.react([Reaction(tips[0].tip_id, "done")]))
            batches = [[Reaction(tip.tip_id, "done") for tip in tips[at : at + 500]] for at in range(0, len(tips), 500)]
            answers = await asyncio.gather(first, *(store.react(batch) for batch in batches))
            assert sum(len(answer) for answer in answers) == len(tips) + 1

    asyncio.run(run())
    assert database.count("reactions") == 70 * 500
