"""The peers of serving in the benchmarks: the shortest programs that write or rank tips, and the model that all call.

Each peer is a factory (`uvicorn --factory`) that imports only its own library. Peers that write a tip receive a
complete chat completion request and call the model at `OPENAI_BASE_URL` with `OPENAI_API_KEY`.
"""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

TIP = "Dim the lights now and leave your phone to charge in another room."

_COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "tiny",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TIP}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 320, "completion_tokens": 16, "total_tokens": 336},
    }
).encode()


def _stream() -> bytes:
    deltas: list[dict[str, Any]] = [{"delta": {"content": f"{word} "}} for word in TIP.split()]
    deltas[-1]["delta"]["content"] = deltas[-1]["delta"]["content"].rstrip()
    deltas.append({"delta": {}, "finish_reason": "stop"})
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": "tiny"}
    chunks: list[dict[str, Any]] = [{**head, "choices": [{"index": 0, **delta}]} for delta in deltas]
    chunks.append(
        {**head, "choices": [], "usage": {"prompt_tokens": 320, "completion_tokens": 16, "total_tokens": 336}}
    )
    return b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks) + b"data: [DONE]\n\n"


_STREAM = _stream()


async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
    """An OpenAI-compatible server with a constant answer, whole or as a stream."""
    request = b""
    while (message := await receive()).get("more_body", False):
        request += message.get("body", b"")
    request += message.get("body", b"")
    status = 200 if scope["path"] == "/v1/chat/completions" else 404
    is_stream = b'"stream":true' in request.replace(b" ", b"")
    media_type, body = (b"text/event-stream", _STREAM) if is_stream else (b"application/json", _COMPLETION)
    headers = [(b"content-type", media_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def floor() -> FastAPI:
    """Return a server without a model: the cost of HTTP and JSON."""
    app = FastAPI()

    @app.post("/generate")
    async def generate(_chat: dict[str, Any]) -> dict[str, str]:
        return {"tip": TIP}

    return app


def uniform() -> FastAPI:
    """Return a server without a ranking: all candidates have the same probability."""
    app = FastAPI()

    @app.post("/score")
    async def score(event: dict[str, Any]) -> dict[str, Any]:
        probability = 1 / len(event["candidates"])
        scores = [
            {"id": candidate["id"], "score": 0.5, "probability": probability} for candidate in event["candidates"]
        ]
        return {"event_id": event["event_id"], "chosen": scores[0]["id"], "scores": scores}

    return app


def openai_sdk() -> FastAPI:
    from openai import AsyncOpenAI

    app = FastAPI()
    client = AsyncOpenAI(base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])

    @app.post("/generate", response_model=None)
    async def generate(chat: dict[str, Any]) -> dict[str, str] | StreamingResponse:
        answer = await client.chat.completions.create(**chat)
        return _events(answer) if "stream" in chat else {"tip": answer.choices[0].message.content}

    return app


def litellm_sdk() -> FastAPI:
    from litellm import acompletion

    app = FastAPI()
    model = {
        "model": "openai/tiny",
        "api_base": os.environ["OPENAI_BASE_URL"],
        "api_key": os.environ["OPENAI_API_KEY"],
    }

    @app.post("/generate", response_model=None)
    async def generate(chat: dict[str, Any]) -> dict[str, str] | StreamingResponse:
        answer: Any = await acompletion(**chat | model)
        return _events(answer) if "stream" in chat else {"tip": answer.choices[0].message.content}

    return app


def _events(chunks: AsyncIterator[Any]) -> StreamingResponse:
    """Return the pieces of text in a library's chunks as server-sent events."""

    async def events() -> AsyncIterator[str]:
        async for chunk in chunks:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield f"data: {json.dumps({'text': text})}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
