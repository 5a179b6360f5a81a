"""A fake serving: its responses are set by the test, and the requests it received are recorded."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

DIGEST = "a" * 64
POLICY_VERSION = "0123456789ab"

TIP_RESPONSE = {
    "generation_id": "095e65266d0e4075aec2ecad5f13abb2",
    "tip": "Dim the lights now.",
    "prompt_version": "v1",
    "prompt_digest": DIGEST,
    "model": "openai/good",
    "fallback": False,
    "usage": {"input_tokens": 50, "output_tokens": 12},
    "finish_reason": "stop",
}
"""The default response of POST /generate, for the version v1."""

Handler = Callable[[Request], Awaitable[Response]]


def ranking(request_body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the response of a learned policy to POST /score, in which the last candidate is chosen."""
    ids = [candidate["id"] for candidate in request_body["candidates"]]
    n = len(ids)
    probabilities = [*[0.5 / (n - 1)] * (n - 1), 0.5] if n > 1 else [1.0]
    return {
        "event_id": request_body["event_id"],
        "policy": {"name": "linear", "version": POLICY_VERSION},
        "chosen": ids[-1],
        "scores": [
            {"id": candidate_id, "score": (index + 1) / 10, "probability": probability}
            for index, (candidate_id, probability) in enumerate(zip(ids, probabilities, strict=True))
        ],
        "aggregates": {"tips_7d": 3.0},
        "aggregates_at": "2026-02-28T00:00:00Z",
    } | changes


async def hang(request: Request) -> Response:
    """Respond only after the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return Response()


def unknown_version(pointer: str, known: Iterable[str]) -> Response:
    """Return the response of serving to a request that names a version that it does not have."""
    error = {"pointer": pointer, "detail": "is not known", "allowed": [*known]}
    problem = {"type": "urn:tips:problem:invalid-field", "status": 422, "detail": "Unknown.", "errors": [error]}
    return JSONResponse(problem, 422)


async def _rank_last_highest(request: Request) -> Response:
    return JSONResponse(ranking(await request.json()))


@dataclass
class FakeServing:
    """Responds to POST /generate by `generate`, to POST /score by `score`, and to GET /prompts with `digests`.

    By default, `generate` returns a tip of the requested prompt version with its digest, and `score` a ranking in which
    the last candidate is chosen. GET /prompts fails while `prompts_fail` is true. GET /policies has `policies`, from
    each version to its name, and `policy` is the name of the default. Requests for versions that are `unknown` are
    refused, also if they are listed.
    """

    url: str = ""
    digests: dict[str, str] = field(default_factory=lambda: {"v1": DIGEST, "v2-mentor": DIGEST})
    prompts_fail: bool = False
    policy: str = "uniform"
    policies: dict[str, str] = field(default_factory=lambda: {"uniform": "uniform", POLICY_VERSION: "linear"})
    unknown: set[str] = field(default_factory=set)
    generate: Handler | None = None
    score: Handler = _rank_last_highest
    generate_bodies: list[dict[str, Any]] = field(default_factory=list)
    generate_headers: list[dict[str, str]] = field(default_factory=list)
    score_bodies: list[dict[str, Any]] = field(default_factory=list)
    score_headers: list[dict[str, str]] = field(default_factory=list)
    prompts_requests: int = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/generate", self._generate, methods=["POST"]),
                Route("/score", self._score, methods=["POST"]),
                Route("/prompts", self._prompts, methods=["GET"]),
                Route("/policies", self._policies, methods=["GET"]),
            ]
        )

    def respond(self, make_response: Callable[[], Response]) -> None:
        """Respond to every POST /generate with a new response of `make_response` from now on."""

        async def handler(_: Request) -> Response:
            return make_response()

        self.generate = handler

    def respond_with_tip(self, **fields: Any) -> None:
        """Respond to every POST /generate with a tip that has these fields from now on."""
        self.respond(lambda: JSONResponse(TIP_RESPONSE | fields))

    async def _generate(self, request: Request) -> Response:
        body = await request.json()
        self.generate_bodies.append(body)
        self.generate_headers.append(dict(request.headers))
        if self.generate:
            return await self.generate(request)
        prompt_version = body.get("prompt_version", "v1")
        if prompt_version in self.unknown:
            return unknown_version("#/prompt_version", self.digests)
        digest = self.digests.get(prompt_version, DIGEST)
        return JSONResponse(TIP_RESPONSE | {"prompt_version": prompt_version, "prompt_digest": digest})

    async def _score(self, request: Request) -> Response:
        body = await request.json()
        self.score_bodies.append(body)
        self.score_headers.append(dict(request.headers))
        policy = body.get("policy")
        if policy in self.unknown:
            return unknown_version("#/policy", self.policies)
        if policy and self.score is _rank_last_highest:
            return JSONResponse(ranking(body, policy={"name": self.policies[policy], "version": policy}))
        return await self.score(request)

    async def _prompts(self, _: Request) -> Response:
        self.prompts_requests += 1
        if self.prompts_fail:
            return JSONResponse({"type": "urn:tips:problem:not-ready", "detail": "Not ready."}, 503)
        prompts = [
            {"version": version, "description": "", "digest": digest} for version, digest in self.digests.items()
        ]
        return JSONResponse({"default": "v1", "model": "openai/good", "prompts": prompts})

    async def _policies(self, _: Request) -> Response:
        default = next(version for version, name in self.policies.items() if name == self.policy)
        policies = [{"name": name, "version": version} for version, name in self.policies.items()]
        return JSONResponse({"default": default, "policies": policies})
