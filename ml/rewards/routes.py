"""`GET /rewards` and `GET /rewards/users`, and the report that its query parameters describe."""

import re
from contextlib import suppress
from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ml.features.segments import SEGMENT_VALUES, check_segment
from ml.platform.clock import Clock
from ml.platform.dependencies import from_state
from ml.platform.errors import FieldError, UnprocessableRequest
from ml.platform.openapi import Tag
from ml.platform.problem_json import problem_responses
from ml.rewards.report import ReportWindow, RewardReport, RewardReporter
from ml.rewards.schemas import RewardsResponse, UserRewardsResponse
from ml.rewards.users import UserComparison, compare_users
from ml.store.visits import NEW, RETURNING

ReporterDep = Annotated[RewardReporter, from_state("reporter")]
ClockDep = Annotated[Clock, from_state("clock")]


REPORT_SEGMENTS = {**SEGMENT_VALUES, "visits": tuple(each.partition(":")[2] for each in (NEW, RETURNING))}
"""As `SEGMENT_VALUES`; reports are also by whether the user is new."""


def _parse_day(value: str | None) -> date | None:
    if not value:
        return None
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        with suppress(ValueError):
            return date.fromisoformat(value)
    raise PydanticCustomError("date", "should be a day, as 2026-01-31")


Day = Annotated[
    date | None,
    BeforeValidator(_parse_day),
    WithJsonSchema({"type": "string", "anyOf": [{"format": "date"}, {"maxLength": 0}]}),
]
"""A day; an empty value, which a form sends, is unset."""


async def _report(
    reporter: ReporterDep,
    clock: ClockDep,
    *,
    first: Annotated[Day, Query(alias="from", description="First day (UTC).")] = None,
    last: Annotated[
        Day, Query(alias="to", description="Last day (UTC), included; a day before `from` is a 422.")
    ] = None,
    segment: Annotated[
        str,
        Query(
            max_length=64,
            pattern="^[A-Za-z0-9_:-]*$",
            description="Only users of one segment, such as `mood:low` or `locale:de`; one that no user can be in is a "
            "422.",
        ),
    ] = "",
    baseline: Annotated[
        str | None,
        Query(
            max_length=64, description="The prompt version to compare with; one without tips in the window is a 422."
        ),
    ] = None,
) -> RewardReport:
    if segment:
        check_segment(segment, REPORT_SEGMENTS)
    window = ReportWindow(first, last, segment)
    if first and last and last < first:
        raise UnprocessableRequest("The window ends before it begins.", errors=[FieldError("#/to", "is before `from`")])
    return await reporter.report(window, clock(), baseline=baseline or None)


ReportDep = Annotated[RewardReport, Depends(_report)]
"""The report that the query parameters describe."""


async def _user_comparisons(report: ReportDep, reporter: ReporterDep, clock: ClockDep) -> list[UserComparison]:
    window = report.window
    draws = reporter.tip_store.user_draws(window.segment, window.hours, reporter.mature_before(clock()))
    return await compare_users(report, draws)


UserComparisonsDep = Annotated[list[UserComparison], Depends(_user_comparisons)]
"""The comparisons per user in the report that the query parameters describe."""

router = APIRouter(tags=[Tag.REWARDS])


@router.get("/rewards", summary="Rewards per prompt version", responses=problem_responses(401, 422, 503))
async def rewards(report: ReportDep) -> RewardsResponse:
    """Return tips, reactions and reward rates per prompt version and digest, with intervals that hold at every look."""
    return RewardsResponse.of(report)


@router.get("/rewards/users", summary="Rewards per user", responses=problem_responses(401, 422, 503))
async def user_rewards(report: ReportDep, comparisons: UserComparisonsDep) -> UserRewardsResponse:
    """Return each version compared with the baseline, where each user counts once; for one look, without a verdict.

    It reads the tips, not the counts, so it takes longer than `GET /rewards`.
    """
    return UserRewardsResponse.of(report, comparisons)
