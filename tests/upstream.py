"""A fake OpenAI-compatible model server. The name of the requested model selects its behaviour."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

TIP = "Dim the lights now and leave your phone in another room."
SECRET = "upstream-secret-sk-12345"
UNUSABLE = {
    "empty": "",
    "blank": " \n ",
    "preamble": "Sure! Here is a tip: drink a glass of water.",
    "quotes": '"Drink a glass of water now."',
    "markup": "**Drink** a glass of water now.",
    "html": "<img src=x onerror=alert(1)> Drink a glass of water now.",
    "essay": "Drink water. " * 40,
    "three": "Drink water. Stand up. Look outside.",
    "lines": "Drink water.\nStand up.",
    "purchase": "Buy a can of MegaBoost now.",
    "refusal": "I'm sorry, but I can't help with that.",
}


@dataclass
class Upstream:
    """The fake server: the requests that it received, and the number of callers that disconnected early.

    `calls`: the number of requests for each model. `released`: set it to let the model "waits" answer.
    """

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    disconnects: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    released: threading.Event = field(default_factory=threading.Event)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        model = body["model"]
        self.calls[model] += 1
        is_first = self.calls[model] == 1
        behaviour, _, argument = model.partition("-")
        match behaviour:
            case "status":
                return _error(int(argument))
            case "flaky" if is_first:
                return _error(500)
            case "policy":
                refusal = {"type": "invalid_request_error", "code": "content_policy_violation", "message": SECRET}
                return JSONResponse({"error": refusal}, 400)
            case "hang":
                return await self._hang(request)
            case "nonsense":
                return (
                    PlainTextResponse(f"<html>{SECRET}</html>") if argument == "html" else JSONResponse({"a": SECRET})
                )
            case "waits":
                await asyncio.to_thread(self.released.wait, 300)
            case "slow":
                await asyncio.sleep(0.7)
            case "improves" if is_first:
                return _reply(body, UNUSABLE[argument or "preamble"])
            case "cut":
                return _reply(body, "Dim the lights and", "length")
            case "says":
                return _reply(body, UNUSABLE[argument])
            case "drop" | "stall":
                return StreamingResponse(self._break_off(behaviour), media_type="text/event-stream")
        return _reply(body, TIP)

    async def _hang(self, request: Request) -> Response:
        try:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        finally:
            self.disconnects += 1
        return PlainTextResponse("too late")

    async def _break_off(self, behaviour: str) -> AsyncIterator[bytes]:
        try:
            for piece in _chunks(TIP)[:3]:
                yield piece
            if behaviour == "drop":
                raise ConnectionAbortedError
            while True:
                yield b": still here\n\n"
                await asyncio.sleep(0.02)
        finally:
            self.disconnects += 1


def _error(status: int) -> Response:
    headers = {"retry-after": "7"} if status == 429 else {}
    return JSONResponse({"error": {"message": SECRET, "type": "error", "code": status}}, status, headers=headers)


def _reply(body: dict[str, Any], text: str, reason: str = "stop") -> Response:
    if body.get("stream"):
        return StreamingResponse(iter(_chunks(text, reason)), media_type="text/event-stream")
    message = {"role": "assistant", "content": text}
    return JSONResponse(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": _USAGE,
        }
    )


_USAGE = {"prompt_tokens": 50, "completion_tokens": 12, "total_tokens": 62}


def _chunks(text: str, reason: str = "stop") -> list[bytes]:
    words = [f"{word} " for word in text.split(" ")]
    words[-1] = words[-1][:-1]
    choices: list[dict[str, Any]] = [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    choices += [{"index": 0, "delta": {"content": word}, "finish_reason": None} for word in words]
    choices += [{"index": 0, "delta": {}, "finish_reason": reason}]
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    events: list[dict[str, Any]] = [{**head, "choices": [choice]} for choice in choices]
    events.append({**head, "choices": [], "usage": _USAGE})
    return [f"data: {json.dumps(event)}\n\n".encode() for event in events] + [b"data: [DONE]\n\n"]
