"""A serving for the benchmark of rollouts that answers at once, with the version that it was asked for."""

import json
from typing import Any

from starlette.types import Receive, Scope, Send

VERSIONS = ("v1", "v2", "v3", "v4", "v5")
DIGEST = "a" * 64
"""Of all versions."""

_LISTS = {
    "/prompts": {
        "default": "v1",
        "model": "openai/immediate",
        "prompts": [{"version": version, "digest": DIGEST} for version in VERSIONS],
    },
    "/policies": {"default": "uniform", "policies": [{"name": "uniform", "version": "uniform"}]},
}
_TIP = {
    "generation_id": "095e65266d0e4075aec2ecad5f13abb2",
    "tip": "Dim the lights now.",
    "prompt_digest": DIGEST,
    "model": "openai/immediate",
    "fallback": False,
    "usage": {"input_tokens": 50, "output_tokens": 12},
    "finish_reason": "stop",
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer GET /prompts, GET /policies and POST /generate."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer: dict[str, Any] = _LISTS.get(scope["path"]) or {**_TIP, "prompt_version": json.loads(body)["prompt_version"]}
    content = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
