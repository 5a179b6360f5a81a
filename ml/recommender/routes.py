"""The HTTP interface of the recommender: parse, call one function, answer."""

import re
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Annotated, TypedDict

from fastapi import APIRouter, Depends, Query
from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ml.platform.app_factory import ReadinessCheck
from ml.platform.clock import Clock
from ml.platform.dependencies import CallerTimeout, RequireJson, from_state
from ml.platform.errors import FieldError, UnknownTip, UnprocessableRequest
from ml.platform.problem_json import problem_responses
from ml.platform.telemetry import Telemetry
from ml.recommender.recommend import Recommender
from ml.recommender.schemas import (
    ReactionBatch,
    ReactionBatchResponse,
    ReactionRequest,
    ReactionResponse,
    TipRequest,
    TipResponse,
)
from ml.rewards.report import ReportWindow, RewardReport, RewardReporter
from ml.rewards.schemas import RewardsResponse
from ml.store.tips import ReactionResult, TipStore, UnknownTipsError

MAX_CLOCK_SKEW = timedelta(minutes=1)
"""How far a caller's clock may be ahead of ours."""


class RecommenderState(TypedDict):
    """What a handler can ask for; born and buried in the lifespan."""

    recommender: Recommender
    tip_scores: TipStore
    rewards: RewardReporter
    clock: Clock
    telemetry: Telemetry
    ready: Sequence[ReadinessCheck]


RecommenderDep = Annotated[Recommender, from_state("recommender")]
TipStoreDep = Annotated[TipStore, from_state("tip_scores")]
ReporterDep = Annotated[RewardReporter, from_state("rewards")]
ClockDep = Annotated[Clock, from_state("clock")]
TelemetryDep = Annotated[Telemetry, from_state("telemetry")]


def _day(value: str | None) -> str | None:
    if value and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        raise PydanticCustomError("date", "should be a day, as 2026-01-31")
    return value or None


Day = Annotated[
    date | None,
    BeforeValidator(_day),
    WithJsonSchema({"type": "string", "anyOf": [{"format": "date"}, {"maxLength": 0}]}),
]
"""Empty, as a form sends it, is unset."""


async def _report(
    rewards: ReporterDep,
    clock: ClockDep,
    *,
    first: Annotated[Day, Query(alias="from", description="First day (UTC).")] = None,
    last: Annotated[Day, Query(alias="to", description="Last day (UTC), included.")] = None,
    segment: Annotated[
        str,
        Query(
            max_length=64,
            pattern=r"^[\w:-]*$",
            description="Only people of one category, such as `mood:low` or `locale:de`.",
        ),
    ] = "",
    baseline: Annotated[str | None, Query(max_length=64, description="The version to compare with.")] = None,
) -> RewardReport:
    window = ReportWindow(first, last, segment)
    if not window.hours:
        raise UnprocessableRequest("The window ends before it begins.", errors=[FieldError("#/to", "is before `from`")])
    return await rewards.report(window, clock(), baseline=baseline or None)


ReportDep = Annotated[RewardReport, Depends(_report)]
"""The report that the query asks for."""

router = APIRouter()


@router.post(
    "/tips",
    summary="Write a tip for somebody",
    dependencies=[RequireJson],
    responses=problem_responses(400, 401, 413, 415, 422, 502, 503, 504),
)
async def tips(body: TipRequest, recommender: RecommenderDep, within: CallerTimeout) -> TipResponse:
    """Choose a prompt version, have the tip written, store it durably, then answer."""
    return TipResponse.of(await recommender.tip(body.user_id, body.signals.known(), within=within))


@router.post(
    "/reactions",
    summary="Tell how somebody reacted",
    dependencies=[RequireJson],
    responses=problem_responses(400, 401, 404, 413, 415, 422, 503),
)
async def react(
    body: ReactionRequest, tip_scores: TipStoreDep, clock: ClockDep, telemetry: TelemetryDep
) -> ReactionResponse:
    """Store a reaction durably, then answer. The latest one of a tip counts; sending one again changes nothing."""
    (counted,) = await _store([body], "#", tip_scores, clock, telemetry)
    return ReactionResponse.of(counted)


@router.post(
    "/reactions/batch",
    summary="Tell how several people reacted",
    dependencies=[RequireJson],
    responses=problem_responses(400, 401, 404, 413, 415, 422, 503),
)
async def react_batch(
    body: ReactionBatch, tip_scores: TipStoreDep, clock: ClockDep, telemetry: TelemetryDep
) -> ReactionBatchResponse:
    """Store all of the reactions durably, then answer; or none, with what is wrong with each."""
    counted = await _store(body.reactions, "#/reactions/{}", tip_scores, clock, telemetry)
    return ReactionBatchResponse(results=[ReactionResponse.of(one) for one in counted])


async def _store(
    given: Sequence[ReactionRequest], pointer: str, tip_scores: TipStore, clock: Clock, telemetry: Telemetry
) -> list[ReactionResult]:
    """Store them all; `pointer` is where the body has the one of an index."""
    latest = clock() + MAX_CLOCK_SKEW
    ahead = [index for index, one in enumerate(given) if one.at and one.at > latest]
    if ahead:
        errors = [FieldError(f"{pointer}/at".format(index), "is in the future") for index in ahead]
        raise UnprocessableRequest("A reaction is in the future; nothing has been stored.", errors=errors)
    try:
        counted = await tip_scores.react([one.reaction_at() for one in given])
    except UnknownTipsError as missing:
        errors = [FieldError(f"{pointer}/tip_id".format(index), "there is no such tip") for index in missing.indexes]
        raise UnknownTip("There is no such tip; nothing has been stored.", errors=errors) from None
    for one, result in zip(given, counted, strict=True):
        telemetry.reactions.labels(one.reaction, result.outcome).inc()
    return counted


@router.get("/rewards", summary="Which version helps", responses=problem_responses(401, 422, 503))
async def rewards(report: ReportDep) -> RewardsResponse:
    """Count tips and reactions per version and digest, with intervals that may be looked at every day."""
    return RewardsResponse.of(report)
