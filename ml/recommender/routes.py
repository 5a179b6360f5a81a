"""The HTTP interface of the recommender: each handler parses the request, calls one function and answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, TypedDict

from fastapi import APIRouter

from ml.platform.app_factory import ReadinessCheck
from ml.platform.clock import Clock
from ml.platform.dependencies import CallerTimeout, from_state, json_body
from ml.platform.errors import FieldError, UnknownTip, UnprocessableRequest
from ml.platform.idempotency_key import IdempotencyKey, OptionalIdempotencyKey
from ml.platform.openapi import Tag, request_body
from ml.platform.problem_json import problem_responses
from ml.platform.telemetry import Telemetry
from ml.recommender.recommend import Recommender
from ml.recommender.schemas import (
    ExposureBatch,
    ExposureBatchResponse,
    ExposureRequest,
    ExposureResponse,
    ReactionBatch,
    ReactionBatchResponse,
    ReactionRequest,
    ReactionResponse,
    TipRequest,
    TipResponse,
)
from ml.rewards.report import RewardReporter
from ml.rewards.routes import ClockDep
from ml.rollouts.cards import CardReader
from ml.rollouts.holdout import HoldoutReader
from ml.rollouts.operations import Rollouts
from ml.store.exposures import ExposureResult
from ml.store.reactions import ReactionResult, UnknownTipsError
from ml.store.tips import TipStore

MAX_CLOCK_SKEW = timedelta(minutes=1)
"""The maximum by which a caller's clock may be ahead."""


class RecommenderState(TypedDict):
    """The state that handlers can use; created and closed by the lifespan."""

    recommender: Recommender
    tip_store: TipStore
    reporter: RewardReporter
    rollouts: Rollouts
    cards: CardReader
    holdout: HoldoutReader
    clock: Clock
    telemetry: Telemetry
    ready: Sequence[ReadinessCheck]


RecommenderDep = Annotated[Recommender, from_state("recommender")]
TipStoreDep = Annotated[TipStore, from_state("tip_store")]
TelemetryDep = Annotated[Telemetry, from_state("telemetry")]

router = APIRouter(tags=[Tag.TIPS])


@router.post(
    "/tips",
    summary="Write a tip for a user",
    responses=problem_responses(400, 401, 408, 409, 413, 415, 422, 502, 503, 504),
    openapi_extra=request_body(TipRequest),
)
async def tips(
    body: Annotated[TipRequest, json_body(TipRequest)],
    recommender: RecommenderDep,
    timeout: CallerTimeout,
    idempotency_key: OptionalIdempotencyKey,
) -> TipResponse:
    """Draw a prompt version, generate the tip, store it durably, then answer.

    With an `Idempotency-Key`, the same request gets the same tip for 24 hours: 409 while the first one is in progress,
    422 for another body.
    """
    key = idempotency_key.with_body(body) if idempotency_key else None
    return TipResponse.of(await recommender.tip(body.user_id, body.signals.known(), timeout=timeout, key=key))


@router.post(
    "/reactions",
    summary="Report a reaction to a tip",
    responses=problem_responses(400, 401, 404, 408, 409, 413, 415, 422, 503),
    openapi_extra=request_body(ReactionRequest),
)
async def react(
    body: Annotated[ReactionRequest, json_body(ReactionRequest)],
    tip_store: TipStoreDep,
    clock: ClockDep,
    telemetry: TelemetryDep,
    idempotency_key: OptionalIdempotencyKey,
) -> ReactionResponse:
    """Store a reaction durably, then answer. The latest reaction is effective; a repeated one changes nothing.

    With an `Idempotency-Key`, the same request gets the same answer for 24 hours; 422 for another body.
    """
    key = idempotency_key.with_body(body) if idempotency_key else None
    (result,) = await _store_reactions([body], "#", tip_store, clock, telemetry, key=key)
    return ReactionResponse.of(result)


@router.post(
    "/reactions/batch",
    summary="Report several reactions",
    responses=problem_responses(400, 401, 404, 408, 413, 415, 422, 503),
    openapi_extra=request_body(ReactionBatch),
)
async def react_batch(
    body: Annotated[ReactionBatch, json_body(ReactionBatch)],
    tip_store: TipStoreDep,
    clock: ClockDep,
    telemetry: TelemetryDep,
) -> ReactionBatchResponse:
    """Store all reactions durably, then answer; if any is invalid, store none and report the error of each."""
    results = await _store_reactions(body.reactions, "#/reactions/{}", tip_store, clock, telemetry)
    return ReactionBatchResponse(results=[ReactionResponse.of(result) for result in results])


async def _store_reactions(
    reactions: Sequence[ReactionRequest],
    pointer: str,
    tip_store: TipStore,
    clock: Clock,
    telemetry: Telemetry,
    *,
    key: IdempotencyKey | None = None,
) -> list[ReactionResult]:
    """Store all reactions. `pointer`: the format of the JSON pointer to the reaction at an index of the body."""
    with _report_errors(reactions, pointer, clock, "A reaction"):
        results = await tip_store.react([reaction.as_reaction() for reaction in reactions], key)
    for reaction, result in zip(reactions, results, strict=True):
        if not result.replayed:
            telemetry.reactions.labels(reaction.reaction, result.outcome).inc()
    return results


@router.post(
    "/exposures",
    summary="Report that a user has seen a tip",
    responses=problem_responses(400, 401, 404, 408, 413, 415, 422, 503),
    openapi_extra=request_body(ExposureRequest),
)
async def expose(
    body: Annotated[ExposureRequest, json_body(ExposureRequest)],
    tip_store: TipStoreDep,
    clock: ClockDep,
    telemetry: TelemetryDep,
) -> ExposureResponse:
    """Store an exposure durably, then answer. The first report of a tip counts; a repeated one changes nothing."""
    (result,) = await _store_exposures([body], "#", tip_store, clock, telemetry)
    return ExposureResponse.of(result)


@router.post(
    "/exposures/batch",
    summary="Report several exposures",
    responses=problem_responses(400, 401, 404, 408, 413, 415, 422, 503),
    openapi_extra=request_body(ExposureBatch),
)
async def expose_batch(
    body: Annotated[ExposureBatch, json_body(ExposureBatch)],
    tip_store: TipStoreDep,
    clock: ClockDep,
    telemetry: TelemetryDep,
) -> ExposureBatchResponse:
    """Store all exposures durably, then answer; if any is invalid, store none and report the error of each."""
    results = await _store_exposures(body.exposures, "#/exposures/{}", tip_store, clock, telemetry)
    return ExposureBatchResponse(results=[ExposureResponse.of(result) for result in results])


async def _store_exposures(
    exposures: Sequence[ExposureRequest], pointer: str, tip_store: TipStore, clock: Clock, telemetry: Telemetry
) -> list[ExposureResult]:
    """Store all exposures. `pointer`: the format of the JSON pointer to the exposure at an index of the body."""
    with _report_errors(exposures, pointer, clock, "An exposure"):
        results = await tip_store.expose([exposure.as_exposure() for exposure in exposures])
    for result in results:
        telemetry.exposures.labels(result.outcome).inc()
    return results


@contextmanager
def _report_errors(
    reports: Sequence[ReactionRequest | ExposureRequest], pointer: str, clock: Clock, name: str
) -> Iterator[None]:
    """Raise an error that names each report with a time in the future, or, of the block, each one of an unknown tip."""
    latest = clock() + MAX_CLOCK_SKEW
    in_future = [index for index, report in enumerate(reports) if report.at and report.at > latest]
    if in_future:
        errors = [FieldError(f"{pointer}/at".format(index), "is in the future") for index in in_future]
        raise UnprocessableRequest(f"{name} is in the future; nothing has been stored.", errors=errors)
    try:
        yield
    except UnknownTipsError as unknown:
        errors = [FieldError(f"{pointer}/tip_id".format(index), "there is no such tip") for index in unknown.indexes]
        raise UnknownTip("There is no such tip; nothing has been stored.", errors=errors) from None
