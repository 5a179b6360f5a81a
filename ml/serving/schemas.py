"""Request and response schemas of serving."""

from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import to_json

from ml.features.request_schemas import EXAMPLE_SIGNALS, Candidate, Id, Signals, StrictModel, UserId
from ml.registry.cards import ModelCard
from ml.registry.policies import UniformRanker
from ml.serving.generate import Tip
from ml.serving.policies import LoadedPolicies
from ml.serving.prompts import PROMPTS
from ml.serving.score import ScoreResult
from ml.serving.tip import MAX_TIP_LENGTH

MAX_CANDIDATES = 50


def _drop_default(schema: dict[str, Any]) -> None:
    """Remove the default from a schema, since openapi-typescript makes a field with a default required."""
    del schema["default"]


class GenerateRequest(StrictModel):
    """Request one tip."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"signals": EXAMPLE_SIGNALS, "prompt_version": "v2-mentor"}]},
    )

    signals: Signals = Field(default_factory=Signals)
    prompt_version: str | None = Field(
        default=None,
        examples=[*PROMPTS],
        description="One of the versions in GET /prompts, otherwise 422; without it, the service's default.",
    )
    stream: bool = Field(
        default=False,
        description="Answer with server-sent events: meta, delta…, done or error. By default false.",
        json_schema_extra=_drop_default,
    )


class UsageResponse(BaseModel):
    """Token counts, retries included."""

    input_tokens: int
    output_tokens: int


class TipMetadata(BaseModel):
    """The origin of a tip."""

    generation_id: str
    prompt_version: str = Field(examples=[*PROMPTS], description="The prompt version that wrote the tip.")
    prompt_digest: str = Field(description="SHA-256 of that version's content.")
    model: str = Field(description="The model that answered.")
    fallback: bool = Field(description="Whether that is a fallback model.")


class GenerateResponse(TipMetadata):
    """A tip and its origin."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "generation_id": "095e65266d0e4075aec2ecad5f13abb2",
                    "prompt_version": "v2-mentor",
                    "prompt_digest": PROMPTS["v2-mentor"].digest,
                    "model": "openai/gpt-4o-mini",
                    "fallback": False,
                    "tip": "Dim the lights now, and leave your phone in another room for the night.",
                    "usage": {"input_tokens": 180, "output_tokens": 17},
                    "finish_reason": "stop",
                }
            ]
        }
    )

    tip: str = Field(max_length=MAX_TIP_LENGTH)
    usage: UsageResponse
    finish_reason: str

    @classmethod
    def of(cls, tip: Tip) -> Self:
        return cls(
            **asdict(tip.origin),
            tip=tip.text,
            usage=UsageResponse(**asdict(tip.usage)),
            finish_reason=tip.finish_reason,
        )


class PromptInfo(BaseModel):
    """One registered prompt version."""

    version: str
    description: str
    digest: str


class PromptsResponse(BaseModel):
    """The registered prompt versions, the default for requests that name none, and the model that gets them."""

    default: str
    model: str = Field(description="The first configured model, `TIP_MODEL`.")
    prompts: list[PromptInfo]


class CardsResponse(BaseModel):
    """The model cards."""

    cards: tuple[ModelCard, ...]


class ScoreRequest(StrictModel):
    """Request a ranking of candidates and the choice of the one to show."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "event_id": "d-4711",
                    "user_id": "u-1729",
                    "signals": EXAMPLE_SIGNALS,
                    "candidates": [
                        {"id": "a", "prompt_version": "v1", "tip": "Dim the lights now."},
                        {"id": "b", "prompt_version": "v2-mentor", "tip": "Take ten slow breaths at the window."},
                    ],
                }
            ]
        },
    )

    event_id: Id | None = Field(default=None, description="The same id gets the same choice; by default, a new id.")
    user_id: UserId | None = Field(
        default=None,
        description="The user whose aggregates are read from the online store.",
    )
    signals: Signals = Field(default_factory=Signals)
    candidates: Annotated[
        list[Candidate],
        Field(min_length=1, max_length=MAX_CANDIDATES, description="Each with its own id; equal ids are a 422."),
    ]
    policy: str | None = Field(
        default=None,
        examples=[UniformRanker.version],
        description="One of the versions in GET /policies, otherwise 422; without it, the service's default.",
    )


class PolicyInfo(BaseModel):
    """A policy: its name and its unique version."""

    name: str
    version: str


class CandidateScore(BaseModel):
    """The score and the probability of a candidate."""

    id: str
    score: float = Field(ge=0, le=1, description="The expected reward.")
    probability: float = Field(gt=0, le=1, description="The probability of being chosen; all sum to 1.")


class ScoreResponse(BaseModel):
    """The chosen candidate, and the scores of all, in the order of the request."""

    event_id: str
    policy: PolicyInfo
    chosen: str
    scores: list[CandidateScore]
    aggregates: dict[str, float] = Field(description="The user's aggregates from the online store.")
    aggregates_at: AwareDatetime | None = Field(
        description="The time as of which the aggregates were computed, in UTC; null without aggregates, and if their "
        "times differ."
    )


def score_response(result: ScoreResult) -> bytes:
    """Return the JSON of a `ScoreResponse`, written directly: validating the service's own result costs 0.1 ms."""
    scores, probabilities = result.ranking.scores.tolist(), result.ranking.probabilities.tolist()
    return to_json(
        {
            "event_id": result.event_id,
            "policy": {"name": result.policy.name, "version": result.policy.version},
            "chosen": result.chosen,
            "scores": [
                {"id": candidate_id, "score": score, "probability": probability}
                for candidate_id, score, probability in zip(result.candidate_ids, scores, probabilities, strict=True)
            ],
            "aggregates": result.aggregates.values,
            "aggregates_at": result.aggregates.computed_at,
        }
    )


class PoliciesResponse(BaseModel):
    """The loaded ranking policies, and the version of the default for requests that name none."""

    default: str
    policies: list[PolicyInfo]

    @classmethod
    def of(cls, policies: LoadedPolicies) -> Self:
        infos = [PolicyInfo(name=policy.name, version=version) for version, policy in policies.by_version.items()]
        return cls(default=policies.default.version, policies=infos)
