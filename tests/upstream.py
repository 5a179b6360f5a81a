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

ADDRESS_VARIABLES = ("OPENAI_BASE_URL", "ANTHROPIC_API_BASE", "GEMINI_API_BASE")
"""The variables from which LiteLLM takes the addresses of the providers."""


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

    def environment(self) -> dict[str, str]:
        """Return the variables that make this server the usual address of OpenAI, with a key."""
        return {"OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": "k"}

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
                return _nonsense(argument)
            case "ends":
                return _unfinished(body, argument)
            case "completes" if is_first:
                return _reply(body, "Dim the lights and", "length")
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
    headers = {"retry-after": "7"} if status in {429, 529} else {}
    return JSONResponse({"error": {"message": SECRET, "type": "error", "code": status}}, status, headers=headers)


def _nonsense(kind: str) -> Response:
    if kind == "html":
        return PlainTextResponse(f"<html>{SECRET}</html>", media_type="text/html")
    if kind == "json":
        return JSONResponse({"a": SECRET})
    return Response(NONSENSE[kind], media_type="application/json")


def _unfinished(body: dict[str, Any], ending: str) -> Response:
    """Answer with a finish reason, or with none: `none` drops the connection's end, `done` only the reason."""
    if ending not in {"none", "done"}:
        return _reply(body, TIP, ending)
    if not body.get("stream"):
        return JSONResponse(_completion(TIP, None))
    chunks = [chunk for chunk in _chunks(TIP) if b'"finish_reason": "stop"' not in chunk]
    return StreamingResponse(iter(chunks if ending == "done" else chunks[:-2]), media_type="text/event-stream")


def _reply(body: dict[str, Any], text: str, reason: str = "stop") -> Response:
    if body.get("stream"):
        return StreamingResponse(iter(_chunks(text, reason)), media_type="text/event-stream")
    return JSONResponse(_completion(text, reason))


def _completion(text: object, reason: str | None = "stop", usage: object = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": usage or _USAGE,
    }


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


NONSENSE = {
    "empty": b"",
    "list": b"[1,2]",
    "null": b"null",
    "number": b"7",
    "choices": b'{"choices": null}',
    "message": b'{"choices": [{"message": null}]}',
    "content": json.dumps(_completion(5)).encode(),
    "usage": json.dumps(_completion(TIP, usage={"prompt_tokens": "many", "completion_tokens": []})).encode(),
}
"""Responses that are no answer, by what is wrong."""
