"""The way to serving: every failure is one of our errors, and leaves no row."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from ml.platform.errors import DeadlineExceeded, TipsError, UpstreamFailed, UpstreamUnreachable
from ml.platform.settings import ConfigurationError
from ml.recommender.serving_client import ServingClient, check_versions, known_versions
from ml.serving.app import create_app as create_serving
from tests.conftest import of_model
from tests.databases import Database
from tests.fake_serving import WRITTEN, FakeServing
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.server import running
from tests.upstream import SECRET, Upstream

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
    "nothing": (Response(), 502, "upstream-failed"),
    "another shape": (JSONResponse({"tip": "Stand up."}), 502, "upstream-failed"),
    "a list": (JSONResponse([WRITTEN]), 502, "upstream-failed"),
    "a tip with control characters": (JSONResponse(WRITTEN | {"tip": "Stand\x1b[2J up."}), 502, "upstream-failed"),
    "a tip with NUL": (JSONResponse(WRITTEN | {"tip": "Stand\x00up."}), 502, "upstream-failed"),
    "a tip of two lines": (JSONResponse(WRITTEN | {"tip": "Stand up.\n"}), 502, "upstream-failed"),
    "an oversized tip": (JSONResponse(WRITTEN | {"tip": "x" * 1001}), 502, "upstream-failed"),
    "no tip": (JSONResponse(WRITTEN | {"tip": ""}), 502, "upstream-failed"),
    "not Unicode": (Response(json.dumps(WRITTEN | {"tip": "\ud800"}).encode()), 502, "upstream-failed"),
    "a digest that is none": (JSONResponse(WRITTEN | {"prompt_digest": "abc"}), 502, "upstream-failed"),
    "more tokens than can be": (
        JSONResponse(WRITTEN | {"usage": {"input_tokens": 2**31, "output_tokens": 1}}),
        502,
        "upstream-failed",
    ),
    "a number that is a text": (JSONResponse(WRITTEN | {"fallback": "no"}), 502, "upstream-failed"),
    "too deep": (Response("[" * 200_000, 500), 502, "upstream-failed"),
    "a retry-after that is no number": (
        JSONResponse({"type": f"{PROBLEM}busy", "detail": "x"}, 503, headers={"retry-after": "²"}),
        503,
        "busy",
    ),
}


@ON_SQLITE
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_of_serving_is_told_as_one_and_leaves_no_row(
    recommender: httpx.Client, fake_serving: FakeServing, database: Database, failure: str
) -> None:
    response, status, slug = FAILURES[failure]
    fake_serving.answers(lambda: response)
    answer = recommender.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.json()["type"]) == (status, f"{PROBLEM}{slug}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert database.count("tip_scores") == database.count("reward_hours") == 0


@ON_SQLITE
def test_what_serving_says_about_signals_is_passed_on(recommender: httpx.Client, fake_serving: FakeServing) -> None:
    errors = [{"pointer": "#/signals/mood", "detail": "should be one of", "allowed": ["low", "good"]}]
    fake_serving.answers(lambda: problem("invalid-field", 422, errors=errors))
    answer = recommender.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.json()["errors"], answer.json()["detail"]) == (422, errors, "Sorry.")


@ON_SQLITE
def test_when_to_try_again_is_passed_on(recommender: httpx.Client, fake_serving: FakeServing) -> None:
    body = {"type": f"{PROBLEM}upstream-overloaded", "detail": "x"}
    fake_serving.answers(lambda: JSONResponse(body, 503, headers={"retry-after": "7"}))
    answer = recommender.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


@ON_SQLITE
def test_a_version_that_serving_no_longer_knows_is_the_operator_s_to_mend(
    start_recommender: StartRecommender, upstream: Upstream, database: Database, fake_serving: FakeServing
) -> None:
    fake_serving.versions = ("v9",)
    http = start_recommender(tip_prompt_version="v9")
    with running(create_serving(of_model(upstream, "good"))) as url:
        refusal = httpx.post(f"{url}/generate", json={"prompt_version": "v9"})
    fake_serving.answers(lambda: Response(refusal.content, 422, media_type="application/problem+json"))
    answer = http.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.json()["type"]) == (502, f"{PROBLEM}upstream-refused")
    assert answer.json()["detail"].startswith("TIP_PROMPT_VERSION: serving does not know v9; it knows v1, ")
    assert database.count("tip_scores") == 0


@ON_SQLITE
def test_serving_that_is_down_is_a_502(start_recommender: StartRecommender, database: Database) -> None:
    answer = start_recommender(serving_url="http://127.0.0.1:1").post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.json()["type"]) == (502, f"{PROBLEM}upstream-unreachable")
    assert database.count("tip_scores") == 0


@ON_SQLITE
def test_serving_that_does_not_keep_to_the_deadline_is_not_waited_for(
    recommender: httpx.Client, fake_serving: FakeServing, database: Database
) -> None:
    async def answer_late(request: Request) -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response()

    fake_serving.answer = answer_late
    started = time.monotonic()
    answer = recommender.post("/tips", json={"user_id": "u-1"}, headers={"X-Request-Timeout-Ms": "300"})
    assert (answer.status_code, answer.json()["type"]) == (504, f"{PROBLEM}deadline-exceeded")
    assert time.monotonic() - started < 2
    assert database.count("tip_scores") == 0


@ON_SQLITE
def test_nothing_of_the_model_s_provider_gets_through(
    start_recommender: StartRecommender, upstream: Upstream, database: Database
) -> None:
    for model, status in (("status-401", 502), ("policy", 422), ("nonsense-html", 502), ("says-essay", 502)):
        with running(create_serving(of_model(upstream, model))) as url:
            answer = start_recommender(serving_url=url).post("/tips", json={"user_id": "u-1"})
        assert answer.status_code == status
        assert SECRET not in answer.text
    assert database.count("tip_scores") == 0


def subclasses(root: type[Exception]) -> Iterator[type[Exception]]:
    for child in root.__subclasses__():
        yield child
        yield from subclasses(child)


@pytest.mark.parametrize("kind", [*subclasses(httpx.HTTPError)])
def test_every_error_of_the_http_client_is_one_of_ours(kind: type[Exception]) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        if kind is httpx.HTTPStatusError:
            raise httpx.HTTPStatusError(SECRET, request=request, response=httpx.Response(500))
        raise kind(SECRET)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(fail), base_url="http://serving") as http:
            await ServingClient(http, timeout=5).generate({}, None)

    with pytest.raises(TipsError) as raised:
        asyncio.run(ask())
    assert SECRET not in raised.value.detail
    if issubclass(kind, httpx.TimeoutException):
        assert type(raised.value) is DeadlineExceeded
    elif issubclass(kind, httpx.TransportError):
        assert type(raised.value) is UpstreamUnreachable
    else:
        assert type(raised.value) is UpstreamFailed


def test_versions_that_serving_does_not_know_are_found_before_the_start(fake_serving: FakeServing) -> None:
    assert known_versions(fake_serving.url, None) == ("v1", "v2-mentor")
    check_versions(("v1",), ("v1", "v2-mentor"))
    with pytest.raises(ConfigurationError, match="does not know v8, v9; it knows v1, v2-mentor"):
        check_versions(("v8", "v1", "v9"), ("v1", "v2-mentor"))
    assert known_versions("http://127.0.0.1:1", None) is None
    assert known_versions(f"{fake_serving.url}/generate", None) is None
