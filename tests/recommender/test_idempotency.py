"""Requests with an Idempotency-Key: one decision and the same answer, however often and wherever a request is sent."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ml.store.tips import open_tip_store
from tests.conftest import eventually
from tests.databases import Database
from tests.example_tips import WINDOW, SetClock
from tests.fake_serving import TIP_RESPONSE, FakeServing
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.store.rebuilt_counts import check_counts

BODY = {"user_id": "u-1", "signals": {"mood": "low", "energy": 3}}
TWO_VERSIONS = {"tip_prompt_version": "v1,v2-mentor"}


def ask(http: httpx.Client, key: str | None = "k-1", body: Any = BODY, **options: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key is not None else {}
    return http.post("/tips", json=body, headers=headers | options.pop("headers", {}), **options)


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].removeprefix("urn:tips:problem:")


def in_progress(answer: httpx.Response) -> bool:
    return problem(answer) == (409, "request-in-progress") and answer.headers["retry-after"] == "1"


class Gate:
    """Holds the answers of the fake serving until it is opened."""

    def __init__(self, serving: FakeServing) -> None:
        self.waiting = 0
        self.is_open = False
        serving.generate = self._generate

    async def _generate(self, request: Request) -> Response:
        self.waiting += 1
        while not self.is_open:  # noqa: ASYNC110 - it is opened in another thread
            await asyncio.sleep(0.01)
        version = (await request.json()).get("prompt_version", "v1")
        return JSONResponse(TIP_RESPONSE | {"prompt_version": version})


@contextmanager
def in_model_call(http: httpx.Client, gate: Gate, **options: Any) -> Iterator[Future[httpx.Response]]:
    """Yield the future answer to a request that waits for the model; the gate is opened at the end."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ask, http, **options)
        try:
            assert eventually(lambda: gate.waiting > 0)
            yield future
        finally:
            gate.is_open = True


def decisions(database: Database) -> set[str]:
    return {str(row["decision_id"]) for row in database.rows("SELECT decision_id FROM tip_scores")}


# POST /tips


def test_the_same_key_and_body_get_the_same_answer_from_both_recommenders_and_after_a_restart(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database, clock: SetClock
) -> None:
    both = [start_recommender(**TWO_VERSIONS), start_recommender(**TWO_VERSIONS)]
    first = ask(both[0])
    assert first.status_code == 200
    clock.go(hours=5)
    reordered = json.dumps(dict(reversed(BODY.items())), indent=3)
    repeated = [
        ask(both[0]),
        ask(both[1]),
        ask(both[1], '"k-1"'),
        ask(start_recommender(**TWO_VERSIONS)),
        both[0].post(
            "/tips", content=reordered, headers={"Idempotency-Key": "k-1", "content-type": "application/json"}
        ),
    ]
    assert {(answer.status_code, answer.content) for answer in repeated} == {(200, first.content)}
    assert len(fake_serving.generate_bodies) == database.count("tip_scores") == 1
    shown = [line for line in both[0].get("/metrics").text.splitlines() if line.startswith("tips_shown_total")]
    assert [line.split()[-1] for line in shown] == ["1.0"]
    assert ask(both[0], "k-2").json()["tip_id"] != first.json()["tip_id"]
    check_counts(database)


def test_another_body_with_the_same_key_is_a_422(
    recommender: httpx.Client, fake_serving: FakeServing, database: Database
) -> None:
    first = ask(recommender)
    for body in ({"user_id": "u-2"}, BODY | {"signals": {"mood": "low"}}):
        assert problem(ask(recommender, body=body)) == (422, "idempotency-key-reused")
    assert ask(recommender).content == first.content
    assert len(fake_serving.generate_bodies) == database.count("tip_scores") == 1


@ON_SQLITE
def test_a_body_that_is_refused_does_not_use_the_key(recommender: httpx.Client, database: Database) -> None:
    assert problem(ask(recommender, body={"user_id": ""})) == (422, "invalid-field")
    assert database.count("idempotency_keys") == 0
    assert ask(recommender).status_code == 200


def test_keys_of_other_callers_are_other_keys(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    http = start_recommender(api_keys="key-one,key-two")
    answers = [ask(http, headers={"Authorization": f"Bearer {key}"}) for key in ("key-one", "key-two", "key-one")]
    tips = [answer.json()["tip_id"] for answer in answers]
    assert tips[0] == tips[2] != tips[1]
    assert len(fake_serving.generate_bodies) == 2
    stored = str(database.rows("SELECT * FROM idempotency_keys"))
    assert "k-1" not in stored
    assert "key-" not in stored


def test_a_request_in_progress_is_a_409_on_both_recommenders(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    both = [start_recommender(), start_recommender()]
    gate = Gate(fake_serving)
    with in_model_call(both[0], gate) as first:
        assert all(in_progress(ask(http)) for http in both)
        assert problem(ask(both[1], body={"user_id": "u-2"})) == (422, "idempotency-key-reused")
    assert first.result().status_code == 200
    assert ask(both[1]).content == first.result().content
    assert gate.waiting == database.count("tip_scores") == 1


def test_of_racing_requests_one_is_executed(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    both = [start_recommender(), start_recommender()]
    with ThreadPoolExecutor(16) as pool:
        calls = [(both[number % 2], f"k-{number // 16}") for number in range(96)]
        answers = [*pool.map(lambda call: (call[1], ask(*call)), calls)]
    tips: dict[str, set[str]] = {}
    for key, answer in answers:
        if answer.status_code == 200:
            tips.setdefault(key, set()).add(answer.json()["tip_id"])
        else:
            assert in_progress(answer)
    assert len(tips) == 6
    assert {len(ids) for ids in tips.values()} == {1}
    assert len(fake_serving.generate_bodies) == database.count("tip_scores") == 6
    check_counts(database)


def test_an_error_releases_the_key_and_a_retry_keeps_what_was_drawn(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    both = [start_recommender(**TWO_VERSIONS), start_recommender(**TWO_VERSIONS)]
    for key in ("k-1", "k-2", "k-3", "k-4"):
        fake_serving.respond(lambda: Response(status_code=500))
        for number in range(6):
            assert problem(ask(both[number % 2], key)) == (502, "upstream-failed")
        (row,) = [row for row in database.rows("SELECT draw FROM idempotency_keys") if row["draw"] is not None]
        fake_serving.generate = None
        tip = ask(both[1], key).json()
        drawn = json.loads(row["draw"]) if isinstance(row["draw"], str) else row["draw"]
        assert [UUID(draw["tip_id"]) for draw in drawn] == [UUID(tip["tip_id"])]
        assert {body["prompt_version"] for body in fake_serving.generate_bodies} == {tip["prompt_version"]}
        fake_serving.generate_bodies.clear()
    assert database.count("tip_scores") == 4
    check_counts(database)


def test_a_retry_after_the_caller_has_disconnected_runs_at_once(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    http = start_recommender()
    Gate(fake_serving)
    with pytest.raises(httpx.ReadTimeout):
        ask(http, timeout=0.5)
    fake_serving.generate = None
    assert eventually(lambda: ask(http).status_code == 200, 30)
    assert database.count("tip_scores") == 1


@pytest.mark.parametrize("candidates", [1, 3])
def test_after_the_lease_a_retry_takes_over_and_the_first_attempt_stores_nothing(
    start_recommender: StartRecommender,
    fake_serving: FakeServing,
    database: Database,
    clock: SetClock,
    candidates: int,
) -> None:
    settings = {**TWO_VERSIONS, "tip_candidates": candidates, "generate_timeout_seconds": 30}
    both = [start_recommender(**settings), start_recommender(**settings)]
    gate = Gate(fake_serving)
    with in_model_call(both[0], gate) as first:
        assert eventually(lambda: gate.waiting == candidates)
        clock.go(seconds=39.9)
        assert in_progress(ask(both[1]))
        clock.go(seconds=0.2)
        drawn = [body["prompt_version"] for body in fake_serving.generate_bodies]
        fake_serving.generate = None
        taken_over = ask(both[1])
        assert taken_over.status_code == 200
    assert in_progress(first.result())
    assert ask(both[0]).content == ask(both[1]).content == taken_over.content
    assert sorted(body["prompt_version"] for body in fake_serving.generate_bodies[candidates:]) == sorted(drawn)
    assert (len(decisions(database)), database.count("tip_scores")) == (1, candidates)
    check_counts(database)


@ON_SQLITE
def test_the_lease_depends_on_the_time_that_the_caller_waits(
    start_recommender: StartRecommender, fake_serving: FakeServing, clock: SetClock
) -> None:
    http = start_recommender(generate_timeout_seconds=600)
    gate = Gate(fake_serving)
    with in_model_call(http, gate, headers={"X-Request-Timeout-Ms": "60000"}):
        clock.go(seconds=69.9)
        assert in_progress(ask(http))
        clock.go(seconds=0.2)
        fake_serving.generate = None
        assert ask(http).status_code == 200


def test_the_shown_one_of_several_candidates_is_answered_again(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    http = start_recommender(**TWO_VERSIONS, tip_candidates=3)
    first = ask(http)
    assert ask(http).content == first.content
    (row,) = database.rows("SELECT tip_id FROM tip_scores WHERE shown")
    assert UUID(str(row["tip_id"])) == UUID(first.json()["tip_id"])
    assert (database.count("tip_scores"), len(fake_serving.score_bodies)) == (3, 1)


def test_a_key_is_forgotten_after_24_hours(recommender: httpx.Client, database: Database, clock: SetClock) -> None:
    first = ask(recommender)
    for number in range(3):
        ask(recommender, f"other-{number}")
    clock.go(hours=23, minutes=59)
    assert ask(recommender).content == first.content
    assert database.count("idempotency_keys") == 4
    clock.go(minutes=1)
    second = ask(recommender, body={"user_id": "u-2"})
    assert second.json()["tip_id"] != first.json()["tip_id"]
    # The expired keys were deleted by the request.
    assert database.count("idempotency_keys") == 1
    assert ask(recommender, body={"user_id": "u-2"}).content == second.content


def test_forget_and_purge_remove_the_keys(recommender: httpx.Client, database: Database, clock: SetClock) -> None:
    def run(method: str, argument: Any) -> int:
        async def open_and_run() -> int:
            async with open_tip_store(database.url, clock, reaction_window=WINDOW) as store:
                removed: int = await getattr(store, method)(argument)
                return removed

        return asyncio.run(open_and_run())

    tips = {user: ask(recommender, user, {"user_id": user}).json()["tip_id"] for user in ("u-1", "u-2", "u-3")}
    for tip_id in tips.values():
        react(recommender, tip_id, "done", tip_id)
    assert database.count("idempotency_keys") == 6
    assert run("forget", "u-1") == 1
    assert database.count("idempotency_keys") == 4
    answer = ask(recommender, "u-1", {"user_id": "u-1"})
    assert answer.json()["tip_id"] not in tips.values()
    clock.go(hours=2)
    recent = ask(recommender, "recent")
    assert run("purge", clock.now) == 3
    assert database.count("idempotency_keys") == 1
    assert ask(recommender, "recent").content == recent.content


def test_a_request_that_is_forgotten_while_it_runs_stores_nothing(
    recommender: httpx.Client, fake_serving: FakeServing, database: Database, clock: SetClock
) -> None:
    async def forget() -> int:
        async with open_tip_store(database.url, clock, reaction_window=WINDOW) as store:
            return await store.forget("u-1")

    with in_model_call(recommender, Gate(fake_serving)) as first:
        assert asyncio.run(forget()) == 0
        assert database.count("idempotency_keys") == 0
    assert in_progress(first.result())
    assert database.count("tip_scores") == 0


@ON_SQLITE
@pytest.mark.parametrize("value", ["", '""', "two words", '"open', "x" * 256, "\xe9"])
def test_an_invalid_key_is_a_400_that_names_the_header(
    recommender: httpx.Client, fake_serving: FakeServing, value: str
) -> None:
    reaction = {"tip_id": str(UUID(int=7)), "reaction": "done"}
    for path, body in (("/tips", BODY), ("/reactions", reaction)):
        answer = recommender.post(path, json=body, headers=[(b"Idempotency-Key", value.encode("latin-1"))])
        assert problem(answer) == (400, "invalid-header")
        assert answer.json()["detail"].startswith("Idempotency-Key: should be 1 to 255 visible ASCII characters")
    assert not fake_serving.generate_bodies


@ON_SQLITE
def test_two_keys_are_a_400(recommender: httpx.Client) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert problem(recommender.post("/tips", json=BODY, headers=headers)) == (400, "invalid-header")


@ON_SQLITE
def test_openapi_describes_the_header_and_its_errors(recommender: httpx.Client) -> None:
    paths = recommender.get("/openapi.json").json()["paths"]
    for path in ("/tips", "/reactions"):
        operation = paths[path]["post"]
        (header,) = [item for item in operation["parameters"] if item["name"] == "Idempotency-Key"]
        assert (header["in"], header["required"], header["schema"]["type"]) == ("header", False, "string")
        assert {"400", "409", "422"} <= {*operation["responses"]}


# POST /reactions


def react(http: httpx.Client, tip_id: str, reaction: str, key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return http.post("/reactions", json={"tip_id": tip_id, "reaction": reaction}, headers=headers)


def test_a_reaction_that_is_sent_again_late_does_not_overturn_a_newer_one(
    start_recommender: StartRecommender, database: Database, clock: SetClock
) -> None:
    both = [start_recommender(), start_recommender()]
    tip_id = ask(both[0]).json()["tip_id"]
    first = react(both[0], tip_id, "helpful", "r-1")
    assert first.json() == {"tip_id": tip_id, "outcome": "recorded", "reaction": "helpful", "reward": 1.0}
    clock.go(minutes=1)
    assert react(both[1], tip_id, "dismissed", "r-2").json()["outcome"] == "recorded"
    clock.go(minutes=1)
    for http in both:
        repeated = react(http, tip_id, "helpful", "r-1")
        assert (repeated.status_code, repeated.content) == (200, first.content)
    assert database.rows("SELECT reaction FROM tip_scores") == [{"reaction": "dismissed"}]
    assert database.count("reactions") == 2
    metrics = both[0].get("/metrics").text
    assert 'tips_reactions_total{outcome="recorded",reaction="helpful"} 1.0' in metrics
    # Without the key it is a new reaction.
    assert react(both[0], tip_id, "helpful").json()["outcome"] == "recorded"
    check_counts(database)


def test_another_reaction_with_the_same_key_is_a_422(recommender: httpx.Client, database: Database) -> None:
    tip_id = ask(recommender).json()["tip_id"]
    assert react(recommender, tip_id, "helpful", "k-1").status_code == 200  # the key of the tip is another one
    assert problem(react(recommender, tip_id, "dismissed", "k-1")) == (422, "idempotency-key-reused")
    assert database.rows("SELECT reaction FROM tip_scores") == [{"reaction": "helpful"}]


def test_a_reaction_to_an_unknown_tip_does_not_use_the_key(recommender: httpx.Client, database: Database) -> None:
    unknown = str(UUID(int=7))
    for _ in range(2):
        assert problem(react(recommender, unknown, "done", "r-1")) == (404, "unknown-tip")
    assert database.count("idempotency_keys") == 0
    tip_id = ask(recommender).json()["tip_id"]
    assert react(recommender, tip_id, "done", "r-1").json()["outcome"] == "recorded"


def test_racing_reactions_with_the_same_keys_are_stored_once(
    start_recommender: StartRecommender, database: Database
) -> None:
    both = [start_recommender(), start_recommender()]
    tips = [ask(both[0], f"t-{number}").json()["tip_id"] for number in range(3)]
    kinds = ("helpful", "dismissed", "saved", "done")
    calls = [(both[number % 2], tips[number % 3], kinds[number % 4], f"r-{number % 12}") for number in range(120)]
    with ThreadPoolExecutor(12) as pool:
        answers = [*pool.map(lambda call: (call[3], react(*call)), calls)]
    results: dict[str, set[bytes]] = {}
    for key, answer in answers:
        assert answer.status_code == 200
        results.setdefault(key, set()).add(answer.content)
    assert {len(contents) for contents in results.values()} == {1}
    check_counts(database)
