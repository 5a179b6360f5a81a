"""Response schemas of `GET /rewards`."""

from collections.abc import Mapping
from datetime import date
from typing import Self

from pydantic import BaseModel, Field

from ml.rewards.comparison import VerdictKind
from ml.rewards.report import RewardReport


class IntervalResponse(BaseModel):
    """An estimate with a 95 % confidence sequence, which holds at every look."""

    estimate: float
    low: float
    high: float


class ComparisonResponse(BaseModel):
    """A variant compared with the baseline."""

    difference: IntervalResponse | None = Field(description="None while one of both has no counted tips.")
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
    tips: int = Field(description="All tips of the variant: `counted`, `waiting` and `dependent` ones.")
    reacted: int = Field(description="Tips with a reaction.")
    counted: int = Field(
        description="Independent tips with a reaction, and mature ones without: the denominator of the reward."
    )
    waiting: int = Field(description="Independent young tips without a reaction, which may still get one.")
    dependent: int = Field(
        description="Tips that a learned policy chose among candidates, or whose version was drawn per user "
        "(`sticky`). They are excluded from `counted`, `reward`, `probability_best`, `comparison` and `days`."
    )
    reactions: dict[str, int] = Field(description="The number of tips with each reaction; the sum is `reacted`.")
    reward: IntervalResponse | None = Field(description="The mean reward of the counted tips; None without any.")
    probability_best: float | None = Field(description="None without counted tips.")
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
    """The rewards of each variant, and the number of tips in total."""

    baseline: str | None
    variants: list[VariantResponse]
    sample_ratio: SampleRatioResponse
    tips: int = Field(description="The tips of all variants: `counted`, `waiting` and `dependent` ones.")
    counted: int
    waiting: int
    dependent: int = Field(description="Tips excluded from rates and verdicts: see the variants.")
    fallback: int = Field(description="Tips of a fallback model; not part of `tips`.")
    not_shown: int = Field(description="Candidates that were not shown; not part of `tips`.")
    simulated: int = Field(description="Tips, candidates included, that were written for simulated users.")

    @classmethod
    def of(cls, report: RewardReport) -> Self:
        return cls.model_validate(report, from_attributes=True)
