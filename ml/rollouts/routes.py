"""`GET /rollouts` and `GET /rollouts/{id}`: read-only; changes are made with the page and with `tips rollout`."""

from typing import Annotated

from fastapi import APIRouter, Path

from ml.platform.dependencies import from_state
from ml.platform.openapi import Tag
from ml.platform.problem_json import problem_responses
from ml.rollouts.holdout import HoldoutReader
from ml.rollouts.operations import Rollouts
from ml.rollouts.schemas import HoldoutResponse, RolloutResponse, RolloutsResponse

RolloutsDep = Annotated[Rollouts, from_state("rollouts")]
HoldoutReaderDep = Annotated[HoldoutReader, from_state("holdout")]

router = APIRouter(tags=[Tag.ROLLOUTS])


@router.get("/rollouts", summary="All rollouts", responses=problem_responses(401, 503))
async def all_rollouts(rollouts: RolloutsDep) -> RolloutsResponse:
    """Return the champions, the open rollouts with the gates of their next steps, and the rollouts that have ended."""
    return RolloutsResponse.of(await rollouts.reports.overview())


# Before the next route, which would take `holdout` for the id of a rollout.
@router.get("/rollouts/holdout", summary="Held-out users", responses=problem_responses(401, 503))
async def holdout(reader: HoldoutReaderDep) -> HoldoutResponse:
    """Return what rollouts have changed as a whole: users who follow them, compared with held-out users.

    It reads the tips, not the counts, so it takes longer than `GET /rollouts`.
    """
    return HoldoutResponse.model_validate(await reader.compare())


@router.get("/rollouts/{rollout}", summary="One rollout", responses=problem_responses(401, 404, 422, 503))
async def one_rollout(
    rollout: Annotated[int, Path(ge=1, lt=2**31, description="The id of the event with which it began.")],
    rollouts: RolloutsDep,
) -> RolloutResponse:
    """Return where a rollout is, the gates of its next step, its figures and its events; 404 for an unknown one."""
    return RolloutResponse.of(await rollouts.reports.report(rollout))
