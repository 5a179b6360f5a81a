"""Response schemas of `GET /rewards` and `GET /rewards/users`."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Self

from pydantic import BaseModel, Field

from ml.rewards.comparison import VerdictKind
from ml.rewards.funnel import Step
from ml.rewards.report import RewardReport
from ml.rewards.users import UserComparison


class IntervalResponse(BaseModel):
    """An estimate with the current interval of a confidence sequence, which holds at every look."""

    estimate: float
    low: float
    high: float


class ComparisonResponse(BaseModel):
    """A variant compared with the baseline in this traffic."""

    difference: IntervalResponse | None = Field(
        description="Of the mean rewards, over the tips for which both could have been drawn; None without any."
    )
    verdict: VerdictKind = Field(
        description="`exploratory`: the window, the segment or the baseline is not the default one, so there is none."
    )
    tips: int = Field(description="The number of tips that the difference is over.")
    more_tips: int | None = Field(
        description="The approximate number of further tips until there is a verdict, at the current difference."
    )
    words: str


class DayResponse(BaseModel):
    """One day (UTC) of a variant."""

    day: date
    counted: int
    reward: float


class VariantResponse(BaseModel):
    """A prompt version with one digest."""

    prompt_version: str
    prompt_digest: str
    label: str
    tips: int = Field(description="All tips of the variant: the sum of `counted`, `young`, `dependent` and `unseen`.")
    reacted: int = Field(description="Tips with a reaction.")
    counted: int = Field(description="Mature tips that count: the denominator of the reward.")
    young: int = Field(description="Independent tips that are younger than the reaction window.")
    dependent: int = Field(
        description="Tips that a learned policy chose among candidates, or whose version was drawn per user "
        "(`sticky`). They are excluded from `counted`, `reward`, `comparison` and `days`."
    )
    unseen: int = Field(
        description="Mature tips without an exposure report within the reaction window, where `TIP_EXPOSURE` is "
        "`reported`: they are excluded too."
    )
    exposure_unknown: int = Field(description="The unseen tips that are older than the first exposure report.")
    reactions: dict[str, int] = Field(description="The number of tips with each reaction; the sum is `reacted`.")
    reward: IntervalResponse | None = Field(
        description="The mean reward of the counted tips: of this traffic, not a property of the version. None without "
        "any; its interval is a 95 % confidence sequence."
    )
    comparison: ComparisonResponse | None = Field(description="None for the baseline.")
    input_tokens: float = Field(description="Mean per tip.")
    output_tokens: float = Field(description="Mean per tip.")
    ms: float = Field(description="Mean per tip.")
    days: list[DayResponse]


class FunnelRowResponse(BaseModel):
    """The mature tips of one drawn prompt version, with all its digests."""

    prompt_version: str
    drawn: int
    written: int = Field(description="By the first model of `TIP_MODEL`.")
    fallback: int = Field(description="Drawn, and written by a fallback model.")
    failed: int = Field(description="Drawn, and not written.")
    shown: int = Field(description="Of the written ones, without the candidates that were not shown.")
    unknown: int = Field(description="Of the shown ones, those before the first exposure report.")
    seen: int = Field(description="Of the shown ones since then, those whose exposure was reported in time.")
    reacted: int = Field(description="Of the shown ones, those with a reaction.")


class StepTestResponse(BaseModel):
    """The anytime-valid test whether tips that passed a step are distributed over versions as their propensities."""

    step: Step
    observed: Mapping[str, int]
    expected: Mapping[str, float]
    p_value: float
    alarm: bool = Field(description="The p-value is below 0.001: no comparison is valid.")


class FunnelResponse(BaseModel):
    """The way of the tips of each version from the draw to the reaction."""

    rows: list[FunnelRowResponse]
    tests: list[StepTestResponse] = Field(description="A test for each step; `seen` only with exposure reports.")
    exposures: bool = Field(description="Whether there is any exposure report.")
    reactions: int = Field(description="To mature tips since the first exposure report.")
    unseen_reactions: int = Field(description="Those of them to tips without an exposure.")
    exposures_missing: bool = Field(description="More than 1 % of these reactions have no exposure.")


class RewardsResponse(BaseModel):
    """The rewards of each variant, the funnel, and the number of tips in total."""

    baseline: str | None
    exploratory: bool = Field(
        description="The window, the segment or the baseline is not the default one, so there are no verdicts."
    )
    verdict_alpha: float = Field(
        description="The probability that a single verdict is ever wrong: 0.05 / (variants - 1)."
    )
    exposure_reported: bool = Field(description="Whether only tips whose exposure was reported count.")
    variants: list[VariantResponse]
    funnel: FunnelResponse
    tips: int = Field(description="The tips of all variants: the sum of `counted`, `young`, `dependent` and `unseen`.")
    counted: int
    young: int
    dependent: int = Field(description="Tips excluded from rates and verdicts: see the variants.")
    unseen: int = Field(description="Tips excluded from rates and verdicts: see the variants.")
    exposure_unknown: int
    fallback: int = Field(description="Tips of a fallback model; not part of `tips`.")
    not_shown: int = Field(description="Candidates that were not shown; not part of `tips`.")
    simulated: int = Field(description="Tips, candidates included, that were written for simulated users.")

    @classmethod
    def of(cls, report: RewardReport) -> Self:
        return cls.model_validate(report, from_attributes=True)


class UserIntervalResponse(BaseModel):
    """An estimate with a 95 % confidence interval, which holds for one look only."""

    estimate: float
    low: float
    high: float


class UserComparisonResponse(BaseModel):
    """A variant compared with the baseline, with each user counting once."""

    label: str
    difference: UserIntervalResponse | None = Field(
        description="Of the mean rewards; None with too few users, or if a version had several digests."
    )
    users: int = Field(description="Users with a tip for which both could have been drawn.")
    differs: bool = Field(description="The interval misses the difference over all tips of `GET /rewards`.")
    words: str


class UserRewardsResponse(BaseModel):
    """The comparisons per user; there is no verdict about users."""

    baseline: str | None
    comparisons: list[UserComparisonResponse]

    @classmethod
    def of(cls, report: RewardReport, comparisons: Sequence[UserComparison]) -> Self:
        values = {"baseline": report.baseline, "comparisons": comparisons}
        return cls.model_validate(values, from_attributes=True)
