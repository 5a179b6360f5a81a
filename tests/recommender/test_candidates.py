"""POST /tips with several candidates: ranked by POST /score, one shown, all stored; and the failures of each step."""

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ml.experiments.assignment import draw_systematic, draw_weighted, hash_to_unit_interval
from ml.experiments.policies import SALT
from ml.features.online_store import replace_all
from ml.recommender import recommend
from ml.recommender.app import create_app as create_recommender
from ml.recommender.settings import RecommenderSettings
from ml.serving.app import create_app as create_serving
from ml.standalone.app import create_app as create_standalone
from ml.store.tips import open_tip_store
from tests.conftest import eventually, of_model
from tests.databases import Database, Row
from tests.example_tips import NOW, WINDOW, SetClock, a_tip
from tests.fake_serving import TIP_RESPONSE, FakeServing, hang, ranking
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.offline import exported, logged_decisions
from tests.policies import policy
from tests.server import running
from tests.store.rebuilt_counts import check_counts
from tests.upstream import Upstream

TWO_VERSIONS = "v1,v2-mentor"
SIGNALS = {"mood": "low", "stress": 7}

RANKING_COLUMNS = ("score", "score_probability", "score_policy", "score_policy_version", "candidates", "aggregates")


def ask(http: httpx.Client, user_id: str = "u-1", **headers: str) -> dict[str, Any]:
    answer = http.post("/tips", json={"user_id": user_id, "signals": SIGNALS}, headers=headers)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def stored(database: Database) -> list[Row]:
    """Return all rows, sorted by decision and, within a decision, in the order of its candidates."""
    rows = database.rows("SELECT * FROM tip_scores")
    for row in rows:
        for name in ("options", "candidates", "aggregates", "signals"):
            row[name] = row[name] and json.loads(row[name])
        for name in ("tip_id", "decision_id"):
            row[name] = str(UUID(str(row[name])))
    return sorted(
        rows, key=lambda row: (row["decision_id"], (row["candidates"] or [row["tip_id"]]).index(row["tip_id"]))
    )


def utc(stored_time: Any) -> datetime:
    """Return the time that a database holds: SQLite as text in UTC."""
    return datetime.fromisoformat(stored_time).replace(tzinfo=UTC) if isinstance(stored_time, str) else stored_time


def number_tips(fake_serving: FakeServing, fails: Callable[[int], bool] = lambda _: False) -> None:
    """Have serving return a numbered tip for each request, or an error for the numbers that fail."""
    numbers = count(1)

    async def generate(request: Request) -> Response:
        number = next(numbers)
        if fails(number):
            return JSONResponse({"type": "urn:tips:problem:unusable-tip", "detail": f"The {number}th."}, 502)
        prompt_version = (await request.json()).get("prompt_version", "v1")
        return JSONResponse(TIP_RESPONSE | {"prompt_version": prompt_version, "tip": f"Tip {number}."})

    fake_serving.generate = generate


def test_candidates_are_generated_ranked_and_stored_and_the_chosen_one_is_shown(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    number_tips(fake_serving)
    http = start_recommender(tip_prompt_version=TWO_VERSIONS, tip_candidates=3)
    answer = ask(http)
    assert answer.keys() == {
        *("tip_id", "tip", "prompt_version", "prompt_digest", "model", "fallback", "created_at"),
    }
    rows = stored(database)
    ids = [row["tip_id"] for row in rows]
    assert (answer["tip_id"], answer["tip"]) == (ids[2], rows[2]["tip"])
    assert [bool(row["shown"]) for row in rows] == [False, False, True]
    assert {row["tip"] for row in rows} == {"Tip 1.", "Tip 2.", "Tip 3."}
    assert {row["decision_id"] for row in rows} == {ids[0]}
    assert len({str(row["created_at"]) for row in rows}) == 1
    for index, row in enumerate(rows):
        assert {name: row[name] for name in RANKING_COLUMNS} == {
            "score": (index + 1) / 10,
            "score_probability": [0.25, 0.25, 0.5][index],
            "score_policy": "linear",
            "score_policy_version": "0123456789ab",
            "candidates": ids,
            "aggregates": {"tips_7d": 3.0},
        }
        assert utc(row["aggregates_at"]) == datetime(2026, 2, 28, tzinfo=UTC)
        assert (row["user_id"], row["signals"], row["policy"]) == ("u-1", SIGNALS, "uniform")
        assert row["prompt_version"] == row["prompt_version_asked"]
    assert fake_serving.score_bodies == [
        {
            "event_id": ids[0],
            "user_id": "u-1",
            "signals": SIGNALS,
            "candidates": [
                {"id": row["tip_id"], "prompt_version": row["prompt_version"], "tip": row["tip"]} for row in rows
            ],
        }
    ]
    reaction = http.post("/reactions", json={"tip_id": answer["tip_id"], "reaction": "helpful"})
    assert reaction.json()["outcome"] == "recorded"
    check_counts(database)


@ON_SQLITE
def test_a_single_candidate_is_not_ranked(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    ask(start_recommender(tip_prompt_version=TWO_VERSIONS))
    (row,) = stored(database)
    assert row["decision_id"] == row["tip_id"]
    assert {row[name] for name in RANKING_COLUMNS} == {None}
    assert not fake_serving.score_bodies
    (nulls,) = database.rows("SELECT count(*) AS n FROM tip_scores WHERE candidates IS NULL AND aggregates IS NULL")
    assert nulls["n"] == 1


def check_repeated_draw(rows: list[Row]) -> None:
    """Draw the versions of a decision again from its rows, those of failed generations included."""
    repeated = draw_systematic(rows[0]["options"], [row["tip_id"] for row in rows], salt=SALT)
    assert [one.option for one in repeated] == [row["prompt_version_asked"] for row in rows]


def test_the_version_of_each_candidate_is_drawn_by_the_policy_and_can_be_drawn_again_from_its_row(
    start_recommender: StartRecommender, database: Database
) -> None:
    http = start_recommender(tip_prompt_version=TWO_VERSIONS, tip_candidates=4)
    for _ in range(10):
        ask(http)
    rows = stored(database)
    assert len(rows) == 40
    mixed = {row["decision_id"] for row in rows if row["prompt_version"] == "v1"}
    assert mixed & {row["decision_id"] for row in rows if row["prompt_version"] == "v2-mentor"}
    for decision_id in {row["decision_id"] for row in rows}:
        check_repeated_draw([row for row in rows if row["decision_id"] == decision_id])


@ON_SQLITE
def test_under_sticky_all_candidates_of_a_user_have_one_version(
    start_recommender: StartRecommender, database: Database
) -> None:
    http = start_recommender(tip_prompt_version=TWO_VERSIONS, tip_prompt_policy="sticky", tip_candidates=3)
    for user in ("u-1", "u-2", "u-3"):
        ask(http, user)
        ask(http, user)
    versions = {(row["user_id"], row["prompt_version"]) for row in stored(database)}
    assert len(versions) == 3


@ON_SQLITE
def test_serving_s_default_generates_several_candidates_too(
    start_recommender: StartRecommender, database: Database
) -> None:
    ask(start_recommender(tip_candidates=2))
    assert [(row["prompt_version_asked"], row["options"]) for row in stored(database)] == [(None, {"v1": 1.0})] * 2


# Failures


def test_a_candidate_that_cannot_be_generated_is_left_out(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    number_tips(fake_serving, lambda number: number in {1, 3})
    tip = ask(start_recommender(tip_prompt_version=TWO_VERSIONS, tip_candidates=4))
    rows = stored(database)
    assert {row["tip"] for row in rows} == {"Tip 2.", "Tip 4."}
    assert [row["tip_id"] for row in rows] == rows[0]["candidates"]
    assert rows[0]["decision_id"] == rows[0]["tip_id"]
    assert tip["tip_id"] == rows[1]["tip_id"]
    failures = database.rows("SELECT tip_id, options, prompt_version_asked FROM generation_failures")
    check_repeated_draw(
        rows
        + [row | {"tip_id": str(UUID(str(row["tip_id"]))), "options": json.loads(row["options"])} for row in failures]
    )


@ON_SQLITE
def test_when_no_candidate_can_be_generated_the_first_error_is_answered_and_nothing_is_stored(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    http = start_recommender(tip_candidates=3)
    number_tips(fake_serving, lambda _: True)
    answer = http.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.json()["type"]) == (502, "urn:tips:problem:unusable-tip")
    assert not fake_serving.score_bodies
    assert database.count("tip_scores") == database.count("reward_hours") == 0


def changed(**changes: Any) -> Callable[[dict[str, Any]], Response]:
    """Return a function from a request body to a ranking with these changes."""
    return lambda body: JSONResponse(ranking(body) | changes)


def with_scores(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[dict[str, Any]], Response]:
    """Return a function from a request body to a ranking whose scores were changed."""

    def respond(body: dict[str, Any]) -> Response:
        changed_ranking = ranking(body)
        change(changed_ranking["scores"])
        return Response(json.dumps(changed_ranking), media_type="application/json")

    return respond


INVALID_RANKINGS: dict[str, Callable[[dict[str, Any]], Response]] = {
    "404": lambda _: JSONResponse({}, 404),
    "500": lambda _: Response("boom", 500),
    "503": lambda _: JSONResponse({"type": "urn:tips:problem:busy", "detail": "x"}, 503, {"retry-after": "1"}),
    "a redirect": lambda _: Response(status_code=307, headers={"location": "http://elsewhere.invalid/"}),
    "201": lambda body: JSONResponse(ranking(body), 201),
    "HTML": lambda _: HTMLResponse("<html></html>"),
    "empty": lambda _: Response(),
    "too deep": lambda _: Response("[" * 200_000),
    "a list": lambda body: JSONResponse([ranking(body)]),
    "another event": changed(event_id="another"),
    "no policy": changed(policy=None),
    "a policy that cannot be stored": changed(policy={"name": "x\x00", "version": "1"}),
    "a policy of 65 letters": changed(policy={"name": "x" * 65, "version": "1"}),
    "an unknown candidate chosen": changed(chosen="another"),
    "no candidate chosen": changed(chosen=None),
    "aggregates that are no numbers": changed(aggregates={"tips_7d": "3"}),
    "aggregates that are not finite": lambda body: Response(
        json.dumps(ranking(body) | {"aggregates": {"tips_7d": float("nan")}})
    ),
    "too many aggregates": changed(aggregates={str(number): 1.0 for number in range(101)}),
    "no aggregates": changed(aggregates=None),
    "a time of the aggregates without a zone": changed(aggregates_at="2026-02-28T00:00:00"),
    "a time of the aggregates that is a number": changed(aggregates_at=1_772_236_800),
    "no scores": changed(scores=[]),
    "a score missing": with_scores(lambda scores: scores.pop()),
    "a score twice": with_scores(lambda scores: scores.append(scores[0])),
    "a score of an unknown candidate": with_scores(lambda scores: scores[0].update(id="another")),
    "another order": with_scores(lambda scores: scores.reverse()),
    "probabilities that sum to less than 1": with_scores(lambda scores: scores[0].update(probability=0.2499)),
    "a probability of 0": with_scores(
        lambda scores: [scores[0].update(probability=0), scores[1].update(probability=0.5)]
    ),
    "a negative probability": with_scores(
        lambda scores: [scores[0].update(probability=-0.25), scores[1].update(probability=0.75)]
    ),
    "a probability above 1": with_scores(lambda scores: scores[0].update(probability=1.25)),
    "a probability that is a string": with_scores(lambda scores: scores[0].update(probability="0.25")),
    "a probability that is not a number": with_scores(lambda scores: scores[0].update(probability=float("nan"))),
    "a score above 1": with_scores(lambda scores: scores[0].update(score=1.01)),
    "a negative score": with_scores(lambda scores: scores[0].update(score=-0.01)),
    "an infinite score": with_scores(lambda scores: scores[0].update(score=float("inf"))),
}


@ON_SQLITE
@pytest.mark.parametrize("case", INVALID_RANKINGS)
def test_without_a_ranking_the_first_candidate_is_shown_and_the_row_says_so(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database, case: str
) -> None:
    async def score(request: Request) -> Response:
        return INVALID_RANKINGS[case](await request.json())

    fake_serving.score = score
    tip = ask(start_recommender(tip_prompt_version=TWO_VERSIONS, tip_candidates=3))
    rows = stored(database)
    assert [row["tip_id"] for row in rows] == rows[0]["candidates"]
    assert [row["tip_id"] for row in rows if row["shown"]] == [tip["tip_id"]] == [rows[0]["tip_id"]]
    assert [row["score_probability"] for row in rows] == [1.0, 0.0, 0.0]
    for row in rows:
        assert {name: row[name] for name in RANKING_COLUMNS if name not in {"score_probability", "candidates"}} == {
            "score": None,
            "score_policy": "unavailable",
            "score_policy_version": None,
            "aggregates": None,
        }
        assert row["aggregates_at"] is None
    check_counts(database)


@pytest.mark.parametrize(
    ("headers", "max_ranking_seconds", "generate_timeout_ms", "score_timeout_ms"),
    [({}, 0.5, 29_500, 500), ({"X-Request-Timeout-Ms": "2000"}, 600, 1_800, None)],
    ids=["at most MAX_RANKING_SECONDS", "at most what the caller's timeout leaves"],
)
def test_a_ranking_has_a_timeout(
    monkeypatch: pytest.MonkeyPatch,
    start_recommender: StartRecommender,
    fake_serving: FakeServing,
    database: Database,
    headers: dict[str, str],
    max_ranking_seconds: float,
    generate_timeout_ms: int,
    score_timeout_ms: int | None,
) -> None:
    monkeypatch.setattr(recommend, "MAX_RANKING_SECONDS", max_ranking_seconds)
    abandoned = threading.Event()

    async def score(request: Request) -> Response:
        response = await hang(request)
        abandoned.set()
        return response

    fake_serving.score = score
    ask(start_recommender(tip_candidates=2), **headers)
    assert abandoned.wait(30)
    assert {row["score_policy"] for row in stored(database)} == {"unavailable"}
    # The timeout of the generation leaves time for the ranking.
    assert {sent["x-request-timeout-ms"] for sent in fake_serving.generate_headers} == {str(generate_timeout_ms)}
    (sent,) = fake_serving.score_headers
    if score_timeout_ms:
        assert sent["x-request-timeout-ms"] == str(score_timeout_ms)
    else:
        assert 0 < int(sent["x-request-timeout-ms"]) < 2000


@ON_SQLITE
def test_a_candidate_that_is_never_generated_does_not_prevent_the_other_candidates(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    numbers = count()

    async def generate(request: Request) -> Response:
        return JSONResponse(TIP_RESPONSE) if next(numbers) else await hang(request)

    fake_serving.generate = generate
    ask(start_recommender(tip_candidates=3), **{"X-Request-Timeout-Ms": "2000"})
    assert len(stored(database)) == 2


@ON_SQLITE
def test_when_the_caller_disconnects_during_the_ranking_only_failures_are_stored(
    monkeypatch: pytest.MonkeyPatch, start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    # So long that only the disconnect can end the ranking.
    monkeypatch.setattr(recommend, "MAX_RANKING_SECONDS", 600)
    began, abandoned = threading.Event(), threading.Event()

    async def score(request: Request) -> Response:
        began.set()
        response = await hang(request)
        abandoned.set()
        return response

    http = start_recommender(tip_candidates=2, generate_timeout_seconds=600)

    async def disconnect_during_ranking() -> None:
        async with httpx.AsyncClient(base_url=http.base_url, timeout=600) as client:
            request = asyncio.create_task(client.post("/tips", json={"user_id": "disconnected"}))
            assert await asyncio.to_thread(began.wait, 30)
            request.cancel()
            await asyncio.wait([request])

    default_score = fake_serving.score
    fake_serving.score = score
    asyncio.run(disconnect_during_ranking())
    assert abandoned.wait(30)
    fake_serving.score = default_score
    ask(http, "connected")
    assert {row["user_id"] for row in stored(database)} == {"connected"}
    assert eventually(lambda: database.count("generation_failures") == 2, 30)
    rows = database.rows("SELECT user_id, error FROM generation_failures")
    assert {(row["user_id"], row["error"]) for row in rows} == {("disconnected", "disconnected")}
    check_counts(database)


def test_a_decision_is_stored_completely_or_not_at_all(database: Database) -> None:
    async def run() -> list[Any]:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            stored_already = a_tip()
            await store.add(stored_already)
            decisions = [
                (a_tip(), a_tip(shown=False)),
                (a_tip(shown=False), stored_already),
                (a_tip(shown=False), a_tip(prompt_version=None)),
                (a_tip(), a_tip(shown=False)),
            ]
            return await asyncio.gather(*(store.add(*rows) for rows in decisions), return_exceptions=True)

    outcomes = asyncio.run(run())
    assert [outcome is None for outcome in outcomes] == [True, False, False, True]
    assert database.count("tip_scores") == 5
    check_counts(database)


# Deletion and reports


def test_candidates_that_were_not_shown_are_forgotten_and_purged_with_the_shown_one(
    start_recommender: StartRecommender, database: Database, clock: SetClock, tmp_path: Path
) -> None:
    http = start_recommender(tip_prompt_version=TWO_VERSIONS, tip_candidates=3)
    for user in ("u-1", "u-2", "u-1"):
        ask(http, user)
        clock.go(hours=2)

    async def forget() -> None:
        async with open_tip_store(database.url, clock, reaction_window=WINDOW) as store:
            assert await store.forget("u-1") == 6

    async def purge() -> None:
        async with open_tip_store(database.url, clock, reaction_window=WINDOW) as store:
            assert await store.purge(NOW) == 0
            assert await store.purge(clock()) == 3

    asyncio.run(forget())
    assert [decision.user_id for decision in logged_decisions(exported(database.url, tmp_path))] == ["u-2"]
    check_counts(database)
    asyncio.run(purge())
    assert [database.count(table) for table in ("tip_scores", "reward_hours")] == [0, 0]
    assert {row["segment"] for row in database.rows("SELECT segment FROM draw_hours")} == {""}


def test_the_reward_page_excludes_ranked_tips_and_says_how_many(
    start_recommender: StartRecommender, fake_serving: FakeServing
) -> None:
    http = start_recommender(tip_prompt_version=TWO_VERSIONS, tip_candidates=2)
    tips = [ask(http) for _ in range(40)]
    report = http.get("/rewards").json()
    assert report["dependent"] == sum(variant["dependent"] for variant in report["variants"]) == 40
    assert [variant["reward"] for variant in report["variants"]] == [None, None]
    assert (report["not_shown"], [test["alarm"] for test in report["funnel"]["tests"]]) == (40, [False, False])
    assert sum(report["funnel"]["tests"][0]["observed"].values()) == 80
    assert {variant["prompt_version"]: variant["tips"] for variant in report["variants"]} == {
        version: sum(tip["prompt_version"] == version for tip in tips) for version in TWO_VERSIONS.split(",")
    }
    (comparison,) = [variant["comparison"] for variant in report["variants"] if variant["comparison"]]
    assert (comparison["difference"], comparison["verdict"]) == (None, "not yet known")
    assert comparison["words"].endswith("(40 tips excluded).")
    text = " ".join(http.get("/admin/rewards").text.split())
    assert "40 tips excluded, " in text
    assert "40 candidates that were not shown" in text

    async def uniform(request: Request) -> Response:
        return JSONResponse(ranking(await request.json(), policy={"name": "uniform", "version": "1"}))

    fake_serving.score = uniform
    ask(http)
    assert http.get("/rewards").json()["dependent"] == 40


@ON_SQLITE
@pytest.mark.parametrize(
    ("change", "stored_time"),
    [
        (lambda answer: answer.pop("aggregates_at"), None),  # an older serving
        (lambda answer: answer.update(aggregates={}, aggregates_at=None), None),
        (
            lambda answer: answer.update(aggregates_at="2026-02-28T05:30:00.123456+05:00"),
            datetime(2026, 2, 28, 0, 30, 0, 123_456, tzinfo=UTC),
        ),
    ],
)
def test_the_time_of_the_aggregates_is_stored_if_serving_names_it(
    start_recommender: StartRecommender,
    fake_serving: FakeServing,
    database: Database,
    change: Callable[[dict[str, Any]], Any],
    stored_time: datetime | None,
) -> None:
    async def score(request: Request) -> Response:
        answer = ranking(await request.json())
        change(answer)
        return JSONResponse(answer)

    fake_serving.score = score
    ask(start_recommender(tip_candidates=2))
    for row in stored(database):
        assert row["score_policy"] == "linear"
        assert (row["aggregates_at"] and utc(row["aggregates_at"])) == stored_time


# With the real serving


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("deployment", ["separate", "standalone"])
def test_the_ranking_of_serving_can_be_drawn_again_from_the_rows(
    upstream: Upstream, database: Database, tmp_path: Path, redis_url: str, deployment: str, learned: bool
) -> None:
    file = tmp_path / "tips.policy"
    file.write_bytes(policy())
    if learned:
        replace_all(redis_url, [("u-7", {"tips_7d": 3.0})], computed_at := datetime.now(UTC))
        serving_settings = of_model(
            upstream, "good", score_policy=str(file), online_store_url=redis_url, api_keys="k-1"
        )
    else:
        serving_settings = of_model(upstream, "good", api_keys="k-1")
    settings: dict[str, Any] = {
        "tip_prompt_version": TWO_VERSIONS,
        "tip_candidates": 3,
        "database_url": database.url,
        "api_keys": "k-1",
    }
    with ExitStack() as stack:
        if deployment == "separate":
            url = stack.enter_context(running(create_serving(serving_settings)))
            app = create_recommender(RecommenderSettings(**settings, serving_url=url, serving_api_key="k-1"))
        else:
            app = create_standalone(serving_settings, RecommenderSettings(**settings))
        headers = {"Authorization": "Bearer k-1"}
        http = stack.enter_context(
            httpx.Client(base_url=stack.enter_context(running(app)), headers=headers, timeout=60)
        )
        tips = [ask(http, f"u-{number}") for number in range(20)]
        assert http.get("/rewards").json()["dependent"] == (20 if learned else 0)
    rows = stored(database)
    assert len(rows) == 60
    assert {row["score_policy"] for row in rows} == {"tips" if learned else "uniform"}
    assert all(0 < row["score_probability"] <= 1 and 0 <= row["score"] <= 1 for row in rows)
    shown = {row["tip_id"] for row in rows if row["shown"]}
    assert shown == {tip["tip_id"] for tip in tips}
    for start in range(0, 60, 3):
        decision = rows[start : start + 3]
        probabilities = {row["tip_id"]: row["score_probability"] for row in decision}
        assert draw_weighted(probabilities, hash_to_unit_interval("score", decision[0]["decision_id"])).option in shown
    if learned:
        preferred = [row["score"] for row in rows if row["prompt_version"] == "v2-mentor"]
        assert min(preferred) > max(row["score"] for row in rows if row["prompt_version"] == "v1")
        for row in rows:
            known = row["user_id"] == "u-7"
            assert row["aggregates"] == ({"tips_7d": 3.0} if known else {})
            assert (row["aggregates_at"] and utc(row["aggregates_at"])) == (computed_at if known else None)
    logged = logged_decisions(exported(database.url, tmp_path))
    assert len(logged) == 20
    for logged_decision in logged:
        assert logged_decision.ranked
        assert sum(candidate.probability for candidate in logged_decision.candidates) == pytest.approx(1)
