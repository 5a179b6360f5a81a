"""Request and response schemas of the recommender."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from ml.features.request_schemas import EXAMPLE_SIGNALS, Signals, StrictModel, UserId
from ml.store.exposures import Exposure, ExposureOutcome, ExposureResult
from ml.store.reactions import REACTIONS, Outcome, Reaction, ReactionResult
from ml.store.tip_records import TipRecord

MAX_BATCH = 500
"""The maximum number of reactions or exposures in one batch."""

_DATE_AND_TIME = (
    "^[2-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt ]"
    "([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]+)?)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
"""A time from the year 2000 on, with its zone, as in RFC 3339 but without leap seconds; seconds are optional."""


def _text_only(value: Any) -> Any:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "should be a string")
    return value


def _date_and_time(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(_DATE_AND_TIME, value):
        raise PydanticCustomError(
            "datetime", "should be a date and time from the year 2000 on with its zone, as 2026-01-31T21:40:00Z"
        )
    return value


def _known_reaction(value: str) -> str:
    if value not in REACTIONS:
        raise PydanticCustomError(
            "unknown_reaction", "should be one of {names}", {"names": ", ".join(REACTIONS), "allowed": list(REACTIONS)}
        )
    return value


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("too_far", "should be before the year 9999") from None


TipId = Annotated[UUID, Field(strict=False), BeforeValidator(_text_only)]
ReactionKind = Annotated[
    str, AfterValidator(_known_reaction), WithJsonSchema({"type": "string", "enum": list(REACTIONS)})
]
Time = Annotated[
    AwareDatetime,
    Field(strict=False),
    AfterValidator(_utc),
    BeforeValidator(_date_and_time),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": _DATE_AND_TIME}),
]

_TIP_ID = "01a20832-ae71-7aec-ae48-acec0e56168b"


class TipRequest(StrictModel):
    """A request for a tip for one user."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "u-1729", "signals": EXAMPLE_SIGNALS}]})

    user_id: UserId = Field(description="The caller's id of the user; preferably not a name or an address.")
    signals: Signals = Field(default_factory=Signals)


class TipResponse(BaseModel):
    """A stored tip and its origin."""

    tip_id: UUID = Field(description="The id to report an exposure and reactions with.")
    tip: str
    prompt_version: str = Field(examples=["v2-mentor"], description="The prompt version that wrote the tip.")
    prompt_digest: str = Field(description="SHA-256 of the prompt version's content.")
    model: str = Field(description="The model that answered.")
    fallback: bool = Field(description="Whether a fallback model answered instead of the first configured one.")
    created_at: datetime

    @classmethod
    def of(cls, record: TipRecord) -> Self:
        return cls.model_validate(record, from_attributes=True)


class ReactionRequest(StrictModel):
    """A reaction to a tip."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tip_id": _TIP_ID, "reaction": "helpful"}]})

    tip_id: TipId
    reaction: ReactionKind
    at: Time | None = Field(
        default=None,
        description="When the user reacted, with a time zone; by default now. A time in the future is a 422.",
    )

    def as_reaction(self) -> Reaction:
        return Reaction(self.tip_id, self.reaction, self.at)


class ReactionBatch(StrictModel):
    """Several reactions; all of them are stored, or none."""

    reactions: Annotated[list[ReactionRequest], Field(min_length=1, max_length=MAX_BATCH)]


class ReactionResponse(BaseModel):
    """The outcome of a stored reaction, and the effective reaction of its tip."""

    tip_id: UUID
    outcome: Outcome = Field(
        description="The reaction has become effective; it was effective already; or a later reaction is effective."
    )
    reaction: str = Field(description="The effective reaction.")
    reward: float = Field(ge=0, le=1)

    @classmethod
    def of(cls, result: ReactionResult) -> Self:
        return cls.model_validate(result, from_attributes=True)


class ReactionBatchResponse(BaseModel):
    """One result per reaction, in the order of the request."""

    results: list[ReactionResponse]


class ExposureRequest(StrictModel):
    """A report that the user has seen a tip."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tip_id": _TIP_ID}]})

    tip_id: TipId
    at: Time | None = Field(
        default=None,
        description="When the user saw the tip, with a time zone; by default now. A time in the future is a 422.",
    )

    def as_exposure(self) -> Exposure:
        return Exposure(self.tip_id, self.at)


class ExposureBatch(StrictModel):
    """Several exposures; all of them are stored, or none."""

    exposures: Annotated[list[ExposureRequest], Field(min_length=1, max_length=MAX_BATCH)]


class ExposureResponse(BaseModel):
    """The outcome of a stored exposure."""

    tip_id: UUID
    outcome: ExposureOutcome = Field(
        description="The tip counts as seen; it had a report already; or the report came after the reaction window, "
        "so that the tip does not count as seen."
    )
    at: datetime = Field(description="The time of the first report of the tip, which counts.")

    @classmethod
    def of(cls, result: ExposureResult) -> Self:
        return cls.model_validate(result, from_attributes=True)


class ExposureBatchResponse(BaseModel):
    """One result per exposure, in the order of the request."""

    results: list[ExposureResponse]
