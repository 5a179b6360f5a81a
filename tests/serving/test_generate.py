"""POST /generate, plain, through the whole service to a model server of our own."""

import httpx
import pytest

from ml.serving.prompts import PROMPTS
from tests.conftest import Serve, eventually
from tests.upstream import SECRET, TIP, UNUSABLE, Upstream

SIGNALS = {"goal": "sleep better", "sleep_hours": 5.5, "local_time": "21:40"}


def ask(http: httpx.Client, **body: object) -> httpx.Response:
    return http.post("/generate", json={"signals": SIGNALS, **body})


def test_answers_a_tip_with_the_version_that_wrote_it(serve: Serve) -> None:
    answer = ask(serve(), prompt_version="v2-mentor")
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
def test_sends_the_messages_of_the_version_asked_for(serve: Serve, upstream: Upstream, version: str) -> None:
    assert ask(serve(), prompt_version=version).json()["prompt_version"] == version
    sent = upstream.bodies[-1]
    assert sent["messages"][:-1] == list(PROMPTS[version].prefix)
    assert '"sleep better"' in sent["messages"][-1]["content"]
    assert "5.5 hours" in sent["messages"][-1]["content"]
    assert sent["max_tokens"] == PROMPTS[version].parameters.max_tokens


def test_without_a_version_the_configured_default_is_used(serve: Serve) -> None:
    assert ask(serve(default_prompt_version="v3-few-shot")).json()["prompt_version"] == "v3-few-shot"
    assert ask(serve()).json()["prompt_version"] == "v1"


def test_no_signals_at_all_is_a_generic_tip(serve: Serve, upstream: Upstream) -> None:
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


def test_a_tip_that_cannot_be_shown_gets_one_more_try_and_its_tokens_count(serve: Serve, upstream: Upstream) -> None:
    body = ask(serve("improves")).json()
    assert body["tip"] == TIP
    assert body["usage"] == {"input_tokens": 100, "output_tokens": 24}
    assert upstream.calls["improves"] == 2


@pytest.mark.parametrize("model", [*(f"says-{name}" for name in UNUSABLE), "cut"])
def test_a_model_that_writes_nothing_usable_is_a_502(serve: Serve, upstream: Upstream, model: str) -> None:
    answer = ask(serve(model))
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
def test_an_upstream_s_failure_is_told_by_kind_and_never_in_its_words(
    serve: Serve, upstream: Upstream, model: str, status: int, slug: str, calls: int
) -> None:
    answer = ask(serve(model))
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:tips:problem:{slug}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert SECRET not in answer.text
    assert upstream.url not in answer.text
    assert upstream.calls[model] == calls


def test_the_upstream_s_retry_after_is_passed_on(serve: Serve) -> None:
    assert ask(serve("status-429")).headers["retry-after"] == "7"
    assert ask(serve("status-503")).headers["retry-after"] == "1"


def test_an_unreachable_upstream_is_a_502(serve: Serve) -> None:
    answer = ask(serve(tip_model_api_base="http://127.0.0.1:9/v1"))
    assert (answer.status_code, answer.json()["type"]) == (502, "urn:tips:problem:upstream-unreachable")


def test_an_upstream_that_hangs_is_a_504_within_the_deadline_and_is_hung_up_on(
    serve: Serve, upstream: Upstream
) -> None:
    answer = ask(serve("hang", generate_timeout_seconds=0.5))
    assert (answer.status_code, answer.json()["type"]) == (504, "urn:tips:problem:deadline-exceeded")
    assert answer.elapsed.total_seconds() < 2
    assert eventually(lambda: upstream.abandoned == 1)


def test_a_passing_failure_is_tried_again(serve: Serve, upstream: Upstream) -> None:
    assert ask(serve("flaky")).json()["tip"] == TIP
    assert upstream.calls["flaky"] == 2


@pytest.mark.parametrize("first", ["status-401", "status-500", "status-429", "nonsense-json", "hang"])
def test_a_fallback_answers_for_a_model_that_cannot_and_is_named(serve: Serve, first: str) -> None:
    body = ask(serve(first, "good", generate_timeout_seconds=4)).json()
    assert (body["tip"], body["model"], body["fallback"]) == (TIP, "openai/good", True)


def test_content_that_is_refused_is_the_caller_s_to_change_so_no_fallback_is_asked(
    serve: Serve, upstream: Upstream
) -> None:
    assert ask(serve("policy", "good")).status_code == 422
    assert not upstream.calls["good"]


def test_a_provider_that_does_not_exist_is_told_where_the_operator_looks(serve: Serve) -> None:
    http = serve(tip_model="opnai/x")
    answer = ask(http)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:tips:problem:not-ready")
    assert "opnai/x" in answer.json()["detail"]
    assert "opnai/x" in http.get("/health/ready").json()["detail"]
