"""What goes over the wire, in and out."""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from ml.features.request_schemas import EXAMPLE_SIGNALS, Signals, StrictModel
from ml.rewards.report import RewardReport, VerdictKind
from ml.store.reactions import REACTIONS, Outcome, Reaction
from ml.store.tips import ReactionResult, TipRecord

MAX_REACTIONS = 500
"""In one batch."""

_DATE_AND_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def _text_only(value: Any) -> Any:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "should be a string")
    return value


def _date_and_time(value: Any) -> Any:
    if not isinstance(value, str) or not _DATE_AND_TIME.match(value):
        raise PydanticCustomError("datetime", "should be a date and time with its zone, as 2026-01-31T21:40:00Z")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise PydanticCustomError("control_characters", "should have no control characters")
    return value


def _known_reaction(value: str) -> str:
    if value not in REACTIONS:
        raise PydanticCustomError(
            "unknown_reaction", "should be one of {names}", {"names": ", ".join(REACTIONS), "allowed": list(REACTIONS)}
        )
    return value


def _utc(value: datetime) -> datetime:
    if value.replace(tzinfo=UTC) < _LONG_AGO:
        raise PydanticCustomError("long_ago", "should be after the year 2000")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("too_far", "should be before the year 9999") from None


UserId = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
TipId = Annotated[UUID, Field(strict=False), BeforeValidator(_text_only)]
ReactionKind = Annotated[
    str, AfterValidator(_known_reaction), WithJsonSchema({"type": "string", "enum": list(REACTIONS)})
]
Time = Annotated[AwareDatetime, Field(strict=False), AfterValidator(_utc), BeforeValidator(_date_and_time)]

_TIP_ID = "01a20832-ae71-7aec-ae48-acec0e56168b"


class TipRequest(StrictModel):
    """Ask for a tip for one person."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "u-1729", "signals": EXAMPLE_SIGNALS}]})

    user_id: UserId = Field(description="Whatever the caller knows the person by; best not a name or an address.")
    signals: Signals = Field(default_factory=Signals)


class TipResponse(BaseModel):
    """A tip that has been stored, and where it comes from."""

    tip_id: UUID = Field(description="What reactions to it are sent with.")
    tip: str
    prompt_version: str = Field(description="The version that wrote the tip.")
    prompt_digest: str = Field(description="SHA-256 of that version's content.")
    model: str = Field(description="The model that really answered.")
    fallback: bool = Field(description="Whether that was not the first one.")
    created_at: datetime

    @classmethod
    def of(cls, row: TipRecord) -> Self:
        return cls.model_validate(row, from_attributes=True)


class ReactionRequest(StrictModel):
    """Tell how a person reacted to a tip."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tip_id": _TIP_ID, "reaction": "helpful"}]})

    tip_id: TipId
    reaction: ReactionKind
    at: Time | None = Field(default=None, description="When the person reacted, with a time zone; by default now.")

    def reaction_at(self) -> Reaction:
        return Reaction(self.tip_id, self.reaction, self.at)


class ReactionBatch(StrictModel):
    """Tell of several reactions; all of them are stored, or none."""

    reactions: Annotated[list[ReactionRequest], Field(min_length=1, max_length=MAX_REACTIONS)]


class ReactionResponse(BaseModel):
    """What became of a reaction that is on disk, and which one counts for its tip."""

    tip_id: UUID
    outcome: Outcome = Field(description="It counts now; it did already; or a later one counts.")
    reaction: str = Field(description="The one that counts.")
    reward: float = Field(ge=0, le=1)

    @classmethod
    def of(cls, counted: ReactionResult) -> Self:
        return cls.model_validate(counted, from_attributes=True)


class ReactionBatchResponse(BaseModel):
    """One answer for each reaction, in their order."""

    results: list[ReactionResponse]


class IntervalResponse(BaseModel):
    """An estimate, and a 95 % confidence sequence around it: it may be looked at every day."""

    estimate: float
    low: float
    high: float


class ComparisonResponse(BaseModel):
    """A variant beside the baseline."""

    difference: IntervalResponse
    verdict: VerdictKind
    more_tips: int | None = Field(description="About how many until there is a verdict, if all goes on as it did.")
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
    counted: int = Field(description="Tips with a reaction, or old enough to count without: the reward's denominator.")
    dependent: int = Field(description="Tips that a policy which learned ranked above others, or `sticky` drew.")
    reactions: dict[str, int]
    reward: IntervalResponse
    probability_best: float
    comparison: ComparisonResponse | None = Field(description="None for the baseline.")
    input_tokens: float = Field(description="Mean of a tip.")
    output_tokens: float = Field(description="Mean of a tip.")
    ms: float = Field(description="Mean of a tip.")
    days: list[DayResponse]


class SampleRatioResponse(BaseModel):
    """Whether versions were drawn as often as their logged probabilities say."""

    taken: Mapping[str, int]
    expected: Mapping[str, float]
    p_value: float
    alarm: bool


class RewardsResponse(BaseModel):
    """What people's reactions say about each variant; `fallback` and `shadow` tips are in none of them."""

    baseline: str | None
    variants: list[VariantResponse]
    sample_ratio: SampleRatioResponse
    fallback: int
    shadow: int
    simulated: int
    dependent: int

    @classmethod
    def of(cls, report: RewardReport) -> Self:
        return cls.model_validate(report, from_attributes=True)
