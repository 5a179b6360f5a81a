"""The responses of serving: what is a valid one, and which TipsError another one is."""

import math
import re
from http import HTTPStatus
from typing import Annotated, Self

import httpx
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from ml.experiments.rollout_state import Catalogue
from ml.platform.errors import TipsError, UnknownVersion, UnprocessableRequest, UpstreamFailed, UpstreamRefused
from ml.platform.problem_json import error_from_problem
from ml.registry.cards import ModelCard

_ROUNDING = 1e-6
"""The allowed distance of a sum of probabilities from 1."""

_CLIENT_FAULTS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST)
"""Statuses that this client causes, not its caller."""

_SECONDS = re.compile(r"[0-9]{1,6}")


class TokenCounts(BaseModel):
    """The tokens of a generation, retries included."""

    model_config = ConfigDict(strict=True, frozen=True)

    input_tokens: Annotated[int, Field(ge=0, lt=2**31)]
    output_tokens: Annotated[int, Field(ge=0, lt=2**31)]

    @property
    def total(self) -> int:
        """The tokens of input and output."""
        return self.input_tokens + self.output_tokens


class GeneratedTip(BaseModel):
    """The response of POST /generate; not valid if it cannot be stored, or cannot be shown to a person."""

    model_config = ConfigDict(strict=True, frozen=True)

    generation_id: Annotated[str, Field(max_length=64, pattern=r"^[\w.-]+$")]
    prompt_version: Annotated[str, Field(max_length=64, pattern=r"^[\w.-]+$")]
    prompt_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    model: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]+$")]
    fallback: bool
    tip: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]+$")]
    usage: TokenCounts


Name = Annotated[str, Field(max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A name that can be stored."""


class PolicyRef(BaseModel):
    """The ranking policy that scored the candidates."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: Name
    version: Name


class RankedCandidate(BaseModel):
    """A candidate's expected reward, and the probability with which it is chosen."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    id: str
    score: Annotated[float, Field(ge=0, le=1)]
    probability: Annotated[float, Field(gt=0, le=1)]


class CandidateRanking(BaseModel):
    """The response of POST /score; not valid if nothing can be learned from its propensities."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    event_id: str
    policy: PolicyRef
    chosen: str
    scores: list[RankedCandidate]
    aggregates: Annotated[dict[Name, float], Field(max_length=100)]
    aggregates_at: AwareDatetime | None = None  # an older serving does not have it

    @model_validator(mode="after")
    def _check_distribution(self) -> Self:
        if abs(math.fsum(candidate.probability for candidate in self.scores) - 1) > _ROUNDING:
            raise ValueError("the probabilities do not sum to 1")
        if self.chosen not in [candidate.id for candidate in self.scores]:
            raise ValueError("the chosen id is not one of a candidate")
        return self


class ListedPrompts(BaseModel):
    """The response of GET /prompts."""

    class _Prompt(BaseModel):
        version: Name
        digest: str

    default: Name
    model: str
    prompts: list[_Prompt]

    @property
    def digests(self) -> dict[str, str]:
        return {prompt.version: prompt.digest for prompt in self.prompts}


class ListedPolicies(BaseModel):
    """The response of GET /policies."""

    default: Name
    policies: list[PolicyRef]

    @model_validator(mode="after")
    def _check_default(self) -> Self:
        if self.default not in self.names:
            raise ValueError("the default is not one of the policies")
        return self

    @property
    def names(self) -> dict[str, str]:
        return {policy.version: policy.name for policy in self.policies}


class ListedCards(BaseModel):
    """The response of GET /cards."""

    cards: list[ModelCard]


def catalogue_of(prompts: ListedPrompts, policies: ListedPolicies) -> Catalogue:
    """Return what the responses say that serving has."""
    return Catalogue(prompts.model, prompts.default, prompts.digests, policies.default, policies.names)


def error_of(response: httpx.Response, prompt_version: str | None) -> TipsError:
    """Return the error to raise for a response without a tip, which was asked for with this prompt version."""
    error = problem_of(response)
    if response.status_code in _CLIENT_FAULTS:
        return UpstreamRefused("Serving refuses this service's request or its SERVING_API_KEY.")
    if error is None or error.status != response.status_code or type(error) is TipsError:
        return UpstreamFailed("Serving failed.")
    if isinstance(error, UnprocessableRequest):
        for field in error.errors:
            if field.pointer == "#/prompt_version":
                known = f"; it knows {', '.join(field.allowed)}" if field.allowed else ""
                return UnknownVersion(f"Serving does not know the prompt version {prompt_version}{known}.")
    return error


def problem_of(response: httpx.Response) -> TipsError | None:
    """Return the error that a response describes; None if it describes none."""
    retry_after = response.headers.get("retry-after", "")
    try:
        document = response.json()
    except (ValueError, RecursionError):
        return None
    return error_from_problem(document, int(retry_after) if _SECONDS.fullmatch(retry_after) else None)


def known_values(response: httpx.Response, pointer: str) -> tuple[str, ...]:
    """Return the allowed values of the field at `pointer`, if the response says that its value is not one of them."""
    error = problem_of(response)
    return next((field.allowed for field in error.errors if field.pointer == pointer), ()) if error else ()
