"""The client of serving: passes the deadline, the trace and the request id, and maps every failure to a TipsError."""

import asyncio
import math
import re
from collections.abc import Iterable, Mapping, Sequence
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
"""The time after the deadline, which serving knows, at which the client stops waiting for the answer."""

MAX_PROMPTS_SECONDS = 3.0
"""The timeout of GET /prompts."""

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

    @model_validator(mode="after")
    def _check_distribution(self) -> Self:
        if abs(math.fsum(candidate.probability for candidate in self.scores) - 1) > _ROUNDING:
            raise ValueError("the probabilities do not sum to 1")
        if self.chosen not in [candidate.id for candidate in self.scores]:
            raise ValueError("the chosen id is not one of a candidate")
        return self


class _Prompts(BaseModel):
    """The response of GET /prompts."""

    class _Prompt(BaseModel):
        version: str
        digest: str

    prompts: list[_Prompt]

    @property
    def digests(self) -> dict[str, str]:
        return {prompt.version: prompt.digest for prompt in self.prompts}


class _Policies(BaseModel):
    """The response of GET /policies."""

    policy: PolicyRef


class ServingClient:
    """Calls serving through an HTTP client, over a network or in the same process."""

    def __init__(self, http: httpx.AsyncClient, *, timeout: float) -> None:
        """`http`: a client with serving's address and key. `timeout`: the maximum time for one tip, in seconds."""
        self._http = http
        self._timeout = timeout

    def timeout(self, caller_timeout: float | None) -> float:
        """Return the time for one tip, in seconds, for a caller that waits `caller_timeout` (None: it does not say)."""
        return min(self._timeout, caller_timeout or self._timeout)

    async def generate(self, signals: dict[str, Any], prompt_version: str | None, *, timeout: float) -> GeneratedTip:
        """Generate a tip, in `timeout` seconds; with serving's default if `prompt_version` is None.

        Raises the error that serving answered; UpstreamUnreachable or DeadlineExceeded when it did not answer,
        UpstreamFailed when its answer is not valid, UpstreamRefused when it does not know the prompt version or refuses
        this client.
        """
        body = {"signals": signals} | ({"prompt_version": prompt_version} if prompt_version else {})
        response = await self._request("POST", "/generate", timeout, body, grace=GRACE_SECONDS)
        if response.status_code != HTTPStatus.OK:
            raise _error_of(response, prompt_version)
        try:
            return GeneratedTip.model_validate_json(response.content)
        except ValidationError:
            raise UpstreamFailed("Serving's answer is not a tip.") from None

    async def score(
        self,
        event_id: str,
        user_id: str,
        signals: Mapping[str, Any],
        candidates: Sequence[Mapping[str, str]],
        *,
        timeout: float,
    ) -> CandidateRanking:
        """Return the ranking of candidates, each given by its `id`, `prompt_version` and `tip`, in `timeout` seconds.

        Raises UpstreamUnreachable, DeadlineExceeded, or UpstreamFailed for any other answer than their ranking.
        """
        body = {"event_id": event_id, "user_id": user_id, "signals": signals, "candidates": candidates}
        response = await self._request("POST", "/score", timeout, body)
        if response.status_code != HTTPStatus.OK:
            raise UpstreamFailed("Serving did not rank the candidates.")
        try:
            ranking = CandidateRanking.model_validate_json(response.content)
        except ValidationError:
            raise UpstreamFailed("Serving's answer is not a ranking.") from None
        ranked_ids = [candidate.id for candidate in ranking.scores]
        if ranking.event_id != event_id or ranked_ids != [candidate["id"] for candidate in candidates]:
            raise UpstreamFailed("Serving's answer is a ranking of other candidates.")
        return ranking

    async def prompt_digests(self) -> dict[str, str]:
        """Return the digest of each prompt version that serving has.

        Raises UpstreamUnreachable, DeadlineExceeded, or UpstreamFailed for any other answer.
        """
        response = await self._request("GET", "/prompts", min(self._timeout, MAX_PROMPTS_SECONDS))
        try:
            return _Prompts.model_validate_json(response.content).digests
        except ValidationError:
            raise UpstreamFailed("Serving's answer is not a list of prompt versions.") from None

    async def _request(
        self, method: str, path: str, timeout: float, body: Mapping[str, Any] | None = None, *, grace: float = 0
    ) -> httpx.Response:
        headers = outgoing_headers() | {TIMEOUT_HEADER: str(max(1, int(timeout * 1000)))}
        try:
            async with asyncio.timeout(timeout + grace):
                return await self._http.request(method, path, json=body, headers=headers, timeout=None)
        except (TimeoutError, httpx.TimeoutException):
            raise DeadlineExceeded("Serving did not answer in time.") from None
        except httpx.TransportError:
            raise UpstreamUnreachable("Serving cannot be reached.") from None
        except httpx.HTTPError:
            raise UpstreamFailed("Serving's answer cannot be read.") from None


def check_versions(prompt_versions: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigurationError when serving does not know one of the versions of TIP_PROMPT_VERSION."""
    known = tuple(known)
    unknown = [version for version in prompt_versions if version not in known]
    if unknown:
        raise ConfigurationError(
            f"TIP_PROMPT_VERSION: serving does not know {', '.join(unknown)}; it knows {', '.join(known)}."
        )


def fetch_prompt_digests(
    url: str, key: SecretStr | None, *, timeout: float = MAX_PROMPTS_SECONDS
) -> dict[str, str] | None:
    """Return the digest of each prompt version of the serving at `url`; None without a valid answer."""
    try:
        response = httpx.get(f"{url.rstrip('/')}/prompts", headers=authorization(key), timeout=timeout)
        return _Prompts.model_validate_json(response.content).digests
    except (httpx.HTTPError, ValidationError):
        return None


def fetch_policy_name(url: str, key: SecretStr | None, *, timeout: float = MAX_PROMPTS_SECONDS) -> str | None:
    """Return the name of the policy that ranks candidates at the serving at `url`; None without a valid answer."""
    try:
        response = httpx.get(f"{url.rstrip('/')}/policies", headers=authorization(key), timeout=timeout)
        return _Policies.model_validate_json(response.content).policy.name
    except (httpx.HTTPError, ValidationError):
        return None


def authorization(key: SecretStr | None) -> dict[str, str]:
    """Return the header with the key of serving; none without a key."""
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


def _error_of(response: httpx.Response, prompt_version: str | None) -> TipsError:
    retry_after = response.headers.get("retry-after", "")
    try:
        document = response.json()
    except (ValueError, RecursionError):
        document = None
    error = error_from_problem(document, int(retry_after) if _SECONDS.fullmatch(retry_after) else None)
    if response.status_code in _CLIENT_FAULTS:
        return UpstreamRefused("Serving refuses this service's request or its SERVING_API_KEY.")
    if error is None or error.status != response.status_code or type(error) is TipsError:
        return UpstreamFailed("Serving failed.")
    if isinstance(error, UnprocessableRequest):
        for field in error.errors:
            if field.pointer == "#/prompt_version":
                known = f"; it knows {', '.join(field.allowed)}" if field.allowed else ""
                return UpstreamRefused(f"TIP_PROMPT_VERSION: serving does not know {prompt_version}{known}.")
    return error
