"""POST /generate with `stream`: server-sent events, through the whole service."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from ml.serving.prompts import PROMPTS
from tests.conftest import Serve, becomes_ready, eventually
from tests.upstream import NONSENSE, SECRET, TIP, Upstream

BODY = {"signals": {"energy": 3}, "stream": True}

Event = tuple[str, dict[str, object]]


def events(answer: httpx.Response) -> Iterator[Event]:
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        if line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def stream(http: httpx.Client, **body: object) -> list[Event]:
    with http.stream("POST", "/generate", json={**BODY, **body}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(events(answer))


def test_a_stream_has_meta_then_deltas_then_done(serve: Serve) -> None:
    (first, meta), *deltas, (last, done) = stream(serve(), prompt_version="v3-few-shot")
    assert (first, last) == ("meta", "done")
    assert meta.pop("generation_id")
    assert meta == {
        "prompt_version": "v3-few-shot",
        "prompt_digest": PROMPTS["v3-few-shot"].digest,
        "model": "openai/good",
        "fallback": False,
    }
    assert {name for name, _ in deltas} == {"delta"}
    assert len(deltas) > 1
    assert "".join(str(data["text"]) for _, data in deltas) == TIP
    assert done == {"tip": TIP, "usage": {"input_tokens": 50, "output_tokens": 12}, "finish_reason": "stop"}


def test_a_fallback_model_streams_after_an_error_of_the_first_model(serve: Serve) -> None:
    meta = stream(serve("status-500", "good"))[0][1]
    assert (meta["model"], meta["fallback"]) == ("openai/good", True)


@pytest.mark.parametrize(
    ("model", "status", "slug"),
    [
        ("status-401", 502, "upstream-refused"),
        ("status-429", 503, "upstream-overloaded"),
        ("status-500", 502, "upstream-failed"),
        ("hang", 504, "deadline-exceeded"),
        ("says-empty", 502, "unusable-tip"),
        ("status-529", 503, "upstream-overloaded"),
        *((f"nonsense-{kind}", 502, "upstream-failed") for kind in ("html", "json", *NONSENSE)),
    ],
)
def test_an_error_before_the_first_text_is_a_problem_document(serve: Serve, model: str, status: int, slug: str) -> None:
    http = serve(model, generate_timeout_seconds=5 if model == "hang" else 60)
    assert becomes_ready(http)
    answer = http.post("/generate", json=BODY)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:tips:problem:{slug}")
    assert SECRET not in answer.text


def test_an_unknown_version_is_a_422(serve: Serve) -> None:
    assert serve().post("/generate", json={**BODY, "prompt_version": "v9"}).status_code == 422


@pytest.mark.parametrize("model", ["says-three", "says-markup", "says-preamble", "says-purchase", "cut"])
def test_an_unusable_text_ends_with_an_error_event(serve: Serve, model: str) -> None:
    *_, (last, problem) = stream(serve(model))
    assert (last, problem["type"], problem["status"]) == ("error", "urn:tips:problem:unusable-tip", 502)


def test_an_upstream_that_drops_the_connection_ends_with_an_error_event(serve: Serve) -> None:
    *_, (last, problem) = stream(serve("drop"))
    assert last == "error"
    assert problem["status"] == 502
    assert SECRET not in str(problem)


def test_a_stream_that_fails_is_counted_for_the_model_that_failed(serve: Serve) -> None:
    http = serve("drop")
    list(events(http.post("/generate", json=BODY)))
    assert 'model="openai/drop",outcome="upstream-failed",prompt_version="v1"} 1.0' in http.get("/metrics").text


def test_an_upstream_that_stalls_ends_with_an_error_event_at_the_deadline(serve: Serve, upstream: Upstream) -> None:
    http = serve("stall", generate_timeout_seconds=6)
    assert becomes_ready(http)
    *_, (last, problem) = stream(http)
    assert (last, problem["status"]) == ("error", 504)
    assert eventually(lambda: upstream.disconnects == 1)


def test_a_caller_that_disconnects_during_a_stream_stops_the_upstream(serve: Serve, upstream: Upstream) -> None:
    http = serve("stall")
    with http.stream("POST", "/generate", json=BODY) as answer:
        assert next(events(answer))[0] == "meta"
    assert eventually(lambda: upstream.disconnects == 1)
    assert http.get("/health/live").status_code == 200


def test_a_caller_that_disconnects_before_the_answer_stops_the_upstream(serve: Serve, upstream: Upstream) -> None:
    url = serve("hang").base_url
    head = f"POST /generate HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(f"{head}{{}}".encode())
        assert eventually(lambda: upstream.calls["hang"] == 1)
        assert upstream.disconnects == 0
    assert eventually(lambda: upstream.disconnects == 1)
