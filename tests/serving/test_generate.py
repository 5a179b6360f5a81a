"""POST /generate without streaming, through the whole service to a fake model server."""

import httpx
import pytest

from ml.features.context import assemble_context
from ml.serving.prompts import PROMPTS
from tests.conftest import Serve, becomes_ready, eventually
from tests.upstream import SECRET, TIP, UNUSABLE, Upstream

SIGNALS = {"goal": "sleep better", "sleep_hours": 5.5, "local_time": "21:40"}


def generate(http: httpx.Client, **body: object) -> httpx.Response:
    return http.post("/generate", json={"signals": SIGNALS, **body})


def test_the_answer_is_a_tip_with_the_prompt_version_that_wrote_it(serve: Serve) -> None:
    answer = generate(serve(), prompt_version="v2-mentor")
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("generation_id")
    assert body == {
        "tip": TIP,
        "prompt_version": "v2-mentor",
        "prompt_digest": PROMPTS["v2-mentor"].digest,
        "model": "openai/good",
        "fallback": False,
        "usage": {"input_tokens": 50, "output_tokens": 12},
        "finish_reason": "stop",
    }


@pytest.mark.parametrize("version", PROMPTS)
def test_the_model_receives_the_messages_of_the_requested_version(
    serve: Serve, upstream: Upstream, version: str
) -> None:
    assert generate(serve(), prompt_version=version).json()["prompt_version"] == version
    sent = upstream.bodies[-1]
    assert sent["messages"] == PROMPTS[version].render(assemble_context(SIGNALS)).messages
    assert '"sleep better"' in sent["messages"][-1]["content"]
    assert "5.5 hours" in sent["messages"][-1]["content"]
    assert sent["max_tokens"] == PROMPTS[version].parameters.max_tokens


def test_without_a_prompt_version_the_default_is_used(serve: Serve) -> None:
    assert generate(serve(default_prompt_version="v3-few-shot")).json()["prompt_version"] == "v3-few-shot"
    assert generate(serve()).json()["prompt_version"] == "v1"


def test_without_signals_the_tip_is_generic(serve: Serve, upstream: Upstream) -> None:
    http = serve()
    bodies: tuple[dict[str, object], ...] = (
        {},
        {"signals": {}},
        {"signals": {"goal": None}},
        {"signals": {"goal": "  "}},
    )
    for body in bodies:
        assert http.post("/generate", json=body).json()["tip"] == TIP
        assert "None" not in upstream.bodies[-1]["messages"][-1]["content"]


def test_an_unusable_tip_is_retried_once_and_its_tokens_count(serve: Serve, upstream: Upstream) -> None:
    body = generate(serve("improves")).json()
    assert body["tip"] == TIP
    assert body["usage"] == {"input_tokens": 100, "output_tokens": 24}
    assert upstream.calls["improves"] == 2


@pytest.mark.parametrize("model", [*(f"says-{name}" for name in UNUSABLE), "cut"])
def test_two_unusable_tips_are_a_502(serve: Serve, upstream: Upstream, model: str) -> None:
    answer = generate(serve(model))
    assert answer.status_code == 502
    assert answer.json()["type"] == "urn:tips:problem:unusable-tip"
    assert upstream.calls[model] == 2


@pytest.mark.parametrize(
    ("model", "status", "slug", "calls"),
    [
        ("status-400", 502, "upstream-refused", 1),
        ("status-401", 502, "upstream-refused", 1),
        ("status-403", 502, "upstream-refused", 1),
        ("status-404", 502, "upstream-refused", 1),
        ("status-422", 502, "upstream-refused", 1),
        ("status-429", 503, "upstream-overloaded", 2),
        ("status-500", 502, "upstream-failed", 2),
        ("status-502", 502, "upstream-failed", 2),
        ("status-503", 503, "upstream-overloaded", 2),
        ("policy", 422, "content-refused", 1),
        ("nonsense-html", 502, "upstream-failed", 2),
        ("nonsense-json", 502, "upstream-failed", 2),
    ],
)
def test_an_upstream_error_is_mapped_and_its_message_is_not_passed_on(
    serve: Serve, upstream: Upstream, model: str, status: int, slug: str, calls: int
) -> None:
    answer = generate(serve(model))
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:tips:problem:{slug}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert SECRET not in answer.text
    assert upstream.url not in answer.text
    assert upstream.calls[model] == calls


def test_retry_after_of_the_upstream_is_passed_on(serve: Serve) -> None:
    assert generate(serve("status-429")).headers["retry-after"] == "7"
    assert generate(serve("status-503")).headers["retry-after"] == "1"


def test_an_unreachable_upstream_is_a_502(serve: Serve) -> None:
    answer = generate(serve(tip_model_api_base="http://127.0.0.1:9/v1"))
    assert (answer.status_code, answer.json()["type"]) == (502, "urn:tips:problem:upstream-unreachable")


def test_an_upstream_that_never_answers_is_a_504_and_its_connection_is_closed(serve: Serve, upstream: Upstream) -> None:
    http = serve("hang", generate_timeout_seconds=5)
    assert becomes_ready(http)
    answer = generate(http)
    assert (answer.status_code, answer.json()["type"]) == (504, "urn:tips:problem:deadline-exceeded")
    assert eventually(lambda: upstream.disconnects == 1)


def test_a_transient_error_is_retried(serve: Serve, upstream: Upstream) -> None:
    assert generate(serve("flaky")).json()["tip"] == TIP
    assert upstream.calls["flaky"] == 2


@pytest.mark.parametrize("first", ["status-401", "status-500", "status-429", "nonsense-json", "hang"])
def test_a_fallback_model_answers_after_an_error_and_is_named(serve: Serve, first: str) -> None:
    http = serve(first, "good", generate_timeout_seconds=10 if first == "hang" else 60)
    assert becomes_ready(http)
    body = generate(http).json()
    assert (body["tip"], body["model"], body["fallback"]) == (TIP, "openai/good", True)


def test_refused_content_is_a_422_without_a_call_to_a_fallback_model(serve: Serve, upstream: Upstream) -> None:
    assert generate(serve("policy", "good")).status_code == 422
    assert not upstream.calls["good"]


def test_an_unknown_provider_is_named_in_errors_and_in_the_readiness(serve: Serve) -> None:
    http = serve(tip_model="opnai/x")
    answer = generate(http)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:tips:problem:not-ready")
    assert "opnai/x" in answer.json()["detail"]
    assert "opnai/x" in http.get("/health/ready").json()["detail"]
