"""The wire formats of three providers, as a fake model server answers in them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse


@dataclass(frozen=True)
class Answer:
    """An answer of a fake model: `finish_reason` is the provider's own word, None leaves it out."""

    text: str
    finish_reason: str | None
    reasoning_tokens: int = 0

    @property
    def words(self) -> list[str]:
        words = [f"{word} " for word in self.text.split(" ")] if self.text else []
        return [*words[:-1], words[-1][:-1]] if words else []


INPUT_TOKENS, OUTPUT_TOKENS = 50, 12

FINISH_REASONS = {
    "openai": {"stop": "stop", "length": "length", "refused": "content_filter", "tool": "tool_calls"},
    "anthropic": {"stop": "end_turn", "length": "max_tokens", "refused": "refusal", "tool": "tool_use"},
    "gemini": {"stop": "STOP", "length": "MAX_TOKENS", "refused": "SAFETY", "tool": "MALFORMED_FUNCTION_CALL"},
}
"""The word of each provider for an outcome."""


def reply(provider: str, answer: Answer, *, stream: bool) -> Response:
    """Return the response of a provider with this answer."""
    if stream:
        return StreamingResponse(iter(stream_events(provider, answer)), media_type="text/event-stream")
    return JSONResponse(_FORMATS[provider](answer)[0])


def stream_events(provider: str, answer: Answer) -> list[bytes]:
    """Return the server-sent events of a provider with this answer."""
    return _FORMATS[provider](answer)[1]


def refuse(provider: str, message: str) -> Response:
    """Return a provider's refusal of a request, with status 400."""
    return JSONResponse(
        {
            "openai": {"error": {"message": message, "type": "invalid_request_error", "code": "unsupported_value"}},
            "anthropic": {"type": "error", "error": {"type": "invalid_request_error", "message": message}},
            "gemini": {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}},
        }[provider],
        400,
    )


def _data(events: Iterable[Mapping[str, Any]]) -> list[bytes]:
    return [f"data: {json.dumps(event)}\n\n".encode() for event in events]


def _openai(answer: Answer) -> tuple[Mapping[str, Any], list[bytes]]:
    output = OUTPUT_TOKENS + answer.reasoning_tokens
    usage = {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": output,
        "total_tokens": INPUT_TOKENS + output,
        "completion_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
    }
    head = {"id": "c1", "created": 1, "model": "m"}
    message = {"role": "assistant", "content": answer.text}
    choice: Mapping[str, Any] = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
    deltas: list[Mapping[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": w} for w in answer.words)]
    choices: list[Mapping[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    if answer.finish_reason:
        choices.append({"index": 0, "delta": {}, "finish_reason": answer.finish_reason})
    chunk = {**head, "object": "chat.completion.chunk"}
    events = _data([*({**chunk, "choices": [item]} for item in choices), {**chunk, "choices": [], "usage": usage}])
    whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
    return whole, [*events, b"data: [DONE]\n\n"]


def _anthropic(answer: Answer) -> tuple[Mapping[str, Any], list[bytes]]:
    output = OUTPUT_TOKENS + answer.reasoning_tokens
    message: dict[str, Any] = {"id": "m1", "type": "message", "role": "assistant", "model": "m"}
    usage = {"input_tokens": INPUT_TOKENS, "output_tokens": output}
    whole = {
        **message,
        "content": [{"type": "text", "text": answer.text}] if answer.text else [],
        "stop_reason": answer.finish_reason,
        "stop_sequence": None,
        "usage": usage,
    }
    start = {**message, "content": [], "stop_reason": None, "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": 1}}
    events: list[Mapping[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in answer.words
        ),
        {"type": "content_block_stop", "index": 0},
    ]
    if answer.finish_reason:
        delta = {"stop_reason": answer.finish_reason, "stop_sequence": None}
        events += [
            {"type": "message_delta", "delta": delta, "usage": {"output_tokens": output}},
            {"type": "message_stop"},
        ]
    lines = [f"event: {event['type']}\n".encode() + data for event, data in zip(events, _data(events), strict=True)]
    return whole, lines


def _gemini(answer: Answer) -> tuple[Mapping[str, Any], list[bytes]]:
    usage = {
        "promptTokenCount": INPUT_TOKENS,
        "candidatesTokenCount": OUTPUT_TOKENS,
        "thoughtsTokenCount": answer.reasoning_tokens,
        "totalTokenCount": INPUT_TOKENS + OUTPUT_TOKENS + answer.reasoning_tokens,
    }

    def part(text: str, finish_reason: str | None) -> Mapping[str, Any]:
        content = {"role": "model", "parts": [{"text": text}] if text else []}
        candidate = {"index": 0, "content": content} | ({"finishReason": finish_reason} if finish_reason else {})
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}

    parts = [part(word, None) for word in answer.words]
    if answer.finish_reason:
        parts.append(part("", answer.finish_reason))
    return part(answer.text, answer.finish_reason), _data(parts)


_FORMATS = {"openai": _openai, "anthropic": _anthropic, "gemini": _gemini}
