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


async def _last(request: Request) -> Response:
    return JSONResponse(ranking(await request.json()))


def ranking(asked: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What serving answers with a learned policy, which chose the last of the candidates that it was asked for."""
    ids = [candidate["id"] for candidate in asked["candidates"]]
    n = len(ids)
    probabilities = [*[0.5 / (n - 1)] * (n - 1), 0.5] if n > 1 else [1.0]
    return {
        "event_id": asked["event_id"],
        "policy": {"name": "linear", "version": "0123456789ab"},
        "chosen": ids[-1],
        "scores": [
            {"id": one, "score": (place + 1) / 10, "probability": probability}
            for place, (one, probability) in enumerate(zip(ids, probabilities, strict=True))
        ],
        "aggregates": {"tips_7d": 3.0},
    } | changes


@dataclass
class FakeServing:
    """Answers each request for a tip with `answer`: by default, one of the version that was asked for.

    Candidates are ranked by `rank`: by default, a policy that chooses the last one.
    """

    url: str = ""
    versions: tuple[str, ...] = ("v1", "v2-mentor")
    answer: Answer = _written
    rank: Answer = _last
    to_rank: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/generate", self._generate, methods=["POST"]),
                Route("/score", self._score, methods=["POST"]),
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

    async def _score(self, request: Request) -> Response:
        self.to_rank.append(await request.json())
        return await self.rank(request)

    async def _prompts(self, _: Request) -> Response:
        prompts = [{"version": version, "description": "", "digest": "a" * 64} for version in self.versions]
        return JSONResponse({"default": "v1", "prompts": prompts})
