"""Versions in shadow: what they get, what is stored, what bounds them, and that no response waits for them."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ml.recommender import shadow_runner
from ml.recommender.app import create_app
from ml.recommender.rollout_selection import Holdout
from ml.recommender.settings import RecommenderSettings
from ml.serving.prompts import PROMPTS
from tests.conftest import Serve, becomes_ready, eventually
from tests.databases import Database, Row
from tests.example_tips import DIGEST, NOW
from tests.fake_serving import TIP_RESPONSE, FakeServing, hang, ranking
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.recommender.test_rollout_selection import OTHER_DIGEST, ask
from tests.rollout_events import append_to, move
from tests.upstream import TIP, Upstream

SETTINGS: dict[str, Any] = {"tip_prompt_policy": "rollout", "rollout_shadow_share": 1.0}
CHAMPION = move("v1", "champion")
SHADOW = move("v2-mentor", "shadow", action="start")
POLICY = "aaaaaaaaaaaa"
UNUSABLE = {"type": "urn:tips:problem:unusable-tip", "detail": "No tip."}
FAILURE = JSONResponse(UNUSABLE, 502)
BUSY = JSONResponse({"type": "urn:tips:problem:busy", "detail": "Busy."}, 503)
CHANGED = JSONResponse(TIP_RESPONSE | {"prompt_version": "v2-mentor", "prompt_digest": OTHER_DIGEST})


def shadows(database: Database, table: str = "shadow_tips") -> list[Row]:
    return database.rows(f"SELECT * FROM {table}")


def outcomes(http: httpx.Client) -> dict[tuple[str, str], float]:
    """Return the metric of versions in shadow, by kind and outcome."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    (family,) = [family for family in families if family.name == "tips_shadow"]
    return {
        (sample.labels["kind"], sample.labels["outcome"]): sample.value
        for sample in family.samples
        if sample.name == "tips_shadow_total"
    }


def ends(http: httpx.Client, outcome: str, kind: str = "prompt", times: int = 1) -> bool:
    """Wait until versions in shadow have ended with an outcome that often."""
    return eventually(lambda: outcomes(http).get((kind, outcome)) == times, 30)


def of_version(fake_serving: FakeServing, version: str, respond: Callable[[], Response]) -> None:
    """Have serving respond to requests for one version in its own way, and to others with a tip."""

    async def generate(request: Request) -> Response:
        asked = (await request.json())["prompt_version"]
        return respond() if asked == version else JSONResponse(TIP_RESPONSE | {"prompt_version": asked})

    fake_serving.generate = generate


def test_a_shadow_tip_is_stored_next_to_the_live_one(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    append_to(database, CHAMPION, SHADOW)
    http = start_recommender(**SETTINGS)
    tip = ask(http, locale="de")
    assert tip["prompt_version"] == "v1"
    assert eventually(lambda: bool(shadows(database)), 30)
    (row,) = shadows(database)
    assert UUID(str(row["tip_id"])) == UUID(tip["tip_id"])
    assert (row["rollout"], row["prompt_version"], row["prompt_digest"]) == (2, "v2-mentor", DIGEST)
    assert (row["tip"], row["model"], row["failed"], row["error"]) == (TIP_RESPONSE["tip"], "openai/good", False, None)
    assert (row["tokens"], row["live_tokens"], row["live_version"], row["live_failed"]) == (62, 62, "v1", False)
    assert (row["user_id"], str(row["created_at"])[:19]) == ("u-1", str(NOW)[:19])
    assert min(row["ms"], row["live_ms"]) >= 0
    live, shadow = fake_serving.generate_bodies
    assert shadow == live | {"prompt_version": "v2-mentor"}
    assert [headers.get("priority") for headers in fake_serving.generate_headers] == [None, "u=7"]
    assert ends(http, "ok")
    # It is in no table that rates, sample ratios, aggregates and exports read.
    assert database.count("tip_scores") == 1
    drawn = database.rows("SELECT DISTINCT prompt_version FROM draw_hours")
    assert [each["prompt_version"] for each in drawn] == ["v1"]


@ON_SQLITE
@pytest.mark.parametrize(
    ("live", "shadow", "expected"),
    [
        (JSONResponse(UNUSABLE, 502), None, {"live_failed": True, "live_tokens": 0, "failed": False, "tokens": 62}),
        (
            None,
            JSONResponse(UNUSABLE, 502),
            {"live_failed": False, "failed": True, "error": "unusable-tip", "tip": None},
        ),
        (JSONResponse(UNUSABLE, 502), JSONResponse(UNUSABLE, 502), {"live_failed": True, "failed": True}),
        (JSONResponse(TIP_RESPONSE | {"fallback": True}), None, {"live_failed": True, "failed": False}),
    ],
    ids=["the live version fails", "the shadow fails", "both fail", "a fallback model writes the live tip"],
)
def test_failures_of_both_are_stored(
    start_recommender: StartRecommender,
    database: Database,
    fake_serving: FakeServing,
    live: Response | None,
    shadow: Response | None,
    expected: dict[str, Any],
) -> None:
    append_to(database, CHAMPION, SHADOW)
    responses = {"v1": live, "v2-mentor": shadow}

    async def generate(request: Request) -> Response:
        asked = (await request.json())["prompt_version"]
        return responses[asked] or JSONResponse(TIP_RESPONSE | {"prompt_version": asked})

    fake_serving.generate = generate
    http = start_recommender(**SETTINGS)
    answer = http.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code == 200) == (live is None or live.status_code == 200)
    assert eventually(lambda: bool(shadows(database)), 30)
    (row,) = shadows(database)
    assert {name: row[name] for name in expected} == expected


@ON_SQLITE
@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (BUSY, "busy"),
        (CHANGED, "upstream-refused"),
    ],
    ids=["the model is not idle", "another digest"],
)
def test_what_says_nothing_about_the_version_is_not_stored(
    start_recommender: StartRecommender,
    database: Database,
    fake_serving: FakeServing,
    response: Response,
    outcome: str,
) -> None:
    append_to(database, CHAMPION, SHADOW)
    of_version(fake_serving, "v2-mentor", lambda: response)
    http = start_recommender(**SETTINGS)
    ask(http)
    assert ends(http, outcome)
    assert shadows(database) == []


@ON_SQLITE
@pytest.mark.parametrize(
    "settings",
    [
        {"tip_prompt_policy": "uniform", "tip_prompt_version": "v1"},
        {"rollout_shadow_share": 0.0},
        {"rollout_holdout": 0.5, "rollout_control": "v1"},
    ],
    ids=["another prompt policy", "no share", "a held-out user"],
)
def test_other_decisions_are_not_shadowed(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing, settings: dict[str, Any]
) -> None:
    append_to(database, CHAMPION, SHADOW)
    http = start_recommender(**SETTINGS | settings)
    user = next(user for user in (f"u-{number}" for number in range(100)) if Holdout(0.5, "v1").includes(user))
    for _ in range(3):
        ask(http, user)
    assert len(fake_serving.generate_bodies) == 3
    assert outcomes(http) == {}


@ON_SQLITE
def test_a_shadow_of_a_cohort_gets_its_decisions_only(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    append_to(database, CHAMPION, move("v2-mentor", "shadow", action="start", segment="locale:de"))
    http = start_recommender(**SETTINGS)
    for locale in ("en", "de", "fr"):
        ask(http, locale=locale)
    assert ends(http, "ok")
    shadowed = [body for body in fake_serving.generate_bodies if body["prompt_version"] == "v2-mentor"]
    assert [body["signals"] for body in shadowed] == [{"locale": "de"}]


@ON_SQLITE
def test_canaries_are_no_bound_so_their_decisions_are_not_shadowed(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    fake_serving.digests["v3"] = DIGEST
    append_to(database, CHAMPION, SHADOW, move("v3", "canary", share=1.0))
    http = start_recommender(**SETTINGS)
    assert ask(http)["prompt_version"] == "v3"
    assert len(fake_serving.generate_bodies) == 1
    assert outcomes(http) == {}


def test_a_shadow_policy_ranks_the_same_candidates(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    fake_serving.policies[POLICY] = "linear"
    events = (move("uniform", "champion", kind="policy"), move(POLICY, "shadow", kind="policy", action="start"))
    append_to(database, *events)
    http = start_recommender(rollout_shadow_share=1.0, tip_candidates=3)
    ask(http)
    assert eventually(lambda: bool(shadows(database, "shadow_rankings")), 30)
    (row,) = shadows(database, "shadow_rankings")
    live, shadow = fake_serving.score_bodies
    assert shadow == live | {"policy": POLICY}
    ids = [candidate["id"] for candidate in live["candidates"]]
    assert str(UUID(str(row["decision_id"]))) == ids[0]
    assert (row["rollout"], row["policy_version"], row["error"], row["user_id"]) == (2, POLICY, None, "u-1")
    assert json.loads(row["probabilities"]) == dict(zip(ids, [0.25, 0.25, 0.5], strict=True))
    assert json.loads(row["scores"]) == dict(zip(ids, [0.1, 0.2, 0.3], strict=True))
    assert ends(http, "ok", "policy")
    live_rows = database.rows("SELECT DISTINCT score_policy_version, policy_asked FROM tip_scores")
    assert live_rows == [{"score_policy_version": "uniform", "policy_asked": "uniform"}]


@ON_SQLITE
@pytest.mark.parametrize("failing", ["uniform", POLICY])
def test_a_shadow_policy_that_fails_is_stored_unless_the_live_one_failed(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing, failing: str
) -> None:
    fake_serving.policies[POLICY] = "linear"
    append_to(
        database, move("uniform", "champion", kind="policy"), move(POLICY, "shadow", kind="policy", action="start")
    )

    async def score(request: Request) -> Response:
        body = await request.json()
        version = body["policy"]
        failed = version == failing
        return (
            JSONResponse({}, 500) if failed else JSONResponse(ranking(body, policy={"name": "x", "version": version}))
        )

    fake_serving.score = score
    http = start_recommender(rollout_shadow_share=1.0, tip_candidates=2)
    ask(http)
    if failing == "uniform":  # there is nothing to compare with
        assert outcomes(http) == {}
        return
    assert ends(http, "upstream-failed", "policy")
    (row,) = shadows(database, "shadow_rankings")
    assert (row["probabilities"], row["scores"], row["error"]) == (None, None, "upstream-failed")


@ON_SQLITE
def test_a_ranking_that_serving_has_no_time_for_is_not_stored(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    fake_serving.policies[POLICY] = "linear"
    append_to(
        database, move("uniform", "champion", kind="policy"), move(POLICY, "shadow", kind="policy", action="start")
    )

    async def score(request: Request) -> Response:
        body = await request.json()
        version = body["policy"]
        return BUSY if version == POLICY else JSONResponse(ranking(body, policy={"name": "x", "version": version}))

    fake_serving.score = score
    http = start_recommender(rollout_shadow_share=1.0, tip_candidates=2)
    ask(http)
    assert ends(http, "busy", "policy")
    assert shadows(database, "shadow_rankings") == []


@ON_SQLITE
def test_a_shadow_has_as_much_time_as_the_live_version(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    append_to(database, CHAMPION, SHADOW)
    http = start_recommender(**SETTINGS)
    ask(http, **{"X-Request-Timeout-Ms": "4321"})
    assert ends(http, "ok")
    assert [headers["x-request-timeout-ms"] for headers in fake_serving.generate_headers] == ["4321", "4321"]


# Bounds


class Gate:
    """Holds requests for one prompt version until it is opened; `waiting`: how many wait."""

    def __init__(self, fake_serving: FakeServing, version: str) -> None:
        self.opened = threading.Event()
        self.waiting = 0
        self.max_waiting = 0
        self._version = version
        fake_serving.generate = self._generate

    async def _generate(self, request: Request) -> Response:
        asked = (await request.json())["prompt_version"]
        if asked == self._version:
            self.waiting += 1
            self.max_waiting = max(self.max_waiting, self.waiting)
            await asyncio.to_thread(self.opened.wait, 30)
            self.waiting -= 1
        return JSONResponse(TIP_RESPONSE | {"prompt_version": asked})


@ON_SQLITE
def test_few_shadows_run_at_a_time_few_wait_and_others_are_dropped(
    start_recommender: StartRecommender,
    database: Database,
    fake_serving: FakeServing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow_runner, "MAX_WAITING", 3)
    append_to(database, CHAMPION, SHADOW)
    gate = Gate(fake_serving, "v2-mentor")
    http = start_recommender(**SETTINGS)
    for _ in range(2):
        ask(http)
    assert eventually(lambda: gate.waiting == 2, 30)
    for _ in range(5):
        ask(http)
    assert outcomes(http) == {("prompt", "dropped"): 2}
    gate.opened.set()
    assert ends(http, "ok", times=5)
    assert len(shadows(database)) == 5
    assert gate.max_waiting == shadow_runner.MAX_CONCURRENT == 2


@ON_SQLITE
def test_a_rollout_gets_a_limited_number_of_rows_over_all_replicas(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    append_to(database, CHAMPION, SHADOW)
    first = start_recommender(**SETTINGS, rollout_shadow_limit=3)
    for number in range(3):
        ask(first)
        assert ends(first, "ok", times=number + 1)
    ask(first)
    other = start_recommender(**SETTINGS, rollout_shadow_limit=3)
    ask(other)
    assert ends(other, "limit")
    ask(other)
    assert len(shadows(database)) == 3
    assert sum(body["prompt_version"] == "v2-mentor" for body in fake_serving.generate_bodies) == 3
    assert (outcomes(first), outcomes(other)) == ({("prompt", "ok"): 3}, {("prompt", "limit"): 1})


@ON_SQLITE
def test_rows_of_other_replicas_are_counted_now_and_then(
    start_recommender: StartRecommender, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_runner, "ROWS_PER_COUNT", 2)
    append_to(database, CHAMPION, SHADOW)
    both = [start_recommender(**SETTINGS, rollout_shadow_limit=4) for _ in range(2)]
    # The first one stores two rows and knows of no others; before its third, it counts again.
    for number, http in enumerate((both[0], both[0], both[1], both[1], both[0])):
        ask(http)
        assert ends(http, *(("limit",) if number == 4 else ("ok", "prompt", number % 2 + 1)))
    assert len(shadows(database)) == 4


# The response


async def request_tip(app: Any, state: Any, events: list[str]) -> None:
    """Request a tip without a server; the last part of the response takes a while."""
    body = json.dumps({"user_id": "u-1"}).encode()
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(0.2)  # so that work that begins too early is seen
            events.append("response")

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/tips", "raw_path": b"/tips", "query_string": b""}
    await app({**scope, "headers": headers, "state": {**state}, "client": ("127.0.0.1", 1)}, receive, send)


@ON_SQLITE
@pytest.mark.parametrize("fails", [False, True])
def test_a_shadow_begins_when_the_response_has_been_sent_also_an_error(
    database: Database, fake_serving: FakeServing, fails: bool
) -> None:
    append_to(database, CHAMPION, SHADOW)
    events: list[str] = []

    async def generate(request: Request) -> Response:
        asked = (await request.json())["prompt_version"]
        events.append(asked)
        return JSONResponse(UNUSABLE, 502) if fails else JSONResponse(TIP_RESPONSE | {"prompt_version": asked})

    fake_serving.generate = generate

    async def run() -> None:
        app = create_app(settings_for(database, fake_serving))
        async with app.router.lifespan_context(app) as state, asyncio.timeout(60):
            await request_tip(app, state, events)
            assert await asyncio.to_thread(eventually, lambda: bool(shadows(database)), 30)

    asyncio.run(run())
    assert events == ["v1", "response", "v2-mentor"]


def settings_for(database: Database, fake_serving: FakeServing) -> RecommenderSettings:
    return RecommenderSettings(database_url=database.url, serving_url=fake_serving.url, **SETTINGS)


@ON_SQLITE
def test_at_shutdown_shadows_are_cancelled(database: Database, fake_serving: FakeServing) -> None:
    append_to(database, CHAMPION, SHADOW)
    began, ended = threading.Event(), threading.Event()

    async def generate(request: Request) -> Response:
        asked = (await request.json())["prompt_version"]
        if asked == "v2-mentor":
            began.set()
            await hang(request)
            ended.set()
        return JSONResponse(TIP_RESPONSE | {"prompt_version": asked})

    fake_serving.generate = generate

    async def run() -> None:
        app = create_app(settings_for(database, fake_serving))
        async with app.router.lifespan_context(app) as state, asyncio.timeout(60):
            for _ in range(4):
                await request_tip(app, state, [])
            await asyncio.to_thread(began.wait, 30)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert ended.wait(30)
    assert shadows(database) == []
    assert database.count("tip_scores") == 4


@ON_SQLITE
def test_shadows_that_cannot_be_stored_change_nothing_else(
    start_recommender: StartRecommender, database: Database
) -> None:
    append_to(database, CHAMPION, SHADOW)
    http = start_recommender(**SETTINGS)
    database.rows("DROP TABLE shadow_tips")
    ask(http)
    assert ends(http, "storage-unavailable")
    ask(http)
    assert http.get("/health/ready").status_code == 200


@ON_SQLITE
def test_in_one_process_the_shadow_is_written_by_the_real_serving(
    serve_both: Serve, upstream: Upstream, database: Database
) -> None:
    digests = {version: prompt.digest for version, prompt in PROMPTS.items()}
    append_to(
        database,
        move("v1", "champion", digest=digests["v1"]),
        move("v2-mentor", "shadow", action="start", digest=digests["v2-mentor"]),
    )
    http = serve_both(database_url=database.url, **SETTINGS)
    assert becomes_ready(http)
    tip = ask(http)
    assert (tip["prompt_version"], tip["tip"]) == ("v1", TIP)
    assert ends(http, "ok")
    (row,) = shadows(database)
    assert (row["prompt_digest"], row["tip"], row["failed"]) == (digests["v2-mentor"], TIP, False)
    assert len(upstream.bodies) == 2
