"""A serving that answers what a test wants, and remembers what it was asked."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

WRITTEN = {
    "generation_id": "095e65266d0e4075aec2ecad5f13abb2",
    "tip": "Dim the lights now.",
    "prompt_version": "v1",
    "prompt_digest": "a" * 64,
    "model": "openai/good",
    "fallback": False,
    "usage": {"input_tokens": 50, "output_tokens": 12},
    "finish_reason": "stop",
}
"""What serving answers with a tip."""

Answer = Callable[[Request], Awaitable[Response]]


async def _written(request: Request) -> Response:
    asked = (await request.json()).get("prompt_version")
    return JSONResponse(WRITTEN | ({"prompt_version": asked} if asked else {}))


@dataclass
class FakeServing:
    """Answers each request for a tip with `answer`: by default, one of the version that was asked for."""

    url: str = ""
    versions: tuple[str, ...] = ("v1", "v2-mentor")
    answer: Answer = _written
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/generate", self._generate, methods=["POST"]),
                Route("/prompts", self._prompts, methods=["GET"]),
            ]
        )

    def answers(self, response: Callable[[], Response]) -> None:
        """Answer every request with a response of this kind from now on."""

        async def answer(_: Request) -> Response:
            return response()

        self.answer = answer

    def writes(self, **changes: Any) -> None:
        """Answer a tip with these fields from now on."""
        self.answers(lambda: JSONResponse(WRITTEN | changes))

    async def _generate(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        return await self.answer(request)

    async def _prompts(self, _: Request) -> Response:
        prompts = [{"version": version, "description": "", "digest": "a" * 64} for version in self.versions]
        return JSONResponse({"default": "v1", "prompts": prompts})
