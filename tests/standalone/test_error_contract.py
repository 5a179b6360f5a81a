"""The error contract: the same bad request gets the same problem document from every route of a running service."""

import inspect
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.platform.problem_json import PROBLEM_JSON
from ml.recommender.settings import RecommenderSettings
from ml.serving.settings import ServingSettings
from ml.standalone.app import create_app
from tests.server import running
from tests.upstream import Upstream

ROUTES = [route for route in create_app(ServingSettings(), RecommenderSettings()).routes if isinstance(route, APIRoute)]
GET_PATHS = sorted(route.path for route in ROUTES if "GET" in (route.methods or ()))
WITHOUT_JSON = {"/admin/reload", "/admin/rollouts"}
"""Routes without a body, and the form of a page."""
POST_PATHS = sorted({route.path for route in ROUTES if "POST" in (route.methods or ())} - WITHOUT_JSON)


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory, litellm_imported: None) -> Iterator[httpx.Client]:  # noqa: ARG001
    upstream = Upstream()
    with running(upstream.app()) as upstream.url:
        app = create_app(
            ServingSettings(tip_model="openai/good", tip_model_api_base=f"{upstream.url}/v1"),
            RecommenderSettings(database_url=f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('contract')}/tips.db"),
        )
        with running(app) as url, httpx.Client(base_url=url, timeout=60) as http:
            yield http


def post(http: httpx.Client, path: str, body: bytes, content_type: str = "application/json") -> httpx.Response:
    return http.post(path, content=body, headers={"Content-Type": content_type})


NOT_JSON = {
    "nothing": b"",
    "white space": b" \n",
    "zeros": b"\0" * 10,
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "UTF-16 without a mark": "{}".encode("utf-16-le"),
    "UTF-32": "{}".encode("utf-32"),
    "invalid UTF-8": b'{"signals": {"goal": "\xff"}}',
    "overlong UTF-8": b'{"signals": {"goal": "\xc0\xaf"}}',
    "a lone surrogate": rb'{"signals": {"goal": "\ud800"}}',
    "a line break in a string": b'{"signals": {"goal": "\n"}}',
    "open brackets": b"[" * 60_000,
    "deep lists": b"[" * 5_000 + b"]" * 5_000,
    "deep objects": b'{"signals":' * 3_000 + b"1" + b"}" * 3_000,
    "an integer of 5,000 digits": b'{"signals": {"steps_today": ' + b"9" * 5_000 + b"}}",
    "text after the object": b"{}x",
    "a comma at the end": b'{"signals": {},}',
    "single quotes": b"{'signals': {}}",
    "a comment": b"{} // no signals",
}
WRONG_FIELDS = {
    "a list": b"[]",
    "null": b"null",
    "a text": b'"signals"',
    "a number": b"1",
    "NaN": b"NaN",
    "lists in the depth that the parser allows": b"[" * 150 + b"]" * 150,
    "an unknown field": b'{"sgnals": {}}',
    "a number that is NaN": b'{"signals": {"sleep_hours": NaN}, "user_id": "u", "candidates": [{"id": "a"}]}',
    "an infinite number": b'{"signals": {"sleep_hours": 1e999}, "user_id": "u", "candidates": [{"id": "a"}]}',
    "an integer of 400 digits": b'{"signals": {"steps_today": ' + b"9" * 400 + b"}}",
    "a field twice, the second of which is not valid": b'{"signals": {}, "signals": {"energy": 11}}',
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_every_route_refuses_a_body_that_is_not_json_in_the_same_way(http: httpx.Client, body: bytes) -> None:
    for path in POST_PATHS:
        response = post(http, path, body)
        assert (response.status_code, response.headers["content-type"]) == (400, PROBLEM_JSON)
        assert response.json() == {
            "type": "urn:tips:problem:invalid-json",
            "title": "Invalid json",
            "status": 400,
            "detail": "The request body is not valid JSON.",
        }


@pytest.mark.parametrize("body", WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_every_route_refuses_wrong_fields_with_422(http: httpx.Client, body: bytes) -> None:
    for path in POST_PATHS:
        response = post(http, path, body)
        assert (response.status_code, response.headers["content-type"]) == (422, PROBLEM_JSON)
        assert response.json()["type"] == "urn:tips:problem:invalid-field"
        assert response.json()["errors"]


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_every_route_refuses_another_content_type_with_415(http: httpx.Client, content_type: str) -> None:
    for path in POST_PATHS:
        response = post(http, path, b"{}", content_type)
        assert (response.status_code, response.headers["content-type"]) == (415, PROBLEM_JSON)
        assert response.json()["type"] == "urn:tips:problem:unsupported-media-type"


def test_a_wrong_parameter_is_named_like_a_wrong_field(http: httpx.Client) -> None:
    by_query = http.get("/rewards", params={"from": "yesterday"})
    by_order = http.get("/rewards", params={"from": "2026-02-01", "to": "2026-01-01"})
    by_header = http.post("/tips", json={"user_id": "u"}, headers={"X-Request-Timeout-Ms": "soon"})
    for response, pointer in ((by_query, "#/from"), (by_order, "#/to"), (by_header, "#/X-Request-Timeout-Ms")):
        assert (response.status_code, response.headers["content-type"]) == (422, PROBLEM_JSON)
        assert [error["pointer"] for error in response.json()["errors"]] == [pointer]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("signals", "goal", "user_id", "candidates", "id", "tip_id"),
                    *("reaction", "reactions", "exposures", "at", "x"),
                ]
            ),
            values,
            max_size=4,
        )
    ),
    max_leaves=12,
)
json_bodies = st.builds(
    lambda value, encoding: json.dumps(value).encode(encoding),
    json_values,
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)


@settings(max_examples=200)
@given(path=st.sampled_from(POST_PATHS), body=st.binary(max_size=200) | json_bodies)
def test_any_bytes_get_an_answer_or_a_problem_of_the_caller(http: httpx.Client, path: str, body: bytes) -> None:
    response = post(http, path, body)
    assert response.status_code < 500
    if response.status_code != 200:  # {"signals": {}} is a request for a tip
        assert response.status_code >= 400
        assert response.headers["content-type"] == PROBLEM_JSON
        assert response.json()["status"] == response.status_code


@pytest.mark.parametrize("path", GET_PATHS)
def test_every_route_that_answers_get_answers_head_with_the_same_headers(http: httpx.Client, path: str) -> None:
    get, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers.keys() == get.headers.keys()
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("path", sorted({*GET_PATHS, *POST_PATHS}))
def test_a_method_that_a_path_does_not_have_gets_405_with_those_that_it_has(http: httpx.Client, path: str) -> None:
    response = http.request("PUT", path)
    assert (response.status_code, response.headers["content-type"]) == (405, PROBLEM_JSON)
    assert {*response.headers["allow"].split(", ")} == ({"GET", "HEAD"} if path in GET_PATHS else {"POST"})


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_an_unknown_path_gets_a_problem(http: httpx.Client, method: str) -> None:
    response = http.request(method, "/no/such/path")
    assert (response.status_code, response.headers["content-type"]) == (404, PROBLEM_JSON)
    if method != "HEAD":
        assert response.json()["detail"] == "There is no such path."


def test_head_is_not_in_the_document(http: httpx.Client) -> None:
    document: dict[str, Any] = http.get("/openapi.json").json()
    assert {method for operations in document["paths"].values() for method in operations} == {"get", "post"}


def test_errors_are_handled_in_the_event_loop() -> None:
    handlers = create_app(ServingSettings(), RecommenderSettings()).exception_handlers
    assert all(map(inspect.iscoroutinefunction, handlers.values()))
