"""The HTTP interface of serving: parse, call one function, answer."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any, TypedDict

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ml.errors import NotReady, TipsError, problems
from ml.guards import JsonOnly
from ml.serving.gateway import Gateway
from ml.serving.generate import Generator, Tip, TipStream
from ml.serving.prompts import PROMPTS
from ml.serving.schemas import GenerateRequest, GenerateResponse, Health, PromptInfo, PromptsResponse
from ml.settings import ServingSettings
from ml.telemetry import Telemetry

OPEN_PATHS = ("/health", "/metrics", "/docs", "/openapi.json")
"""Reachable without a key: what a load balancer, a metrics scraper and a developer need, and nothing personal."""

GENERATING_PATHS = ("/generate",)


class State(TypedDict):
    """What a handler can ask for; born and buried in the lifespan."""

    settings: ServingSettings
    telemetry: Telemetry
    gateway: Gateway
    generator: Generator


def _state(name: str) -> Any:
    async def from_state(request: Request) -> Any:  # a plain function would be run in a thread
        return getattr(request.state, name)

    return Depends(from_state)


SettingsDep = Annotated[ServingSettings, _state("settings")]
TelemetryDep = Annotated[Telemetry, _state("telemetry")]
GatewayDep = Annotated[Gateway, _state("gateway")]
GeneratorDep = Annotated[Generator, _state("generator")]

router = APIRouter()
open_router = APIRouter()


_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["meta", "delta", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_STREAM = """\
event: meta
data: {"generation_id": "…", "prompt_version": "v1", "prompt_digest": "…", "model": "…", "fallback": false}

event: delta
data: {"text": "Dim the lights"}

event: done
data: {"tip": "Dim the lights now.", "usage": {"input_tokens": 300, "output_tokens": 6}, "finish_reason": "stop"}
"""


@router.post(
    "/generate",
    summary="Write one tip",
    dependencies=[JsonOnly],
    response_model=GenerateResponse,
    responses={
        200: {
            "description": "The tip; with `stream`, server-sent events: `meta`, `delta`…, then `done` or `error`.",
            "content": {"text/event-stream": {"schema": _EVENT, "example": _STREAM}},
        },
        **problems(400, 401, 413, 415, 422, 502, 503, 504),
    },
)
async def generate(body: GenerateRequest, generator: GeneratorDep) -> Any:
    """Write one tip for the person whom the signals describe, with the prompt version asked for or the default."""
    if body.stream:
        stream = await generator.stream(body.known_signals(), body.prompt_version)
        return EventSourceResponse(_events(stream), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
    return GenerateResponse.of(await generator.generate(body.known_signals(), body.prompt_version))


async def _events(stream: TipStream) -> AsyncIterator[bytes]:
    yield _event("meta", asdict(stream.origin))
    async with aclosing(stream.pieces) as pieces:
        try:
            async for piece in pieces:
                if isinstance(piece, Tip):
                    done = {"tip": piece.text, "usage": asdict(piece.usage), "finish_reason": piece.finish_reason}
                    yield _event("done", done)
                else:
                    yield _event("delta", {"text": piece})
        except TipsError as error:
            yield _event("error", error.problem())


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data, ensure_ascii=False))


@router.get("/prompts", summary="The prompt versions", responses=problems(401))
async def prompts(settings: SettingsDep) -> PromptsResponse:
    """List the registered prompt versions with their digests, and the default."""
    return PromptsResponse(
        default=settings.default_prompt_version,
        prompts=[
            PromptInfo(version=version, description=prompt.description, digest=prompt.digest)
            for version, prompt in PROMPTS.items()
        ],
    )


@open_router.get("/health/live", summary="The process answers")
async def live() -> Health:
    """Answer as long as the process runs."""
    return Health(status="live")


@open_router.get("/health/ready", summary="Tips can be written", responses=problems(503))
async def ready(gateway: GatewayDep) -> Health:
    """Answer 200 when tips can be written; else 503, with what is still loading or missing."""
    if gateway.loading:
        states = "; ".join(f"{what}: {state}" for what, state in gateway.loading.items())
        raise NotReady(f"Not ready. {states}", retry_after=5)
    return Health(status="ready")


@open_router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(telemetry: TelemetryDep) -> Response:
    """Show the counters and histograms of this process, in Prometheus' text format."""
    return Response(generate_latest(telemetry.registry), media_type=CONTENT_TYPE_LATEST)
