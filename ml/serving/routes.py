"""The HTTP interface of serving: parse, call one function, answer."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any, TypedDict

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel, ValidationError

from ml.platform.app_factory import ReadinessCheck
from ml.platform.dependencies import CallerTimeout, RequireJson, from_state, require_json, require_local_request
from ml.platform.errors import TipsError
from ml.platform.middleware.in_flight_limit import InFlightLimit
from ml.platform.problem_json import error_from_validation, problem_responses
from ml.serving.generate import Tip, TipGenerator, TipStream
from ml.serving.prompts import PROMPTS
from ml.serving.schemas import (
    GenerateRequest,
    GenerateResponse,
    PoliciesResponse,
    PromptInfo,
    PromptsResponse,
    ScoreRequest,
    ScoreResponse,
)
from ml.serving.score import Scorer
from ml.serving.settings import ServingSettings

GENERATION_PATHS = frozenset({"/generate"})

SCORE_LIMIT = InFlightLimit(frozenset({"/score"}), most=8)
"""At some two milliseconds each, more at once would be a queue that nobody wants to stand in."""


class ServingState(TypedDict):
    """What a handler can ask for; born and buried in the lifespan."""

    serving_settings: ServingSettings
    generator: TipGenerator
    scorer: Scorer
    ready: Sequence[ReadinessCheck]


SettingsDep = Annotated[ServingSettings, from_state("serving_settings")]
GeneratorDep = Annotated[TipGenerator, from_state("generator")]
ScorerDep = Annotated[Scorer, from_state("scorer")]


class StraightRoute(APIRoute):
    """A route of which a body and the scorer are all that it needs, each of them taken straight from the request.

    The document is made of the handler's signature as ever, but nothing is looked up by it for each request, and
    pydantic reads the body itself: that takes a sixth off what ranking costs.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        body: type[BaseModel] = self.endpoint.__annotations__["body"]

        async def handle(request: Request) -> Response:
            await require_json(request)
            try:
                asked = body.model_validate_json(await request.body())
            except ValidationError as error:
                raise error_from_validation(error.errors()) from None
            answer: Response = await self.endpoint(asked, request.state.scorer)
            return answer

        return handle


router = APIRouter()
straight = APIRouter(route_class=StraightRoute)


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
    dependencies=[RequireJson],
    response_model=GenerateResponse,
    responses={
        200: {
            "description": "The tip; with `stream`, server-sent events: `meta`, `delta`…, then `done` or `error`.",
            "content": {"text/event-stream": {"schema": _EVENT, "example": _STREAM}},
        },
        **problem_responses(400, 401, 413, 415, 422, 502, 503, 504),
    },
)
async def generate(body: GenerateRequest, generator: GeneratorDep, within: CallerTimeout) -> Any:
    """Write one tip for the person whom the signals describe, with the prompt version asked for or the default."""
    if body.stream:
        stream = await generator.stream(body.signals.known(), body.prompt_version, within=within)
        return event_stream(stream, _done)
    return GenerateResponse.of(await generator.generate(body.signals.known(), body.prompt_version, within=within))


async def _done(tip: Tip) -> Mapping[str, Any]:
    return {"tip": tip.text, "usage": asdict(tip.usage), "finish_reason": tip.finish_reason}


def event_stream(stream: TipStream, done: Callable[[Tip], Awaitable[Mapping[str, Any]]]) -> EventSourceResponse:
    """Answer with a tip as it is written; `done` returns what the last event says of it, or raises a TipsError."""
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


@straight.post(
    "/score",
    summary="Choose one of several tips",
    response_model=ScoreResponse,
    responses=problem_responses(400, 401, 413, 415, 422, 503),
)
async def score(body: ScoreRequest, scorer: ScorerDep) -> Response:
    """Rank the candidates for the person whom the signals describe, and draw the one to show."""
    decision = await scorer.score(
        [candidate.id for candidate in body.candidates],
        [candidate.known() for candidate in body.candidates],
        body.signals.known(),
        event_id=body.event_id,
        user_id=body.user_id,
    )
    # Written here: the framework would check each part of it once more.
    return Response(ScoreResponse.of(decision).model_dump_json(), media_type="application/json")


router.include_router(straight)


async def _operator(request: Request, settings: SettingsDep) -> None:
    """Where there are keys, the caller has shown one by now."""
    if not settings.api_keys:
        require_local_request(request, "Without API_KEYS, this is for callers on the service's machine only.")


@router.post(
    "/admin/reload",
    summary="Load the ranking policies anew",
    dependencies=[Depends(_operator)],
    responses=problem_responses(401, 403, 409),
)
async def reload(scorer: ScorerDep) -> PoliciesResponse:
    """Put the policies that the settings name in force as they are now; if one cannot be used, nothing changes.

    Needs a key; where there are no keys, a caller on the service's own machine.
    """
    return PoliciesResponse.of(await scorer.reload())


@router.get("/prompts", summary="The prompt versions", responses=problem_responses(401))
async def prompts(settings: SettingsDep) -> PromptsResponse:
    """List the registered prompt versions with their digests, and the default."""
    return PromptsResponse(
        default=settings.default_prompt_version,
        prompts=[
            PromptInfo(version=version, description=prompt.description, digest=prompt.digest)
            for version, prompt in PROMPTS.items()
        ],
    )
