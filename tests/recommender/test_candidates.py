"""POST /tips with several candidates: ranked by POST /score, one shown, all stored; and what if that does not work."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.decisions import LoggedDecision
from ml.recommender.app import create_app as create_recommender
from ml.recommender.selection import SALT
from ml.recommender.settings import RecommenderSettings
from ml.serving.app import create_app as create_serving
from ml.standalone.app import create_app as create_both
from ml.store.tips import open_tip_store
from tests.conftest import of_model
from tests.databases import Database, Row
from tests.example_tips import NOW, SetClock, a_tip
from tests.fake_serving import WRITTEN, FakeServing, ranking
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.policies import policy
from tests.server import running
from tests.store.test_rollup import check_counts
from tests.upstream import Upstream

TWO = "v1,v2-mentor"
SIGNALS = {"mood": "low", "stress": 7}

COLUMNS = ("score", "score_probability", "score_policy", "score_policy_version", "candidates", "aggregates")


def ask(http: httpx.Client, user_id: str = "u-1", **headers: str) -> dict[str, Any]:
    answer = http.post("/tips", json={"user_id": user_id, "signals": SIGNALS}, headers=headers)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def stored(database: Database) -> list[Row]:
    """All rows, those of a decision in the order of its candidates."""
    rows = database.rows("SELECT * FROM tip_scores")
    for row in rows:
        for name in ("options", "candidates", "aggregates", "signals"):
            row[name] = row[name] and json.loads(row[name])
        for name in ("tip_id", "decision_id"):
            row[name] = str(UUID(str(row[name])))
    return sorted(
        rows, key=lambda row: (row["decision_id"], (row["candidates"] or [row["tip_id"]]).index(row["tip_id"]))
    )


def numbered(fake_serving: FakeServing, fail: Callable[[int], bool] = lambda _: False) -> None:
    """Have serving write another tip each time, or fail at it."""
    numbers = count(1)

    async def answer(request: Request) -> Response:
        number = next(numbers)
        if fail(number):
            return JSONResponse({"type": "urn:tips:problem:unusable-tip", "detail": f"The {number}th."}, 502)
        asked = (await request.json()).get("prompt_version", "v1")
        return JSONResponse(WRITTEN | {"prompt_version": asked, "tip": f"Tip {number}."})

    fake_serving.answer = answer


def test_candidates_are_written_ranked_and_stored_and_the_chosen_one_is_shown(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    numbered(fake_serving)
    http = start_recommender(tip_prompt_version=TWO, tip_candidates=3)
    answer = ask(http)
    assert answer.keys() == {
        *("tip_id", "tip", "prompt_version", "prompt_digest", "model", "fallback", "created_at"),
    }
    rows = stored(database)
    ids = [row["tip_id"] for row in rows]
    assert (answer["tip_id"], answer["tip"]) == (ids[2], rows[2]["tip"])
    assert [bool(row["shadow"]) for row in rows] == [True, True, False]
    assert {row["tip"] for row in rows} == {"Tip 1.", "Tip 2.", "Tip 3."}
    assert {row["decision_id"] for row in rows} == {ids[0]}
    assert len({str(row["created_at"]) for row in rows}) == 1
    for place, row in enumerate(rows):
        assert {name: row[name] for name in COLUMNS} == {
            "score": (place + 1) / 10,
            "score_probability": [0.25, 0.25, 0.5][place],
            "score_policy": "linear",
            "score_policy_version": "0123456789ab",
            "candidates": ids,
            "aggregates": {"tips_7d": 3.0},
        }
        assert (row["user_id"], row["signals"], row["policy"]) == ("u-1", SIGNALS, "uniform")
        assert row["prompt_version"] == row["prompt_version_asked"]
    assert fake_serving.to_rank == [
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
def test_one_candidate_needs_no_ranking(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    ask(start_recommender(tip_prompt_version=TWO))
    (row,) = stored(database)
    assert row["decision_id"] == row["tip_id"]
    assert {row[name] for name in COLUMNS} == {None}
    assert not fake_serving.to_rank
    (nulls,) = database.rows("SELECT count(*) AS n FROM tip_scores WHERE candidates IS NULL AND aggregates IS NULL")
    assert nulls["n"] == 1


def test_each_candidate_s_version_is_drawn_by_the_policy_and_drawn_again_from_its_row(
    start_recommender: StartRecommender, database: Database
) -> None:
    http = start_recommender(tip_prompt_version=TWO, tip_candidates=4)
    for _ in range(10):
        ask(http)
    rows = stored(database)
    assert len(rows) == 40
    mixed = {row["decision_id"] for row in rows if row["prompt_version"] == "v1"}
    assert mixed & {row["decision_id"] for row in rows if row["prompt_version"] == "v2-mentor"}
    for row in rows:
        assert (
            draw_weighted(row["options"], hash_to_unit_interval(SALT, row["tip_id"])).option
            == row["prompt_version_asked"]
        )


@ON_SQLITE
def test_what_sticks_sticks_for_all_candidates(start_recommender: StartRecommender, database: Database) -> None:
    http = start_recommender(tip_prompt_version=TWO, tip_prompt_policy="sticky", tip_candidates=3)
    for user in ("u-1", "u-2", "u-3"):
        ask(http, user)
        ask(http, user)
    seen = {(row["user_id"], row["prompt_version"]) for row in stored(database)}
    assert len(seen) == 3


@ON_SQLITE
def test_serving_s_default_writes_several_too(start_recommender: StartRecommender, database: Database) -> None:
    ask(start_recommender(tip_candidates=2))
    assert [(row["prompt_version_asked"], row["options"]) for row in stored(database)] == [(None, {"v1": 1.0})] * 2


# What fails


def test_a_candidate_that_cannot_be_written_is_left_out(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    numbered(fake_serving, lambda number: number in {1, 3})
    tip = ask(start_recommender(tip_prompt_version=TWO, tip_candidates=4))
    rows = stored(database)
    assert {row["tip"] for row in rows} == {"Tip 2.", "Tip 4."}
    assert [row["tip_id"] for row in rows] == rows[0]["candidates"]
    assert rows[0]["decision_id"] == rows[0]["tip_id"]
    assert tip["tip_id"] == rows[1]["tip_id"]
    for row in rows:
        assert (
            draw_weighted(row["options"], hash_to_unit_interval(SALT, row["tip_id"])).option
            == row["prompt_version_asked"]
        )


@ON_SQLITE
def test_when_none_can_be_written_the_first_one_s_failure_is_told_and_nothing_is_stored(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    http = start_recommender(tip_candidates=3)
    numbered(fake_serving, lambda _: True)
    answer = http.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.json()["type"]) == (502, "urn:tips:problem:unusable-tip")
    assert not fake_serving.to_rank
    assert database.count("tip_scores") == database.count("reward_hours") == 0


def changed(**changes: Any) -> Callable[[dict[str, Any]], Response]:
    return lambda asked: JSONResponse(ranking(asked) | changes)


def of_scores(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[dict[str, Any]], Response]:
    """An answer whose scores are others."""

    def answer(asked: dict[str, Any]) -> Response:
        given = ranking(asked)
        change(given["scores"])
        return Response(json.dumps(given), media_type="application/json")

    return answer


NO_RANKINGS: dict[str, Callable[[dict[str, Any]], Response]] = {
    "404": lambda _: JSONResponse({}, 404),
    "500": lambda _: Response("boom", 500),
    "503": lambda _: JSONResponse({"type": "urn:tips:problem:busy", "detail": "x"}, 503, {"retry-after": "1"}),
    "a redirect": lambda _: Response(status_code=307, headers={"location": "http://elsewhere.invalid/"}),
    "201": lambda asked: JSONResponse(ranking(asked), 201),
    "HTML": lambda _: HTMLResponse("<html></html>"),
    "nothing": lambda _: Response(),
    "too deep": lambda _: Response("[" * 200_000),
    "a list": lambda asked: JSONResponse([ranking(asked)]),
    "another event": changed(event_id="another"),
    "no policy": changed(policy=None),
    "a policy that cannot be stored": changed(policy={"name": "x\x00", "version": "1"}),
    "a policy of 65 letters": changed(policy={"name": "x" * 65, "version": "1"}),
    "an unknown one chosen": changed(chosen="another"),
    "none chosen": changed(chosen=None),
    "aggregates that are no numbers": changed(aggregates={"tips_7d": "3"}),
    "aggregates that are not finite": lambda asked: Response(
        json.dumps(ranking(asked) | {"aggregates": {"tips_7d": float("nan")}})
    ),
    "very many aggregates": changed(aggregates={str(number): 1.0 for number in range(101)}),
    "no aggregates": changed(aggregates=None),
    "no scores": changed(scores=[]),
    "one too few": of_scores(lambda scores: scores.pop()),
    "one twice": of_scores(lambda scores: scores.append(scores[0])),
    "an unknown one": of_scores(lambda scores: scores[0].update(id="another")),
    "another order": of_scores(lambda scores: scores.reverse()),
    "probabilities that sum to less": of_scores(lambda scores: scores[0].update(probability=0.2499)),
    "a probability of 0": of_scores(
        lambda scores: [scores[0].update(probability=0), scores[1].update(probability=0.5)]
    ),
    "a negative one": of_scores(
        lambda scores: [scores[0].update(probability=-0.25), scores[1].update(probability=0.75)]
    ),
    "one above 1": of_scores(lambda scores: scores[0].update(probability=1.25)),
    "a probability that is a text": of_scores(lambda scores: scores[0].update(probability="0.25")),
    "a probability that is no number": of_scores(lambda scores: scores[0].update(probability=float("nan"))),
    "a score above 1": of_scores(lambda scores: scores[0].update(score=1.01)),
    "a negative score": of_scores(lambda scores: scores[0].update(score=-0.01)),
    "a score that is infinite": of_scores(lambda scores: scores[0].update(score=float("inf"))),
}


@ON_SQLITE
@pytest.mark.parametrize("answer", NO_RANKINGS)
def test_without_a_ranking_the_first_one_is_shown_and_the_row_says_so(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database, answer: str
) -> None:
    async def rank(request: Request) -> Response:
        return NO_RANKINGS[answer](await request.json())

    fake_serving.rank = rank
    tip = ask(start_recommender(tip_prompt_version=TWO, tip_candidates=3))
    rows = stored(database)
    assert [row["tip_id"] for row in rows] == rows[0]["candidates"]
    assert [row["tip_id"] for row in rows if not row["shadow"]] == [tip["tip_id"]] == [rows[0]["tip_id"]]
    assert [row["score_probability"] for row in rows] == [1.0, 0.0, 0.0]
    for row in rows:
        assert {name: row[name] for name in COLUMNS if name not in {"score_probability", "candidates"}} == {
            "score": None,
            "score_policy": "unavailable",
            "score_policy_version": None,
            "aggregates": None,
        }
    check_counts(database)


async def hang(request: Request) -> Response:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return Response()


@pytest.mark.parametrize("waits", ["600", None])
def test_nobody_waits_long_for_a_ranking(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database, waits: str | None
) -> None:
    fake_serving.rank = hang
    http = start_recommender(tip_candidates=2)
    started = time.monotonic()
    ask(http, **({"X-Request-Timeout-Ms": waits} if waits else {}))
    assert time.monotonic() - started < (1 if waits else 2)
    assert {row["score_policy"] for row in stored(database)} == {"unavailable"}
    # What serving is told: to write a tip in what is left when there is time to rank it.
    assert {sent["x-request-timeout-ms"] for sent in fake_serving.headers} == {"540" if waits else "29000"}


@ON_SQLITE
def test_a_candidate_that_takes_for_ever_does_not_keep_the_others(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    numbers = count()

    async def answer(request: Request) -> Response:
        return JSONResponse(WRITTEN) if next(numbers) else await hang(request)

    fake_serving.answer = answer
    ask(start_recommender(tip_candidates=3), **{"X-Request-Timeout-Ms": "1000"})
    assert len(stored(database)) == 2


@ON_SQLITE
def test_whoever_goes_away_while_candidates_are_ranked_leaves_no_row(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    fake_serving.rank = hang
    http = start_recommender(tip_candidates=2)
    with pytest.raises(httpx.ReadTimeout):
        http.post("/tips", json={"user_id": "gone"}, timeout=0.3)
    assert len(fake_serving.to_rank) == 1
    time.sleep(1.2)  # until the ranking would have been given up
    ask(http, "here")
    assert {row["user_id"] for row in stored(database)} == {"here"}


def test_a_decision_is_stored_whole_or_not_at_all(database: Database) -> None:
    async def run() -> list[Any]:
        async with open_tip_store(database.url, SetClock()) as store:
            there = a_tip()
            await store.add(there)
            decisions = [
                (a_tip(), a_tip(shadow=True)),
                (a_tip(shadow=True), there),
                (a_tip(shadow=True), a_tip(prompt_version=None)),
                (a_tip(), a_tip(shadow=True)),
            ]
            return await asyncio.gather(*(store.add(*rows) for rows in decisions), return_exceptions=True)

    outcomes = asyncio.run(run())
    assert [outcome is None for outcome in outcomes] == [True, False, False, True]
    assert database.count("tip_scores") == 5
    check_counts(database)


# What is left of them


def test_rivals_are_forgotten_and_purged_with_the_tip(
    start_recommender: StartRecommender, database: Database, clock: SetClock
) -> None:
    http = start_recommender(tip_prompt_version=TWO, tip_candidates=3)
    for user in ("u-1", "u-2", "u-1"):
        ask(http, user)
        clock.go(hours=2)

    async def forget() -> None:
        async with open_tip_store(database.url, clock) as store:
            assert await store.forget("u-1") == 6
            assert [one.user_id async for one in store.decisions(clock())] == ["u-2"]

    async def purge() -> None:
        async with open_tip_store(database.url, clock) as store:
            assert await store.purge(NOW) == 0
            assert await store.purge(clock()) == 3

    asyncio.run(forget())
    check_counts(database)
    asyncio.run(purge())
    assert [database.count(table) for table in ("tip_scores", "reward_hours", "assignment_hours")] == [0, 0, 0]


def test_the_reward_page_tells_of_ranked_tips_and_gives_no_verdict(
    start_recommender: StartRecommender, fake_serving: FakeServing
) -> None:
    http = start_recommender(tip_prompt_version=TWO, tip_candidates=2)
    tips = [ask(http) for _ in range(40)]
    report = http.get("/rewards").json()
    assert report["dependent"] == sum(one["dependent"] for one in report["variants"]) == 40
    assert (report["shadow"], report["sample_ratio"]["alarm"]) == (40, False)
    assert sum(report["sample_ratio"]["taken"].values()) == 80
    assert {one["prompt_version"]: one["tips"] for one in report["variants"]} == {
        version: sum(tip["prompt_version"] == version for tip in tips) for version in TWO.split(",")
    }
    (compared,) = [one["comparison"] for one in report["variants"] if one["comparison"]]
    assert compared["words"].startswith("not yet known: 40 tips were chosen by a ranking policy, or are sticky; ")
    words = " ".join(http.get("/admin/rewards").text.split())
    assert "40 of the 40 tips below were ranked above others by a policy" in words

    async def uniform(request: Request) -> Response:
        return JSONResponse(ranking(await request.json(), policy={"name": "uniform", "version": "1"}))

    fake_serving.rank = uniform
    ask(http)
    assert http.get("/rewards").json()["dependent"] == 40


# With serving itself


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("place", ["apart", "in one process"])
def test_serving_ranks_and_its_choice_is_made_again_from_the_rows(
    upstream: Upstream, database: Database, tmp_path: Path, place: str, learned: bool
) -> None:
    file = tmp_path / "tips.policy"
    file.write_bytes(policy())
    of_serving = of_model(upstream, "good", **({"score_policy": str(file)} if learned else {}), api_keys="k-1")
    given: dict[str, Any] = {
        "tip_prompt_version": TWO,
        "tip_candidates": 3,
        "database_url": database.url,
        "api_keys": "k-1",
    }
    with ExitStack() as stack:
        if place == "apart":
            given |= {"serving_url": stack.enter_context(running(create_serving(of_serving))), "serving_api_key": "k-1"}
            app = create_recommender(RecommenderSettings(**given))
        else:
            app = create_both(of_serving, RecommenderSettings(**given))
        keys = {"Authorization": "Bearer k-1"}
        http = stack.enter_context(httpx.Client(base_url=stack.enter_context(running(app)), headers=keys, timeout=60))
        tips = [ask(http, f"u-{number}") for number in range(20)]
        assert http.get("/rewards").json()["dependent"] == (20 if learned else 0)
    rows = stored(database)
    assert len(rows) == 60
    assert {row["score_policy"] for row in rows} == {"tips" if learned else "uniform"}
    assert all(0 < row["score_probability"] <= 1 and 0 <= row["score"] <= 1 for row in rows)
    shown = {row["tip_id"] for row in rows if not row["shadow"]}
    assert shown == {tip["tip_id"] for tip in tips}
    for start in range(0, 60, 3):
        decision = rows[start : start + 3]
        probabilities = {row["tip_id"]: row["score_probability"] for row in decision}
        assert draw_weighted(probabilities, hash_to_unit_interval("score", decision[0]["decision_id"])).option in shown
    if learned:
        liked = [row["score"] for row in rows if row["prompt_version"] == "v2-mentor"]
        assert min(liked) > max(row["score"] for row in rows if row["prompt_version"] == "v1")
    for decision_ in read(database):
        assert decision_.ranked
        assert sum(candidate.probability for candidate in decision_.candidates) == pytest.approx(1)


def read(database: Database) -> list[LoggedDecision]:
    async def run() -> list[LoggedDecision]:
        async with open_tip_store(database.url, SetClock()) as store:
            return [one async for one in store.decisions(NOW.replace(year=2100))]

    found = asyncio.run(run())
    assert len(found) == 20
    return found
