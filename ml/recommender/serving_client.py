"""The way to serving: one deadline, the trace and the request id handed on, every failure as one of our errors."""

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from ml.platform.dependencies import TIMEOUT_HEADER
from ml.platform.errors import (
    DeadlineExceeded,
    TipsError,
    UnprocessableRequest,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamUnreachable,
)
from ml.platform.problem_json import error_from_problem
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import outgoing_headers

GRACE_SECONDS = 0.25
"""Serving knows the deadline and answers by then; only if it does not, we stop waiting ourselves."""

_ROUNDING = 1e-6
"""How far probabilities may be from a sum of 1."""

_OURS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST)
"""Answers to what this client does wrong, not its caller."""

_SECONDS = re.compile(r"[0-9]{1,6}")


class TokenCounts(BaseModel):
    """Tokens, retries included."""

    model_config = ConfigDict(strict=True, frozen=True)

    input_tokens: Annotated[int, Field(ge=0, lt=2**31)]
    output_tokens: Annotated[int, Field(ge=0, lt=2**31)]


class GeneratedTip(BaseModel):
    """A tip as serving answers it; anything that could not be stored, or shown to a person, is not one."""

    model_config = ConfigDict(strict=True, frozen=True)

    generation_id: Annotated[str, Field(max_length=64, pattern=r"^[\w.-]+$")]
    prompt_version: Annotated[str, Field(max_length=64, pattern=r"^[\w.-]+$")]
    prompt_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    model: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]+$")]
    fallback: bool
    tip: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]+$")]
    usage: TokenCounts


Name = Annotated[str, Field(max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""That can be stored."""


class PolicyRef(BaseModel):
    """What ranked candidates."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: Name
    version: Name


class RankedCandidate(BaseModel):
    """What it says of one of them: the reward to expect, and with what probability it is shown."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    id: str
    score: Annotated[float, Field(ge=0, le=1)]
    probability: Annotated[float, Field(gt=0, le=1)]


class CandidateRanking(BaseModel):
    """Candidates as serving ranks them; anything from which nothing could be learned is no ranking."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    event_id: str
    policy: PolicyRef
    chosen: str
    scores: list[RankedCandidate]
    aggregates: Annotated[dict[Name, float], Field(max_length=100)]

    @model_validator(mode="after")
    def _is_a_distribution(self) -> Self:
        if abs(math.fsum(one.probability for one in self.scores) - 1) > _ROUNDING:
            raise ValueError("the probabilities do not sum to 1")
        if self.chosen not in [one.id for one in self.scores]:
            raise ValueError("the one that is chosen is no candidate")
        return self


class _Prompts(BaseModel):
    class _Prompt(BaseModel):
        version: str

    prompts: list[_Prompt]


class ServingClient:
    """Asks serving, wherever the HTTP client reaches it."""

    def __init__(self, http: httpx.AsyncClient, *, timeout: float) -> None:
        """Take the client, with serving's address and key, and the time for one tip in seconds."""
        self._http = http
        self._timeout = timeout

    def seconds(self, within: float | None) -> float:
        """Return how long a tip may take for somebody who waits `within` seconds, or does not say."""
        return min(self._timeout, within or self._timeout)

    async def generate(self, signals: dict[str, Any], version: str | None, *, within: float | None = None) -> GeneratedTip:
        """Have a tip written in less than `within` seconds.

        Raises what serving answered; UpstreamUnreachable, DeadlineExceeded or UpstreamFailed when it did not, or not
        as it should; UpstreamRefused when it does not know the version, or us.
        """
        body = {"signals": signals} | ({"prompt_version": version} if version else {})
        answer = await self._post("/generate", body, self.seconds(within), grace=GRACE_SECONDS)
        if answer.status_code != HTTPStatus.OK:
            raise _refusal(answer, version)
        try:
            return GeneratedTip.model_validate_json(answer.content)
        except ValidationError:
            raise UpstreamFailed("Serving answered something that is not a tip.") from None

    async def score(
        self,
        event_id: str,
        user_id: str,
        signals: Mapping[str, Any],
        candidates: Sequence[Mapping[str, str]],
        *,
        within: float,
    ) -> CandidateRanking:
        """Have candidates ranked in less than `within` seconds, each of them given by its `id` and what is known of it.

        Raises UpstreamUnreachable, DeadlineExceeded, or UpstreamFailed for all that is not a ranking of just these.
        """
        body = {"event_id": event_id, "user_id": user_id, "signals": signals, "candidates": candidates}
        answer = await self._post("/score", body, within)
        if answer.status_code != HTTPStatus.OK:
            raise UpstreamFailed("Serving did not rank the candidates.")
        try:
            scores = CandidateRanking.model_validate_json(answer.content)
        except ValidationError:
            raise UpstreamFailed("Serving answered something that is not a ranking.") from None
        if scores.event_id != event_id or [one.id for one in scores.scores] != [one["id"] for one in candidates]:
            raise UpstreamFailed("Serving answered a ranking of something else.")
        return scores

    async def _post(self, path: str, body: Mapping[str, Any], seconds: float, *, grace: float = 0) -> httpx.Response:
        headers = outgoing_headers() | {TIMEOUT_HEADER: str(max(1, int(seconds * 1000)))}
        try:
            async with asyncio.timeout(seconds + grace):
                return await self._http.post(path, json=body, headers=headers, timeout=None)
        except (TimeoutError, httpx.TimeoutException):
            raise DeadlineExceeded("Serving did not answer in time.") from None
        except httpx.TransportError:
            raise UpstreamUnreachable("Serving cannot be reached.") from None
        except httpx.HTTPError:
            raise UpstreamFailed("Serving answered something that cannot be read.") from None


def check_versions(versions: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise ConfigurationError when there is a version that serving does not know."""
    unknown = [version for version in versions if version not in known]
    if unknown:
        raise ConfigurationError(
            f"TIP_PROMPT_VERSION: serving does not know {', '.join(unknown)}; it knows {', '.join(known)}."
        )


def known_versions(url: str, key: SecretStr | None, *, timeout: float = 3) -> tuple[str, ...] | None:
    """Ask serving for its prompt versions; None when it does not answer, or not that."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/prompts", headers=authorization(key), timeout=timeout)
        return tuple(prompt.version for prompt in _Prompts.model_validate_json(answer.content).prompts)
    except (httpx.HTTPError, ValidationError):
        return None


def authorization(key: SecretStr | None) -> dict[str, str]:
    """Return the header that shows serving our key."""
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def _refusal(answer: httpx.Response, version: str | None) -> TipsError:
    wait = answer.headers.get("retry-after", "")
    try:
        document = answer.json()
    except (ValueError, RecursionError):
        document = None
    error = error_from_problem(document, int(wait) if _SECONDS.fullmatch(wait) else None)
    if answer.status_code in _OURS:
        return UpstreamRefused("Serving refuses this service's request or its SERVING_API_KEY.")
    if error is None or error.status != answer.status_code or type(error) is TipsError:
        return UpstreamFailed("Serving failed.")
    if isinstance(error, UnprocessableRequest):
        for field in error.errors:
            if field.pointer == "#/prompt_version":
                known = f"; it knows {', '.join(field.allowed)}" if field.allowed else ""
                return UpstreamRefused(f"TIP_PROMPT_VERSION: serving does not know {version}{known}.")
    return error
