"""POST /tips over HTTP, with the real serving and a fake model server: the stored row equals the response."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import httpx
import pytest
from scipy.stats import chisquare

from ml.experiments.policies import POLICIES
from ml.recommender.app import create_app as create_recommender
from ml.recommender.candidates import time_ordered_id
from ml.recommender.settings import RecommenderSettings
from ml.serving.app import create_app as create_serving
from ml.serving.prompts import PROMPTS
from ml.standalone.app import create_app as create_standalone
from tests.conftest import eventually, of_model
from tests.databases import Database
from tests.example_tips import NOW, SetClock
from tests.fake_serving import FakeServing
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.server import running
from tests.upstream import TIP, Upstream

SIGNALS = {"goal": "sleep better", "mood": "low", "sleep_hours": 5.5, "locale": "de-DE", "recent_tips": ["Stand up."]}

Start = Callable[..., httpx.Client]


@pytest.fixture(params=["separate", "standalone"])
def start(request: pytest.FixtureRequest, upstream: Upstream, database_url: str) -> Iterator[Start]:
    """A function that starts serving and the recommender, and returns a client; the test runs once per deployment."""
    with ExitStack() as stack:

        def start_both(model: str = "good", **settings: Any) -> httpx.Client:
            serving_settings = of_model(upstream, model)
            if request.param == "separate":
                serving_url = stack.enter_context(running(create_serving(serving_settings)))
                settings |= {"database_url": database_url, "serving_url": serving_url}
                app = create_recommender(RecommenderSettings(**settings))
            else:
                app = create_standalone(serving_settings, RecommenderSettings(database_url=database_url, **settings))
            return stack.enter_context(httpx.Client(base_url=stack.enter_context(running(app)), timeout=60))

        yield start_both


@pytest.mark.parametrize(
    ("tip_prompt_version", "policy", "options"),
    [
        ("", "serving-default", {"v1": 1.0}),
        ("v2-mentor", "single", {"v2-mentor": 1.0}),
        ("v1,v2-mentor", "uniform", {"v1": 0.5, "v2-mentor": 0.5}),
        ("v1=90,v2-mentor=30", "weighted", {"v1": 0.75, "v2-mentor": 0.25}),
    ],
)
def test_the_row_has_the_response_and_the_draw_of_its_prompt_version(
    start: Start, database: Database, tip_prompt_version: str, policy: str, options: dict[str, float]
) -> None:
    http = start(tip_prompt_version=tip_prompt_version or ())
    answer = http.post("/tips", json={"user_id": "u-1", "signals": SIGNALS})
    assert answer.status_code == 200
    body = answer.json()
    version = body["prompt_version"]
    assert body == {
        "tip_id": body["tip_id"],
        "tip": TIP,
        "prompt_version": version,
        "prompt_digest": PROMPTS[version].digest,
        "model": "openai/good",
        "fallback": False,
        "created_at": body["created_at"],
    }
    (row,) = database.rows("SELECT * FROM tip_scores")
    assert UUID(str(row["tip_id"])) == UUID(body["tip_id"])
    stored = str(row["created_at"]).replace("+00:00", "")
    assert stored == body["created_at"].removesuffix("Z").replace("T", " ")
    assert {name: row[name] for name in ("tip", "prompt_version", "prompt_digest", "model", "fallback")} == {
        name: body[name] for name in ("tip", "prompt_version", "prompt_digest", "model", "fallback")
    }
    assert json.loads(row["signals"]) == SIGNALS
    assert json.loads(row["segments"]) == ["mood:low", "locale:de", "visits:new"]
    assert json.loads(row["options"]) == options
    assert row["policy"] == policy
    assert row["policy_version"] == POLICIES["uniform"].version
    assert row["probability"] == options[version]
    assert row["prompt_version_asked"] == (version if tip_prompt_version else None)
    assert (row["user_id"], row["input_tokens"], row["output_tokens"]) == ("u-1", 50, 12)
    assert row["ms"] > 0
    assert row["generation_id"]
    assert row["shown"]
    assert not row["simulated"]
    assert (row["reaction"], row["reward"], row["reacted_at"]) == (None, None, None)


def test_signals_are_optional(start: Start, database: Database) -> None:
    assert start().post("/tips", json={"user_id": "u-1"}).json()["tip"] == TIP
    (row,) = database.rows("SELECT signals, segments FROM tip_scores")
    assert (json.loads(row["signals"]), json.loads(row["segments"])) == ({}, ["visits:new"])


def test_the_timeout_of_the_caller_ends_the_call_of_the_model(
    start: Start, upstream: Upstream, database: Database
) -> None:
    # The operator's timeout is longer than the client's, so only the caller's timeout can end the request.
    http = start("hang", generate_timeout_seconds=600)
    answer = http.post("/tips", json={"user_id": "u-1"}, headers={"X-Request-Timeout-Ms": "1000"})
    assert (answer.status_code, answer.json()["type"]) == (504, "urn:tips:problem:deadline-exceeded")
    assert eventually(lambda: upstream.disconnects == upstream.calls["hang"] == 1, 30)
    assert database.count("tip_scores") == 0


def test_serving_observes_the_timeout_of_its_caller(upstream: Upstream) -> None:
    with running(create_serving(of_model(upstream, "hang", generate_timeout_seconds=600))) as url:
        answer = httpx.post(f"{url}/generate", json={}, headers={"X-Request-Timeout-Ms": "300"}, timeout=60)
        assert (answer.status_code, answer.json()["type"]) == (504, "urn:tips:problem:deadline-exceeded")
        assert eventually(lambda: upstream.disconnects == upstream.calls["hang"], 30)
        for invalid in ("0", "-1", "soon", "600001"):
            assert httpx.post(f"{url}/generate", json={}, headers={"X-Request-Timeout-Ms": invalid}).status_code == 422


def test_the_stored_version_is_the_one_in_the_response_of_serving(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    fake_serving.respond_with_tip(prompt_version="v9", prompt_digest="9" * 64, fallback=True)
    http = start_recommender(tip_prompt_version="v2-mentor")
    assert http.post("/tips", json={"user_id": "u-1"}).json()["prompt_version"] == "v9"
    assert fake_serving.generate_bodies == [{"signals": {}, "prompt_version": "v2-mentor"}]
    (row,) = database.rows("SELECT * FROM tip_scores")
    assert (row["prompt_version"], row["prompt_digest"], row["prompt_version_asked"]) == ("v9", "9" * 64, "v2-mentor")
    assert row["fallback"]


@ON_SQLITE
def test_a_request_without_a_version_gets_serving_s_default(
    recommender: httpx.Client, fake_serving: FakeServing
) -> None:
    assert recommender.post("/tips", json={"user_id": "u-1", "signals": SIGNALS}).status_code == 200
    assert fake_serving.generate_bodies == [{"signals": SIGNALS}]


@ON_SQLITE
def test_request_id_trace_and_deadline_reach_serving(recommender: httpx.Client, fake_serving: FakeServing) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"x-request-id": "r-1", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    recommender.post("/tips", json={"user_id": "u-1"}, headers=headers)
    recommender.post("/tips", json={"user_id": "u-1"}, headers={**headers, "X-Request-Timeout-Ms": "1234"})
    first, second = fake_serving.generate_headers
    assert (first["x-request-id"], first["traceparent"].split("-")[1]) == ("r-1", trace)
    assert (first["x-request-timeout-ms"], second["x-request-timeout-ms"]) == ("30000", "1234")


@ON_SQLITE
def test_the_timeout_of_serving_is_at_most_the_operator_s(
    start_recommender: StartRecommender, fake_serving: FakeServing
) -> None:
    http = start_recommender(generate_timeout_seconds=2)
    http.post("/tips", json={"user_id": "u-1"}, headers={"X-Request-Timeout-Ms": "60000"})
    assert fake_serving.generate_headers[-1]["x-request-timeout-ms"] == "2000"


@ON_SQLITE
def test_requests_to_serving_have_serving_s_key(start_recommender: StartRecommender, fake_serving: FakeServing) -> None:
    start_recommender(serving_api_key="k-1").post("/tips", json={"user_id": "u-1"})
    assert fake_serving.generate_headers[-1]["authorization"] == "Bearer k-1"


def test_versions_are_drawn_about_as_often_as_their_weights_say(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    http = start_recommender(tip_prompt_version="v1=3,v2-mentor=1")
    for _ in range(200):
        assert http.post("/tips", json={"user_id": "u-1"}).status_code == 200
    drawn = Counter(body["prompt_version"] for body in fake_serving.generate_bodies)
    assert chisquare([drawn["v1"], drawn["v2-mentor"]], [150, 50]).pvalue > 1e-6
    rows = database.rows("SELECT prompt_version_asked, probability FROM tip_scores")
    assert Counter(row["prompt_version_asked"] for row in rows) == drawn
    assert {(row["prompt_version_asked"], row["probability"]) for row in rows} == {("v1", 0.75), ("v2-mentor", 0.25)}


def test_a_tip_is_counted_at_once_in_its_hour(recommender: httpx.Client, database: Database) -> None:
    recommender.post("/tips", json={"user_id": "u-1", "signals": {"mood": "low"}})
    rows = database.rows("SELECT segment, hour, tips, input_tokens FROM reward_hours ORDER BY segment")
    hour = int(NOW.timestamp()) // 3600
    assert [tuple(row.values()) for row in rows] == [
        (segment, hour, 1, 50) for segment in ("", "mood:low", "visits:new")
    ]
    rows = database.rows("SELECT segment, hour, prompt_version, outcome, tips FROM draw_hours ORDER BY segment")
    counted = (hour, "v1", "comparable", 1)
    assert [tuple(row.values()) for row in rows] == [(segment, *counted) for segment in ("", "mood:low", "visits:new")]


def test_tip_ids_are_unique_even_if_the_clock_stands_still_or_goes_back(
    recommender: httpx.Client, clock: SetClock, database: Database
) -> None:
    assert len({time_ordered_id(NOW) for _ in range(20_000)}) == 20_000
    for hours in (0, -1, -1, 30, 0, -400_000):
        clock.go(hours=hours)
        assert recommender.post("/tips", json={"user_id": "u-1"}).status_code == 200
    assert database.count("tip_scores") == 6


TEXTS = [
    "'; DROP TABLE tip_scores; --",
    "quotes \" and ' and ` and \\ and %s and :name and $1 and ?",
    "Robert'); DELETE FROM reactions; --",
    "日本語 😀 é",
    "{}",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_stored_unchanged(recommender: httpx.Client, database: Database, text: str) -> None:
    assert recommender.post("/tips", json={"user_id": text, "signals": {"goal": text}}).status_code == 200
    (row,) = database.rows("SELECT user_id, signals FROM tip_scores")
    assert (row["user_id"], json.loads(row["signals"])) == (text, {"goal": text})


@pytest.mark.parametrize("goal", ["a\x00b", "a\x1b[2Jb", "line\nline", "\x85"])
def test_a_goal_with_control_characters_is_stored_unchanged(
    recommender: httpx.Client, database: Database, goal: str
) -> None:
    assert recommender.post("/tips", json={"user_id": "u-1", "signals": {"goal": goal}}).status_code == 200
    (row,) = database.rows("SELECT signals FROM tip_scores")
    assert json.loads(row["signals"]) == {"goal": goal}


def test_hidden_characters_in_free_text_are_neither_stored_nor_sent(
    recommender: httpx.Client, database: Database, fake_serving: FakeServing
) -> None:
    signals = {"goal": "a\u202eb\u200bc", "recent_tips": ["Rest\u2066 now."]}
    assert recommender.post("/tips", json={"user_id": "u-1", "signals": signals}).status_code == 200
    (row,) = database.rows("SELECT signals FROM tip_scores")
    assert json.loads(row["signals"]) == {"goal": "abc", "recent_tips": ["Rest now."]}
    assert fake_serving.generate_bodies[-1]["signals"] == json.loads(row["signals"])


@ON_SQLITE
@pytest.mark.parametrize(
    "user_id",
    [
        r'""',
        r'"a\u0000b"',
        r'"a\nb"',
        r'"a\u001bb"',
        r'"\ud800"',
        r'"a\udfffb"',
        "null",
        "1",
        "[]",
        '"%s"' % ("x" * 129),
    ],
)
def test_an_invalid_user_id_is_refused(recommender: httpx.Client, fake_serving: FakeServing, user_id: str) -> None:
    content = f'{{"user_id": {user_id}}}'
    answer = recommender.post("/tips", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"
    assert not fake_serving.generate_bodies


@ON_SQLITE
def test_a_goal_that_is_not_unicode_is_refused(recommender: httpx.Client, fake_serving: FakeServing) -> None:
    content = r'{"user_id": "u-1", "signals": {"goal": "a\ud800b"}}'
    answer = recommender.post("/tips", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert not fake_serving.generate_bodies


@ON_SQLITE
def test_a_user_id_of_10_kb_is_refused_without_repeating_it(recommender: httpx.Client) -> None:
    answer = recommender.post("/tips", json={"user_id": "x" * 10_000})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/user_id"
    assert "xxx" not in answer.text


def test_a_user_id_of_the_maximum_length_is_stored_completely(recommender: httpx.Client, database: Database) -> None:
    user_id = "😀" * 128
    assert recommender.post("/tips", json={"user_id": user_id}).status_code == 200
    assert database.rows("SELECT user_id FROM tip_scores") == [{"user_id": user_id}]
