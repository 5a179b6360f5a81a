"""A fake of three providers, whose models refuse parameters and reason as the real ones are documented to do."""

import json
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.upstream import TIP
from tests.wire_formats import FINISH_REASONS, Answer, refuse, reply

BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."

REASONING_TOKENS = {"none": 0, "disable": 0, "minimal": 64, "low": 1000, None: 3000}
"""The tokens that a reasoning model spends before its answer, by effort."""


@dataclass
class HostedModels:
    """A server with the interfaces of OpenAI, Anthropic and Gemini, and the requests that it received.

    `outcome`: how answers end (a key of FINISH_REASONS; `none` for not at all), or `overloaded` for Anthropic's error
    in a stream.
    """

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    outcome: str = "stop"

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._openai, methods=["POST"]),
                Route("/v1/messages", self._anthropic, methods=["POST"]),
                Route("/{version}/models/{call}", self._gemini, methods=["POST"]),
                Route("/models/{call}", self._gemini, methods=["POST"]),
            ]
        )

    def environment(self) -> dict[str, str]:
        """Return the variables that make this server the address of the three providers."""
        return {
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "ANTHROPIC_API_BASE": self.url,
            "GEMINI_API_BASE": self.url,
            "OPENAI_API_KEY": "k",
            "ANTHROPIC_API_KEY": "k",
            "GEMINI_API_KEY": "k",
        }

    async def _openai(self, request: Request) -> Response:
        body = await self._receive(request)
        model = body["model"]
        is_reasoning = model.startswith(("gpt-5", "o4", "unknown-reasoning"))
        if is_reasoning and "max_tokens" in body and not model.startswith("unknown"):
            return refuse("openai", "Unsupported parameter: 'max_tokens' is not supported with this model.")
        if body.get("temperature", 1) != 1 and (is_reasoning or model == "unknown-strict"):
            return refuse("openai", "Unsupported value: 'temperature' does not support 0.4 with this model.")
        if "top_p" in body and "temperature" in body and model in {"unknown-strict", "unknown-either"}:
            return refuse("openai", BOTH)
        if model == "unknown-new" and "max_tokens" in body:
            return refuse("openai", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        limit = body.get("max_completion_tokens") or body["max_tokens"]
        tokens = REASONING_TOKENS[body.get("reasoning_effort")] if is_reasoning else 0
        return self._answer("openai", tokens, limit, stream=bool(body.get("stream")))

    async def _anthropic(self, request: Request) -> Response:
        body = await self._receive(request)
        if "temperature" in body and "top_p" in body:
            return refuse("anthropic", BOTH)
        if "opus-4-7" in body["model"] and ("temperature" in body or "top_p" in body):
            return refuse("anthropic", "temperature: this model does not accept sampling parameters.")
        if self.outcome == "overloaded":
            event = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
            return Response(f"event: error\ndata: {json.dumps(event)}\n\n", media_type="text/event-stream")
        tokens = body.get("thinking", {}).get("budget_tokens", 0)
        return self._answer("anthropic", tokens, body["max_tokens"], stream=bool(body.get("stream")))

    async def _gemini(self, request: Request) -> Response:
        body = await self._receive(request)
        config = body["generationConfig"]
        thinking = config.get("thinkingConfig", {})
        tokens = thinking.get("thinkingBudget", REASONING_TOKENS[thinking.get("thinkingLevel")])
        if "2.5-pro" in request.path_params["call"] and tokens == 0:
            return refuse("gemini", "Budget 0 is invalid. This model only works in thinking mode.")
        is_stream = request.path_params["call"].endswith(":streamGenerateContent")
        return self._answer("gemini", tokens, config["max_output_tokens"], stream=is_stream)

    async def _receive(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.bodies.append(body)
        return body

    def _answer(self, provider: str, reasoning_tokens: int, limit: int, *, stream: bool) -> Response:
        """Answer, or spend the whole limit on reasoning if it does not leave room for an answer."""
        if reasoning_tokens + 20 > limit:
            return reply(provider, Answer("", FINISH_REASONS[provider]["length"], limit), stream=stream)
        reason = FINISH_REASONS[provider].get(self.outcome)
        return reply(provider, Answer(TIP, reason, reasoning_tokens), stream=stream)
