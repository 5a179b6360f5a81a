"""Any bytes that a provider answers with give a tip or one of the upstream errors."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import pytest
import stamina
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ml.serving.settings import ServingSettings
from tests.conftest import becomes_ready, serving_client
from tests.damaged_answers import damaged, events, json_values
from tests.hosted_models import HostedModels
from tests.server import running
from tests.upstream import TIP
from tests.wire_formats import FINISH_REASONS, Answer, reply

MODELS = {
    "hosted_vllm": ("openai", "openai/any"),
    "openai": ("openai", "openai/gpt-5-mini"),
    "anthropic": ("anthropic", "anthropic/claude-sonnet-4-5"),
    "gemini": ("gemini", "gemini/gemini-2.5-flash"),
}
"""The wire format and a model of each provider of LiteLLM that is tested."""

SLUGS = {"unusable-tip", "content-refused", "upstream-failed", "upstream-overloaded"}


@dataclass
class Fixed:
    """A server that gives one response to all requests."""

    url: str = ""
    body: bytes = b""
    media_type: str = "application/json"

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._answer, methods=["POST"])])

    async def _answer(self, _: Request) -> Response:
        return Response(self.body, media_type=self.media_type)


@pytest.fixture(scope="module")
def fixed() -> Iterator[Fixed]:
    fixed = Fixed()
    with running(fixed.app()) as fixed.url:
        yield fixed


@pytest.fixture(autouse=True)
def _provider_addresses(_unset_settings: None, monkeypatch: pytest.MonkeyPatch, fixed: Fixed) -> None:
    for variable, value in HostedModels(fixed.url).environment().items():
        monkeypatch.setenv(variable, value)


@pytest.fixture(scope="module", params=MODELS)
def service(request: pytest.FixtureRequest, fixed: Fixed) -> Iterator[tuple[str, httpx.Client]]:
    """The wire format of a provider, and a service that calls it, without waiting before a second attempt."""
    wire_format, model = MODELS[request.param]
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for variable, value in HostedModels(fixed.url).environment().items():
            patch.setenv(variable, value)
        api_base = f"{fixed.url}/v1" if request.param == "hosted_vllm" else None
        stack.enter_context(stamina.set_testing(True, attempts=2))
        http = stack.enter_context(serving_client(ServingSettings(tip_model=model, tip_model_api_base=api_base)))
        assert becomes_ready(http)
        yield wire_format, http


def check(http: httpx.Client, *, stream: bool) -> str:
    """Ask for a tip; return the slug of the error, or `tip`."""
    answer = http.post("/generate", json={"signals": {"energy": 3}, "stream": stream})
    if answer.headers["content-type"].startswith("text/event-stream"):
        event, data = answer.text.strip().split("event: ")[-1].split("\ndata: ")
        outcome = "tip" if event == "done" else json.loads(data)["type"].rpartition(":")[2]
    else:
        outcome = "tip" if answer.status_code == 200 else answer.json()["type"].rpartition(":")[2]
    assert outcome in SLUGS | {"tip"}
    return outcome


@settings(max_examples=25)
@given(body=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()), stream=st.booleans())
def test_anything_else_than_an_answer_is_an_upstream_failure(
    service: tuple[str, httpx.Client], fixed: Fixed, body: bytes, stream: bool
) -> None:
    fixed.body, fixed.media_type = body, "text/event-stream" if stream else "application/json"
    assert check(service[1], stream=stream) == "upstream-failed"


@settings(max_examples=50)
@given(data=st.data())
def test_a_damaged_answer_is_a_tip_or_an_upstream_error(
    service: tuple[str, httpx.Client], fixed: Fixed, data: st.DataObject
) -> None:
    wire_format, http = service
    whole = reply(wire_format, Answer(TIP, FINISH_REASONS[wire_format]["stop"]), stream=False)
    fixed.body, fixed.media_type = (
        json.dumps(data.draw(damaged(json.loads(bytes(whole.body))))).encode(),
        "application/json",
    )
    check(http, stream=False)


@settings(max_examples=50)
@given(data=st.data())
def test_a_damaged_stream_is_a_tip_or_an_upstream_error(
    service: tuple[str, httpx.Client], fixed: Fixed, data: st.DataObject
) -> None:
    wire_format, http = service
    lines = events(wire_format)
    position = data.draw(st.integers(0, len(lines) - 1))
    lines[position] = data.draw(damaged(lines[position]))
    fixed.body = b"".join(b"data: " + json.dumps(line).encode() + b"\n\n" for line in lines)
    fixed.media_type = "text/event-stream"
    check(http, stream=True)
