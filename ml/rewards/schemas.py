"""Response schemas of `GET /rewards`."""

from collections.abc import Mapping
from datetime import date
from typing import Self

from pydantic import BaseModel, Field

from ml.rewards.report import RewardReport, VerdictKind


class IntervalResponse(BaseModel):
    """An estimate with a 95 % confidence sequence, which holds at every look."""

    estimate: float
    low: float
    high: float


class ComparisonResponse(BaseModel):
    """A variant compared with the baseline."""

    difference: IntervalResponse
    verdict: VerdictKind
    more_tips: int | None = Field(
        description="The approximate number of tips until there is a verdict, at the current rates."
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
    tips: int
    reacted: int
    counted: int = Field(
        description="Tips with a reaction, and mature tips without one: the denominator of the reward."
    )
    dependent: int = Field(
        description="Tips that a learned policy chose among candidates, or whose version was drawn per user."
    )
    reactions: dict[str, int]
    reward: IntervalResponse
    probability_best: float
    comparison: ComparisonResponse | None = Field(description="None for the baseline.")
    input_tokens: float = Field(description="Mean per tip.")
    output_tokens: float = Field(description="Mean per tip.")
    ms: float = Field(description="Mean per tip.")
    days: list[DayResponse]


class SampleRatioResponse(BaseModel):
    """The sample-ratio test: whether prompt versions were drawn as often as their logged propensities say."""

    taken: Mapping[str, int]
    expected: Mapping[str, float]
    p_value: float
    alarm: bool


class RewardsResponse(BaseModel):
    """The rewards of each variant; they include no `fallback` and no `not_shown` tips."""

    baseline: str | None
    variants: list[VariantResponse]
    sample_ratio: SampleRatioResponse
    fallback: int
    not_shown: int
    simulated: int
    dependent: int

    @classmethod
    def of(cls, report: RewardReport) -> Self:
        return cls.model_validate(report, from_attributes=True)
