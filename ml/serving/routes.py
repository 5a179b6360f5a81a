"""The routes of serving: each handler parses the request, calls one function and answers."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any, TypedDict

from fastapi import APIRouter, Depends, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event

from ml.platform.app_factory import ReadinessCheck
from ml.platform.dependencies import (
    CallerTimeout,
    InBackground,
    from_state,
    json_body,
    read_json,
    require_local_request,
)
from ml.platform.errors import TipsError
from ml.platform.openapi import Tag, request_body
from ml.platform.problem_json import problem_responses
from ml.serving.cards import serving_cards
from ml.serving.generate import Tip, TipGenerator, TipStream
from ml.serving.policies import ActivePolicies
from ml.serving.prompts import PROMPTS
from ml.serving.schemas import (
    CardsResponse,
    GenerateRequest,
    GenerateResponse,
    PoliciesResponse,
    PromptInfo,
    PromptsResponse,
    ScoreRequest,
    ScoreResponse,
    score_response,
)
from ml.serving.score import Scorer
from ml.serving.settings import ServingSettings

MAX_CONCURRENT_RANKINGS = 8
"""A ranking takes about 2 ms of CPU: more concurrent ones would exceed the latency budget."""


class ServingState(TypedDict):
    """The resources that handlers use; opened and closed by the lifespan."""

    serving_settings: ServingSettings
    generator: TipGenerator
    scorer: Scorer
    policies: ActivePolicies
    ready: Sequence[ReadinessCheck]


SettingsDep = Annotated[ServingSettings, from_state("serving_settings")]
GeneratorDep = Annotated[TipGenerator, from_state("generator")]
PoliciesDep = Annotated[ActivePolicies, from_state("policies")]


router = APIRouter(tags=[Tag.SERVING])

_EVENT_SCHEMA = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["meta", "delta", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_STREAM_EXAMPLE = """\
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
    response_model=GenerateResponse,
    responses={
        200: {
            "description": "The tip; with `stream`, server-sent events: `meta`, `delta`…, then `done` or `error`.",
            "content": {"text/event-stream": {"schema": _EVENT_SCHEMA, "example": _STREAM_EXAMPLE}},
        },
        **problem_responses(400, 401, 408, 413, 415, 422, 502, 503, 504),
    },
    openapi_extra=request_body(GenerateRequest),
)
async def generate(
    body: Annotated[GenerateRequest, json_body(GenerateRequest)],
    generator: GeneratorDep,
    timeout: CallerTimeout,
    background: InBackground,
) -> Any:
    """Write one tip for the user whom the signals describe, with the requested prompt version or the default."""
    if body.stream:
        stream = await generator.stream(
            body.signals.known(), body.prompt_version, timeout=timeout, background=background
        )
        return event_stream(stream, _done)
    return GenerateResponse.of(
        await generator.generate(body.signals.known(), body.prompt_version, timeout=timeout, background=background)
    )


@router.post(
    "/score",
    summary="Rank candidate tips and draw the one to show",
    response_model=ScoreResponse,
    responses=problem_responses(400, 401, 408, 413, 415, 422, 503),
    openapi_extra=request_body(ScoreRequest),
)
async def score(request: Request) -> Response:
    """Rank the candidates for the user whom the signals describe, and draw the one to show."""
    body = await read_json(request, ScoreRequest)
    scorer: Scorer = request.state.scorer  # not a dependency: resolving one costs CPU in every request
    result = await scorer.score(
        [candidate.id for candidate in body.candidates],
        [candidate.known() for candidate in body.candidates],
        body.signals.known(),
        event_id=body.event_id,
        user_id=body.user_id,
        policy=body.policy,
    )
    return Response(score_response(result), media_type="application/json")


async def _require_operator(request: Request, settings: SettingsDep) -> None:
    """Raise Forbidden unless the caller has a key (checked by the middleware) or is on this machine."""
    if not settings.api_keys:
        require_local_request(request, "Without API_KEYS, only callers on the service's own machine may do this.")


@router.post(
    "/admin/reload",
    summary="Reload the ranking policies",
    dependencies=[Depends(_require_operator)],
    responses=problem_responses(401, 403, 409),
)
async def reload(policies: PoliciesDep) -> PoliciesResponse:
    """Read the policies that the settings name again, and make them active; if one cannot be used, nothing changes.

    Needs an API key; if none are configured, the caller must be on the service's own machine.
    """
    return PoliciesResponse.of(await policies.reload())


@router.get("/prompts", summary="The prompt versions", responses=problem_responses(401))
async def prompts(settings: SettingsDep) -> PromptsResponse:
    """List the registered prompt versions with their digests, and the default."""
    return PromptsResponse(
        default=settings.default_prompt_version,
        model=settings.tip_model,
        prompts=[
            PromptInfo(version=version, description=prompt.description, digest=prompt.digest)
            for version, prompt in PROMPTS.items()
        ],
    )


@router.get("/policies", summary="The ranking policies", responses=problem_responses(401))
async def policies(policies: PoliciesDep) -> PoliciesResponse:
    """List the loaded ranking policies, `uniform` first, and the default."""
    return PoliciesResponse.of(policies.loaded)


@router.get("/cards", summary="The model cards", responses=problem_responses(401))
async def cards(settings: SettingsDep, policies: PoliciesDep) -> CardsResponse:
    """List the model cards of the prompt versions, of the ranking policies that are loaded, and of the models."""
    return CardsResponse(cards=serving_cards(settings, policies.loaded.by_version.values()))


async def _done(tip: Tip) -> Mapping[str, Any]:
    return {"tip": tip.text, "usage": asdict(tip.usage), "finish_reason": tip.finish_reason}


def event_stream(stream: TipStream, done: Callable[[Tip], Awaitable[Mapping[str, Any]]]) -> EventSourceResponse:
    """Return the server-sent events of a tip; `done` returns the data of the last event, or raises TipsError."""
    return EventSourceResponse(_events(stream, done), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def _events(stream: TipStream, done: Callable[[Tip], Awaitable[Mapping[str, Any]]]) -> AsyncIterator[bytes]:
    yield _event("meta", asdict(stream.origin))
    async with aclosing(stream.pieces) as pieces:
        try:
            async for piece in pieces:
                if isinstance(piece, Tip):
                    yield _event("done", await done(piece))
                else:
                    yield _event("delta", {"text": piece})
        except TipsError as error:
            yield _event("error", error.problem())


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data, ensure_ascii=False))
