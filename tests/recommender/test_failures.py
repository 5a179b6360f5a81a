"""Generations that fail: each is stored under the prompt version that was drawn, so that none is lost by version."""

import asyncio
import json
import sqlite3
import threading
from contextlib import closing
from itertools import count
from typing import Any
from uuid import UUID

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.conftest import eventually
from tests.databases import Database, Row
from tests.fake_serving import TIP_RESPONSE, FakeServing, hang
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.store.rebuilt_counts import check_counts

BODY = {"user_id": "u-1", "signals": {"mood": "low"}}
UNUSABLE = {"type": "urn:tips:problem:unusable-tip", "detail": "No tip."}


def failures(database: Database) -> list[Row]:
    rows = database.rows("SELECT * FROM generation_failures ORDER BY tip_id")
    for row in rows:
        row["options"] = json.loads(row["options"])
    return rows


def outcomes(database: Database) -> dict[tuple[str, str], int]:
    """Return the number of draws by drawn version and outcome, from the counters."""
    rows = database.rows("SELECT * FROM draw_hours WHERE segment = 'mood:low' AND tips > 0")
    return {(row["prompt_version"], row["outcome"]): row["tips"] for row in rows}


def test_a_failed_generation_is_stored_and_counted_under_the_drawn_version(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    fake_serving.respond(lambda: JSONResponse(UNUSABLE, 502))
    answer = start_recommender(tip_prompt_version="v1,v2-mentor").post("/tips", json=BODY)
    assert (answer.status_code, answer.json()["type"]) == (502, "urn:tips:problem:unusable-tip")
    (row,) = failures(database)
    drawn = fake_serving.generate_bodies[0]["prompt_version"]
    assert (row["prompt_version_asked"], row["error"], row["user_id"]) == (drawn, "unusable-tip", "u-1")
    assert (row["options"], row["probability"]) == ({"v1": 0.5, "v2-mentor": 0.5}, 0.5)
    assert row["decision_id"] == row["tip_id"]
    assert outcomes(database) == {(drawn, "failed"): 1}
    assert database.count("tip_scores") == 0
    check_counts(database)


def test_candidates_that_fail_are_stored_with_the_decision(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    numbers = count(1)

    async def generate(request: Request) -> Response:
        if next(numbers) == 1:
            return JSONResponse(UNUSABLE, 502)
        return JSONResponse(TIP_RESPONSE | {"prompt_version": (await request.json())["prompt_version"]})

    fake_serving.generate = generate
    http = start_recommender(tip_prompt_version="v1,v2-mentor", tip_candidates=3)
    http.post("/tips", json=BODY).raise_for_status()
    (row,) = failures(database)
    tips = database.rows("SELECT decision_id FROM tip_scores")
    assert [UUID(str(tip["decision_id"])) for tip in tips] == [UUID(str(row["decision_id"]))] * 2
    assert sum(number for (_, outcome), number in outcomes(database).items() if outcome == "failed") == 1
    assert sum(outcomes(database).values()) == 3
    check_counts(database)


@ON_SQLITE
def test_a_generation_whose_caller_disconnects_is_stored(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    fake_serving.generate = hang
    http = start_recommender(tip_prompt_version="v1,v2-mentor", tip_candidates=2)

    async def hang_up() -> None:
        async with httpx.AsyncClient(base_url=http.base_url) as caller:
            request = asyncio.create_task(caller.post("/tips", json=BODY))
            while len(fake_serving.generate_bodies) < 2:  # noqa: ASYNC110 - both requests are with the model
                await asyncio.sleep(0.01)
            request.cancel()

    asyncio.run(hang_up())
    assert eventually(lambda: len(failures(database)) == 2, 30)
    assert {row["error"] for row in failures(database)} == {"disconnected"}
    check_counts(database)


@ON_SQLITE
@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "a-key"}], ids=["without a key", "with a key"])
def test_a_caller_that_disconnects_while_its_tip_is_stored_leaves_a_tip_or_a_failure(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database, key: dict[str, str]
) -> None:
    http = start_recommender(tip_prompt_version="v1,v2-mentor")
    generated = threading.Event()

    async def generate(request: Request) -> Response:
        # From here on the database is locked, so that the tip cannot be stored while the caller waits.
        blocker.execute("BEGIN IMMEDIATE")
        generated.set()
        return JSONResponse(TIP_RESPONSE | {"prompt_version": (await request.json())["prompt_version"]})

    async def hang_up() -> None:
        async with httpx.AsyncClient(base_url=http.base_url) as caller:
            request = asyncio.create_task(caller.post("/tips", json=BODY, headers=key))
            await asyncio.to_thread(generated.wait, 30)
            await asyncio.sleep(0.5)
            request.cancel()

    with closing(sqlite3.connect(database.file, check_same_thread=False, isolation_level=None)) as blocker:
        fake_serving.generate = generate
        asyncio.run(hang_up())
        blocker.execute("ROLLBACK")
    assert eventually(lambda: sum(outcomes(database).values()) == 1, 30)
    fake_serving.generate = None
    assert http.post("/tips", json=BODY).status_code == 200
    assert database.count("tip_scores") + len(failures(database)) == sum(outcomes(database).values()) == 2
    check_counts(database)


def test_a_retry_with_its_key_replaces_the_failure_by_the_tip(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    http = start_recommender(tip_prompt_version="v1,v2-mentor")
    fake_serving.respond(lambda: JSONResponse(UNUSABLE, 502))
    key = {"Idempotency-Key": "a-key"}
    for _ in range(2):
        assert http.post("/tips", json=BODY, headers=key).status_code == 502
        assert len(failures(database)) == 1
    fake_serving.generate = None
    answer = http.post("/tips", json=BODY, headers=key)
    assert answer.status_code == 200
    assert failures(database) == []
    assert outcomes(database) == {(answer.json()["prompt_version"], "comparable"): 1}
    check_counts(database)


@ON_SQLITE
@pytest.mark.parametrize("answers", [{"tip_candidates": 1}, {"tip_candidates": 2}])
def test_a_failure_that_cannot_be_stored_does_not_hide_the_error(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database, answers: dict[str, Any]
) -> None:
    fake_serving.respond(lambda: JSONResponse(UNUSABLE, 502))
    http = start_recommender(**answers)
    with sqlite3.connect(database.file) as connection:
        connection.execute("DROP TABLE generation_failures")
    answer = http.post("/tips", json=BODY)
    assert (answer.status_code, answer.json()["type"]) == (502, "urn:tips:problem:unusable-tip")
