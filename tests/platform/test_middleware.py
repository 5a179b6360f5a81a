"""Validation, keys, limits, ids and errors of all requests, on the running service."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from ml.features.definitions import SIGNALS
from ml.serving.app import create_app
from ml.serving.prompts import PROMPTS
from ml.serving.settings import ServingSettings
from tests.conftest import Serve, eventually
from tests.server import running
from tests.upstream import Upstream

JSON = {"content-type": "application/json"}


def pointers(answer: httpx.Response) -> list[str]:
    return [error["pointer"] for error in answer.json()["errors"]]


@pytest.mark.parametrize("version", ["v9", "", " v1", "V1", "../v1"])
def test_an_unknown_version_is_a_422_that_names_the_known_ones(serve: Serve, version: str) -> None:
    answer = serve().post("/generate", json={"signals": {}, "prompt_version": version})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0] == {
        "pointer": "#/prompt_version",
        "detail": f"should be one of {', '.join(PROMPTS)}",
        "allowed": list(PROMPTS),
    }


def test_unknown_fields_and_signals_are_a_422_that_lists_the_known_ones(serve: Serve) -> None:
    http = serve()
    answer = http.post("/generate", json={"signals": {"slep_hours": 5, "a/b": 1}})
    assert (answer.status_code, pointers(answer)) == (422, ["#/signals/slep_hours", "#/signals/a~1b"])
    assert answer.json()["errors"][0]["allowed"] == list(SIGNALS)
    answer = http.post("/generate", json={"signals": {}, "temperature": 2})
    assert (answer.status_code, pointers(answer)) == (422, ["#/temperature"])
    assert answer.json()["errors"][0]["allowed"] == ["signals", "prompt_version", "stream"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sleep_hours", -1),
        ("sleep_hours", 25),
        ("sleep_hours", "5.5"),
        ("sleep_hours", True),
        ("sleep_hours", {"hours": 5}),
        ("energy", 0),
        ("energy", 11),
        ("energy", 5.5),
        ("steps_today", 10**30),
        ("mood", "so-so-secret"),
        ("local_time", "25:00"),
        ("local_time", "21:40\n"),
        ("weekday", "Montag"),
        ("locale", "xx-YY"),
        ("locale", "de_DE"),
        ("goal", 7),
        ("goal", "secret " * 40),
        ("recent_tips", "secret"),
        ("recent_tips", ["a"] * 6),
        ("recent_tips", [1]),
    ],
)
def test_a_signal_of_the_wrong_type_or_range_is_a_422_that_points_at_it(serve: Serve, name: str, value: object) -> None:
    answer = serve().post("/generate", json={"signals": {name: value}})
    assert answer.status_code == 422
    assert pointers(answer)[0].startswith(f"#/signals/{name}")
    assert "secret" not in answer.text


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(serve: Serve, number: str) -> None:
    content = f'{{"signals": {{"sleep_hours": {number}}}}}'
    assert serve().post("/generate", content=content, headers=JSON).status_code == 422


@pytest.mark.parametrize(
    "content", ["", "{", "not json", '{"signals": {"goal": "\\ud800"}}', b"\xff\xfe", "[]", "null"]
)
def test_a_body_that_is_not_a_json_object_is_a_client_error(serve: Serve, content: str | bytes) -> None:
    answer = serve().post("/generate", content=content, headers=JSON)
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"


def test_malformed_json_is_a_400(serve: Serve) -> None:
    answer = serve().post("/generate", content='{"signals": ', headers=JSON)
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:tips:problem:invalid-json")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_another_content_type_is_a_415(serve: Serve, media_type: str) -> None:
    headers = {"content-type": media_type} if media_type else {}
    answer = serve().post("/generate", content='{"signals": {}}', headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (415, "urn:tips:problem:unsupported-media-type")


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"]
)
def test_every_json_content_type_is_accepted(serve: Serve, media_type: str) -> None:
    answer = serve().post("/generate", content='{"signals": {}}', headers={"content-type": media_type})
    assert answer.status_code == 200


def test_a_body_of_100_kb_is_a_413(serve: Serve) -> None:
    http = serve()
    assert http.post("/generate", json={"signals": {"goal": "x" * 100_000}}).status_code == 413
    chunks = (b"x" * 1000 for _ in range(100))
    assert http.post("/generate", content=chunks, headers=JSON).status_code == 413


def test_an_unknown_route_or_method_is_a_problem_document(serve: Serve) -> None:
    http = serve()
    for answer, status in ((http.get("/nothing"), 404), (http.delete("/generate"), 405)):
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"


KEYS = ("first-key", "second-key")


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", "Basic first-key", "first-key", "Bearer first-ke"]
)
def test_a_request_without_a_known_key_is_a_401_and_generates_nothing(
    serve: Serve, upstream: Upstream, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    answer = serve(api_keys=KEYS).post("/generate", json={"signals": {}}, headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "first-key" not in answer.text
    assert not upstream.bodies


def test_each_key_is_accepted(serve: Serve) -> None:
    http = serve(api_keys=KEYS)
    for key in KEYS:
        assert http.get("/prompts", headers={"authorization": f"bearer {key}"}).status_code == 200
    assert http.get("/prompts").status_code == 401


def test_health_metrics_and_docs_need_no_key(serve: Serve) -> None:
    http = serve(api_keys=KEYS)
    for path in ("/health/live", "/metrics", "/docs", "/docs/static/swagger-ui.css", "/openapi.json"):
        assert http.get(path).status_code == 200
    for path in ("/metricsx", "/doc", "/prompts"):
        assert http.get(path).status_code == 401


def test_above_the_limit_requests_are_a_503_while_the_others_are_in_flight(serve: Serve, upstream: Upstream) -> None:
    http = serve("waits", max_in_flight=2)
    with ThreadPoolExecutor(2) as pool:
        in_flight = [pool.submit(http.post, "/generate", json={"signals": {}}) for _ in range(2)]
        assert eventually(lambda: upstream.calls["waits"] == 2)
        refused = http.post("/generate", json={"signals": {}})
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:tips:problem:busy")
        assert refused.headers["retry-after"] == "1"
        assert http.get("/health/live").status_code == 200
        assert not any(future.done() for future in in_flight)
        upstream.released.set()
        assert [future.result().status_code for future in in_flight] == [200, 200]
    assert http.post("/generate", json={"signals": {}}).status_code == 200


def test_a_valid_request_id_is_returned_and_an_invalid_one_is_replaced(serve: Serve) -> None:
    http = serve()
    assert http.get("/health/live", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("a b", "x" * 200, ""):
        generated = http.get("/health/live", headers={"x-request-id": bad}).headers["x-request-id"]
        assert generated != bad
        assert len(generated) == 32


def test_a_trace_continues_with_a_new_span(serve: Serve) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    http = serve()
    answer = http.get("/health/live", headers={"traceparent": f"00-{trace}-{parent}-01"}).headers["traceparent"]
    _, answered_trace, span, flags = answer.split("-")
    assert (answered_trace, flags) == (trace, "01")
    assert span != parent
    for bad in ("nonsense", f"00-{'0' * 32}-{parent}-01"):
        assert trace not in http.get("/health/live", headers={"traceparent": bad}).headers["traceparent"]


def test_the_trace_continues_to_the_operator_s_model_server(serve: Serve, upstream: Upstream) -> None:
    answer = serve().post("/generate", json={})
    assert upstream.headers[-1]["traceparent"] == answer.headers["traceparent"]


def test_each_of_many_concurrent_callers_gets_its_own_answer(serve: Serve) -> None:
    http = serve()
    barrier = threading.Barrier(16)

    def generate(number: int) -> bool:
        barrier.wait()
        version = list(PROMPTS)[number % len(PROMPTS)]
        answer = http.post("/generate", json={"prompt_version": version}, headers={"x-request-id": str(number)})
        assert answer.headers["x-request-id"] == str(number)
        return bool(answer.json()["prompt_version"] == version)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(generate, range(16)))


def test_an_unexpected_exception_is_a_500_without_its_message() -> None:
    app = create_app(ServingSettings(tip_model="openai/x"))

    @app.get("/health/broken")
    async def broken() -> None:
        raise RuntimeError("private")

    with running(app) as url:
        answer = httpx.get(f"{url}/health/broken", headers={"x-request-id": "r1"}, timeout=60)
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:tips:problem:internal-error")
    assert answer.headers["x-request-id"] == "r1"
    assert "private" not in answer.text
