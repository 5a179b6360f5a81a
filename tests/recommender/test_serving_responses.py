"""The responses of serving: every failure is answered as a problem document, and nothing is stored."""

import json
from typing import Any

import httpx
import pytest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from ml.serving.app import create_app as create_serving
from tests.conftest import of_model
from tests.databases import Database
from tests.fake_serving import DIGEST, TIP_RESPONSE, FakeServing
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.server import running
from tests.upstream import Upstream

PROBLEM = "urn:tips:problem:"


def problem(slug: str, status: int, **members: Any) -> Response:
    return JSONResponse({"type": f"{PROBLEM}{slug}", "detail": "Sorry.", **members}, status)


FAILURES: dict[str, tuple[Response, int, str]] = {
    "401": (problem("unauthorized", 401), 502, "upstream-refused"),
    "403": (JSONResponse({}, 403), 502, "upstream-refused"),
    "404": (JSONResponse({}, 404), 502, "upstream-refused"),
    "500": (problem("internal-error", 500), 502, "upstream-failed"),
    "500 of another program": (PlainTextResponse("boom", 500), 502, "upstream-failed"),
    "502": (problem("unusable-tip", 502), 502, "unusable-tip"),
    "503": (problem("busy", 503), 503, "busy"),
    "504": (problem("deadline-exceeded", 504), 504, "deadline-exceeded"),
    "redirect": (Response(status_code=307, headers={"location": "http://elsewhere.invalid/"}), 502, "upstream-failed"),
    "content refused": (problem("content-refused", 422), 422, "content-refused"),
    "HTML": (HTMLResponse("<html>tip</html>"), 502, "upstream-failed"),
    "empty": (Response(), 502, "upstream-failed"),
    "another shape": (JSONResponse({"tip": "Stand up."}), 502, "upstream-failed"),
    "a list": (JSONResponse([TIP_RESPONSE]), 502, "upstream-failed"),
    "a tip with control characters": (JSONResponse(TIP_RESPONSE | {"tip": "Stand\x1b[2J up."}), 502, "upstream-failed"),
    "a tip with NUL": (JSONResponse(TIP_RESPONSE | {"tip": "Stand\x00up."}), 502, "upstream-failed"),
    "a tip of two lines": (JSONResponse(TIP_RESPONSE | {"tip": "Stand up.\n"}), 502, "upstream-failed"),
    "an oversized tip": (JSONResponse(TIP_RESPONSE | {"tip": "x" * 1001}), 502, "upstream-failed"),
    "an empty tip": (JSONResponse(TIP_RESPONSE | {"tip": ""}), 502, "upstream-failed"),
    "not Unicode": (Response(json.dumps(TIP_RESPONSE | {"tip": "\ud800"}).encode()), 502, "upstream-failed"),
    "an invalid digest": (JSONResponse(TIP_RESPONSE | {"prompt_digest": "abc"}), 502, "upstream-failed"),
    "too many tokens": (
        JSONResponse(TIP_RESPONSE | {"usage": {"input_tokens": 2**31, "output_tokens": 1}}),
        502,
        "upstream-failed",
    ),
    "a Boolean that is a string": (JSONResponse(TIP_RESPONSE | {"fallback": "no"}), 502, "upstream-failed"),
    "too deep": (Response("[" * 200_000, 500), 502, "upstream-failed"),
    "an invalid retry-after": (
        JSONResponse({"type": f"{PROBLEM}busy", "detail": "x"}, 503, headers={"retry-after": "²"}),
        503,
        "busy",
    ),
}


@ON_SQLITE
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_of_serving_is_answered_as_a_problem_and_nothing_is_stored(
    recommender: httpx.Client, fake_serving: FakeServing, database: Database, failure: str
) -> None:
    response, status, slug = FAILURES[failure]
    fake_serving.respond(lambda: response)
    answer = recommender.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.json()["type"]) == (status, f"{PROBLEM}{slug}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert database.count("tip_scores") == database.count("reward_hours") == 0


@ON_SQLITE
def test_errors_in_the_signals_are_passed_to_the_caller(recommender: httpx.Client, fake_serving: FakeServing) -> None:
    errors = [{"pointer": "#/signals/mood", "detail": "should be one of", "allowed": ["low", "good"]}]
    fake_serving.respond(lambda: problem("invalid-field", 422, errors=errors))
    answer = recommender.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.json()["errors"], answer.json()["detail"]) == (422, errors, "Sorry.")


@ON_SQLITE
def test_retry_after_is_passed_to_the_caller(recommender: httpx.Client, fake_serving: FakeServing) -> None:
    body = {"type": f"{PROBLEM}upstream-overloaded", "detail": "x"}
    fake_serving.respond(lambda: JSONResponse(body, 503, headers={"retry-after": "7"}))
    answer = recommender.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


@ON_SQLITE
def test_a_version_that_serving_no_longer_knows_is_reported_as_a_wrong_setting(
    start_recommender: StartRecommender, upstream: Upstream, database: Database, fake_serving: FakeServing
) -> None:
    fake_serving.digests = {"v9": DIGEST}
    http = start_recommender(tip_prompt_version="v9")
    with running(create_serving(of_model(upstream, "good"))) as url:
        refusal = httpx.post(f"{url}/generate", json={"prompt_version": "v9"})
    fake_serving.respond(lambda: Response(refusal.content, 422, media_type="application/problem+json"))
    answer = http.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.json()["type"]) == (502, f"{PROBLEM}upstream-refused")
    assert answer.json()["detail"].startswith("Serving does not know the prompt version v9; it knows v1, ")
    assert database.count("tip_scores") == 0
