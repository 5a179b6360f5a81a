"""Prepared calls, compared with the same calls through LiteLLM's `acompletion`, in three wire formats."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from ml.features.context import assemble_context
from ml.platform.errors import TipsError, UpstreamFailed, UpstreamRefused
from ml.serving.completion import CompletionRequest, TokenUsage
from ml.serving.hosted_model import HostedModel
from ml.serving.litellm_adapter import LiteLLM, import_litellm
from ml.serving.prompts import PROMPTS
from tests.damaged_answers import damaged, events
from tests.server import running
from tests.upstream import TIP
from tests.wire_formats import FINISH_REASONS, INPUT_TOKENS, OUTPUT_TOKENS, Answer, reply, stream_events

MODELS = {
    "OpenAI-compatible": ("openai", "openai/any", True),
    "openai": ("openai", "openai/gpt-4o-mini", False),
    "openai, reasoning": ("openai", "openai/gpt-5-mini", False),
    "openai, reasoning, own address": ("openai", "openai/gpt-5-mini", True),
    "anthropic": ("anthropic", "anthropic/claude-sonnet-4-5", False),
    "anthropic, reasoning": ("anthropic", "anthropic/claude-opus-5-5", False),
    "anthropic, own address": ("anthropic", "anthropic/claude-sonnet-4-5", True),
    "gemini": ("gemini", "gemini/gemini-2.5-flash", False),
    "gemini, reasoning": ("gemini", "gemini/gemini-3-flash-preview", False),
    "gemini, own address": ("gemini", "gemini/gemini-2.5-flash", True),
}
"""The wire format, the model, and whether it is at `TIP_MODEL_API_BASE`."""

FORMATS = {wire_format: name for name, (wire_format, _, _) in reversed(MODELS.items())}
"""A model of each wire format."""


@dataclass
class Provider:
    """A server that records its requests and gives one answer to all."""

    url: str = ""
    requests: list[tuple[str, Mapping[str, str], Any]] = field(default_factory=list)
    answer: Response = field(default_factory=Response)
    redirects: bool = False

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> Response:
        address = f"{request.url.path}?{request.url.query}"
        headers = {name: value for name, value in request.headers.items() if name != "content-length"}
        self.requests.append((address, headers, await request.json()))
        if self.redirects and request.url.path != "/moved":
            return RedirectResponse("/moved", 307)
        return self.answer


NO_TOKENS = TokenUsage()


@dataclass(frozen=True)
class Outcome:
    """The answer to a call: its text, tokens and finish reason, or its error."""

    text: str = ""
    usage: TokenUsage = NO_TOKENS
    finish_reason: str | None = None
    error: type[TipsError] | None = None
    retry_after: int | None = None


class CountedModule:
    """LiteLLM's module, and the number of calls of its `acompletion`."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    async def acompletion(self, **options: Any) -> Any:
        self.calls += 1
        return await self._module.acompletion(**options)


@dataclass
class Caller:
    """Calls models of the provider, with prepared calls and without."""

    provider: Provider
    litellm: LiteLLM
    runner: asyncio.Runner

    def model(self, name: str) -> HostedModel:
        wire_format, model, is_own = MODELS[name]
        base = f"{self.provider.url}/v1" if wire_format == "openai" else self.provider.url
        return HostedModel.of(model, self.litellm.module.model_cost, base if is_own else None, "key")

    def ask(
        self, model: HostedModel, request: CompletionRequest, *, stream: bool, is_prepared: bool = True
    ) -> tuple[Outcome, int]:
        """Return the outcome of a call, and how often it called `acompletion`."""
        module = CountedModule(self.litellm.module)
        transport = self.litellm.transport if is_prepared else None
        litellm = replace(self.litellm, module=module, transport=transport)
        return self.runner.run(outcome(litellm, model, request, stream=stream)), module.calls

    def compare(self, name: str, response: Response, *, stream: bool) -> tuple[Outcome, Outcome, bool]:
        """Return the outcomes of a prepared call and of `acompletion`, and whether LiteLLM read the first answer."""
        self.provider.answer = response
        outcome, calls = self.ask(self.model(name), REQUEST, stream=stream)
        expected, _ = self.ask(self.model(name), REQUEST, stream=stream, is_prepared=False)
        return outcome, expected, calls > 1


OK = Outcome(TIP, TokenUsage(INPUT_TOKENS, OUTPUT_TOKENS), "stop")


async def outcome(litellm: LiteLLM, model: HostedModel, request: CompletionRequest, *, stream: bool) -> Outcome:
    result = Outcome()
    try:
        async for chunk in litellm.chunks(model, request, stream=stream):
            reason = chunk.finish_reason or result.finish_reason
            result = Outcome(result.text + chunk.text, result.usage + chunk.usage, reason)
    except TipsError as error:
        return replace(
            result,
            text=result.text if stream else "",
            usage=NO_TOKENS,
            error=type(error),
            retry_after=error.retry_after,
        )
    return result


def request_for(version: str, signals: Mapping[str, Any]) -> CompletionRequest:
    prompt = PROMPTS[version]
    return CompletionRequest(prompt.render(assemble_context(signals)).messages, prompt.parameters)


REQUEST = request_for("v1", {"energy": 3})


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    with running(provider.app()) as provider.url:
        yield provider


@pytest.fixture(scope="module")
def caller(litellm_imported: None, provider: Provider) -> Iterator[Caller]:  # noqa: ARG001
    with asyncio.Runner() as runner:
        litellm = import_litellm()
        yield Caller(provider, litellm, runner)
        runner.run(litellm.aclose())


@pytest.fixture(autouse=True)
def _addresses_and_keys(_unset_settings: None, monkeypatch: pytest.MonkeyPatch, provider: Provider) -> None:
    for name, path in {"OPENAI_BASE_URL": "/v1", "ANTHROPIC_API_BASE": "", "GEMINI_API_BASE": ""}.items():
        monkeypatch.setenv(name, provider.url + path)
    for name in ("OPENAI", "ANTHROPIC", "GEMINI"):
        monkeypatch.setenv(f"{name}_API_KEY", "key")


def answer(wire_format: str, *, stream: bool, outcome: str = "stop", text: str = TIP, reasoning: int = 0) -> Response:
    answer = Answer(text, FINISH_REASONS[wire_format].get(outcome), reasoning)
    if stream:
        return Response(b"".join(stream_events(wire_format, answer)), media_type="text/event-stream")
    return Response(bytes(reply(wire_format, answer, stream=False).body), media_type="application/json")


def changed(wire_format: str, change: Mapping[str, Any], *, stream: bool) -> Response:
    """Return an answer with other values in the document, or in the first event."""
    if stream:
        first, *others = events(wire_format)
        return Response(sse([first | change, *others]), media_type="text/event-stream")
    return JSONResponse(json.loads(bytes(answer(wire_format, stream=False).body)) | change)


def sse(documents: list[Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(document).encode() + b"\n\n" for document in documents)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_prepared_call_sends_what_acompletion_sends(
    caller: Caller, provider: Provider, name: str, stream: bool
) -> None:
    model = caller.model(name)
    provider.answer = answer(MODELS[name][0], stream=stream)
    signals = {
        "goal": 'sleep "better", \\ früher\u2028',
        "sleep_hours": 5.5,
        "recent_tips": ["Walk."],
        "locale": "de-DE",
    }
    for version in PROMPTS:
        caller.ask(model, request_for(version, {}), stream=stream)
        for request in (request_for(version, {}), request_for(version, signals)):
            provider.requests.clear()
            assert caller.ask(model, request, stream=stream) == (OK, 0)
            assert caller.ask(model, request, stream=stream, is_prepared=False) == (OK, 1)
            prepared, expected = provider.requests
            assert prepared == expected


def test_one_call_is_prepared_for_all_messages_of_a_prompt_version(caller: Caller, provider: Provider) -> None:
    model = caller.model("openai")
    provider.answer = answer("openai", stream=False)
    requests = [request_for("v1", {"energy": energy}) for energy in (1, 2, 3)]
    assert [caller.ask(model, request, stream=False)[1] for request in requests] == [1, 0, 0]
    assert len(model.calls) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reasoning", [0, 64])
@pytest.mark.parametrize("outcome", ["stop", "length", "refused", "tool", "none"])
@pytest.mark.parametrize("wire_format", FORMATS)
def test_a_text_is_read_as_litellm_reads_it_and_without_it(
    caller: Caller, wire_format: str, outcome: str, reasoning: int, stream: bool
) -> None:
    response = answer(wire_format, stream=stream, outcome=outcome, reasoning=reasoning)
    result, expected, is_read_by_litellm = caller.compare(FORMATS[wire_format], response, stream=stream)
    assert result == expected
    assert not is_read_by_litellm
    if result.error is None:
        assert result.text == TIP
        reasoning_tokens = 0 if wire_format == "anthropic" and not stream else reasoning
        assert result.usage.input_tokens == INPUT_TOKENS
        assert result.usage.output_tokens in {OUTPUT_TOKENS + reasoning, OUTPUT_TOKENS + reasoning_tokens}


CACHED = {"input_tokens": 3, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 7, "output_tokens": 5}

UNUSUAL: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "openai": (
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "<think>Hm.</think>Walk."}}]},
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": ["Walk."]}}]},
        {"choices": []},
        {"usage": None},
        {"usage": {"prompt_tokens": 50}},
        {"error": {"message": "Out of memory", "code": 500}},
        {"error": {"message": "Slow down", "code": 429}},
        {"error": {}},
    ),
    "anthropic": (
        {"usage": CACHED},
        {"usage": {**CACHED, "iterations": [{"input_tokens": 1, "output_tokens": 2}]}},
        {
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "Walk."},
            ]
        },
        {"content": [{"type": "text", "text": "Walk "}, {"type": "text", "text": "now."}]},
        {"content": [{"type": "tool_use", "id": "t", "name": "n", "input": {}}], "stop_reason": "tool_use"},
        {"content": []},
    ),
    "gemini": (
        {"candidates": [{"content": {"parts": [{"text": "Hm.", "thought": True}, {"text": "Walk."}]}}]},
        {"candidates": [{"content": {"parts": [{"functionCall": {"name": "n", "args": {}}}]}}]},
        {"candidates": [{"finishReason": "SAFETY"}]},
        {"candidates": [], "promptFeedback": {"blockReason": "OTHER"}},
        {"usageMetadata": {"promptTokenCount": 50, "candidatesTokenCount": 9, "thoughtsTokenCount": 4}},
        {
            "usageMetadata": {
                "promptTokenCount": 50,
                "candidatesTokenCount": 9,
                "thoughtsTokenCount": 4,
                "totalTokenCount": 59,
            }
        },
    ),
}
"""Differences from an ordinary answer of each format."""

UNUSUAL_EVENTS: Sequence[tuple[str, Mapping[str, Any]]] = [
    ("openai", {"error": {"message": "Out of memory", "code": 500}}),
    ("openai", {"error": {"message": "Slow down", "code": 429}}),
    ("openai", {"choices": []}),
    ("anthropic", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    ("anthropic", {"type": "new_event"}),
    ("anthropic", {"message": {"usage": CACHED}}),
    ("gemini", {"error": {"code": 429, "message": "Slow down", "status": "RESOURCE_EXHAUSTED"}}),
    ("gemini", {"promptFeedback": {"blockReason": "OTHER"}}),
]
"""The same of the first event of a stream."""


@pytest.mark.parametrize(
    ("wire_format", "change", "stream"),
    [(wire_format, change, False) for wire_format, changes in UNUSUAL.items() for change in changes]
    + [(wire_format, change, True) for wire_format, change in UNUSUAL_EVENTS],
)
def test_an_unusual_answer_is_read_as_litellm_reads_it(
    caller: Caller, wire_format: str, change: Mapping[str, Any], stream: bool
) -> None:
    response = changed(wire_format, change, stream=stream)
    result, expected, _ = caller.compare(FORMATS[wire_format], response, stream=stream)
    assert result == expected


@settings(max_examples=25)
@given(data=st.data(), stream=st.booleans())
@pytest.mark.parametrize("wire_format", FORMATS)
def test_a_damaged_answer_is_read_as_litellm_reads_it(
    caller: Caller, wire_format: str, data: st.DataObject, stream: bool
) -> None:
    if stream:
        documents = events(wire_format)
        position = data.draw(st.integers(0, len(documents) - 1))
        documents[position] = data.draw(damaged(documents[position]))
        response = Response(sse(documents), media_type="text/event-stream")
    else:
        document = data.draw(damaged(json.loads(bytes(answer(wire_format, stream=False).body))))
        response = Response(json.dumps(document), media_type="application/json")
    result, expected, is_read_by_litellm = caller.compare(FORMATS[wire_format], response, stream=stream)
    # LiteLLM also refuses answers for fields that are no part of the text, such as `created`.
    assert result == expected or (expected.error is UpstreamFailed and not is_read_by_litellm)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [204, 400, 401, 404, 422, 429, 500, 529])
@pytest.mark.parametrize("wire_format", FORMATS)
def test_an_error_is_the_one_of_acompletion_after_one_request(
    caller: Caller, provider: Provider, wire_format: str, status: int, stream: bool
) -> None:
    error = {"error": {"type": "invalid_request_error", "code": status, "message": "No."}}
    response = JSONResponse(error, status, headers={"retry-after": "7"})
    provider.requests.clear()
    result, expected, _ = caller.compare(FORMATS[wire_format], response, stream=stream)
    assert result == expected
    assert result.error is not None
    assert len(provider.requests) == 2


@pytest.mark.parametrize("wire_format", FORMATS)
def test_a_redirection_is_followed_as_by_acompletion(caller: Caller, provider: Provider, wire_format: str) -> None:
    provider.redirects = True
    try:
        result, expected, _ = caller.compare(FORMATS[wire_format], answer(wire_format, stream=False), stream=False)
    finally:
        provider.redirects = False
    assert result == expected == OK


def test_after_a_refused_key_the_next_call_takes_the_key_from_its_variable_again(
    caller: Caller, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = caller.model("openai")
    provider.answer = JSONResponse({"error": {"message": "No."}}, 401)
    assert caller.ask(model, REQUEST, stream=False)[0].error is UpstreamRefused
    monkeypatch.setenv("OPENAI_API_KEY", "new")
    provider.answer = answer("openai", stream=False)
    provider.requests.clear()
    assert caller.ask(model, REQUEST, stream=False)[0].text == TIP
    assert provider.requests[0][1]["authorization"] == "Bearer new"


@pytest.mark.parametrize("piece_length", [1, 7, 1000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("wire_format", FORMATS)
def test_a_stream_is_read_however_its_bytes_are_divided(
    caller: Caller, provider: Provider, wire_format: str, line_end: bytes, piece_length: int
) -> None:
    text = "Walk\u2028 to the “window” now."
    body = bytes(answer(wire_format, stream=True, text=text).body).replace(b"\n", line_end)
    pieces = [body[start : start + piece_length] for start in range(0, len(body), piece_length)]
    provider.answer = StreamingResponse(iter(pieces), media_type="text/event-stream")
    result, calls = caller.ask(caller.model(FORMATS[wire_format]), REQUEST, stream=True)
    assert (result.text, result.finish_reason, calls) == (text, "stop", 1)


def test_a_model_with_another_kind_of_key_is_called_by_acompletion(caller: Caller) -> None:
    model = HostedModel({"model": "azure/gpt-4o-mini", "api_base": caller.provider.url, "api_key": "key"})
    for _ in range(2):
        assert caller.ask(model, REQUEST, stream=False)[1] == 1
    assert model.calls == {}


def test_a_prepared_call_does_not_show_its_key(caller: Caller, provider: Provider) -> None:
    model = caller.model("openai")
    provider.answer = answer("openai", stream=False)
    caller.ask(model, REQUEST, stream=False)
    assert "Bearer" not in repr(model)
    assert "Bearer" not in repr(list(model.calls.values()))
