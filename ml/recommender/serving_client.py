"""The client of serving: passes the deadline, the trace and the request id, and maps every failure to a TipsError."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr, ValidationError

from ml.experiments.rollout_state import Catalogue
from ml.platform.dependencies import TIMEOUT_HEADER
from ml.platform.errors import Busy, DeadlineExceeded, UnknownVersion, UpstreamFailed, UpstreamUnreachable
from ml.platform.priority import BACKGROUND, PRIORITY_HEADER
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import outgoing_headers
from ml.recommender.serving_responses import (
    CandidateRanking,
    GeneratedTip,
    ListedCards,
    ListedPolicies,
    ListedPrompts,
    catalogue_of,
    error_of,
    known_values,
    problem_of,
)
from ml.registry.cards import ModelCard

GRACE_SECONDS = 0.25
"""The time after the deadline, which serving knows, at which the client stops waiting for the answer."""

MAX_CATALOGUE_SECONDS = 3.0
"""The timeout of GET /prompts and of GET /policies."""

_BROKEN_CONNECTION = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""The errors of a request during which a replica of serving ended."""

Listing = TypeVar("Listing", ListedPrompts, ListedPolicies, ListedCards)


class ServingClient:
    """Calls serving through an HTTP client, over a network or in the same process."""

    def __init__(self, http: httpx.AsyncClient, *, timeout: float) -> None:
        """`http`: a client with serving's address and key. `timeout`: the maximum time for one tip, in seconds."""
        self._http = http
        self._timeout = timeout

    def timeout(self, caller_timeout: float | None) -> float:
        """Return the time for one tip, in seconds, for a caller that waits `caller_timeout` (None: it does not say)."""
        return min(self._timeout, caller_timeout or self._timeout)

    async def generate(
        self, signals: dict[str, Any], prompt_version: str | None, *, timeout: float, background: bool = False
    ) -> GeneratedTip:
        """Generate a tip, in `timeout` seconds; with serving's default if `prompt_version` is None.

        `background`: a tip that nobody waits for; serving answers Busy rather than delay others with it. Raises the
        error that serving answered; UpstreamUnreachable or DeadlineExceeded when it did not answer, UpstreamFailed when
        its answer is not valid, UpstreamRefused when it refuses this client, and UnknownVersion when it does not know
        the prompt version.
        """
        body = {"signals": signals} | ({"prompt_version": prompt_version} if prompt_version else {})
        headers = {PRIORITY_HEADER: BACKGROUND} if background else {}
        response = await self._request("POST", "/generate", timeout, body, headers=headers, grace=GRACE_SECONDS)
        if response.status_code != HTTPStatus.OK:
            raise error_of(response, prompt_version)
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
        policy: str | None = None,
    ) -> CandidateRanking:
        """Return the ranking of candidates, each given by its `id`, `prompt_version` and `tip`, in `timeout` seconds.

        `policy`: the version of the ranking policy; serving's default if it is None. Raises UpstreamUnreachable,
        DeadlineExceeded, UnknownVersion when serving has not loaded that policy, Busy when it is at its limit, or
        UpstreamFailed for any other answer than a ranking of these candidates by it.
        """
        body = {"event_id": event_id, "user_id": user_id, "signals": signals, "candidates": candidates}
        response = await self._request("POST", "/score", timeout, body | ({"policy": policy} if policy else {}))
        if response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY and (known := known_values(response, "#/policy")):
            raise UnknownVersion(f"Serving has not loaded the ranking policy {policy}; it has {', '.join(known)}.")
        if isinstance(problem_of(response), Busy):
            raise Busy("Serving is at its limit of rankings.")
        if response.status_code != HTTPStatus.OK:
            raise UpstreamFailed("Serving did not rank the candidates.")
        try:
            ranking = CandidateRanking.model_validate_json(response.content)
        except ValidationError:
            raise UpstreamFailed("Serving's answer is not a ranking.") from None
        ranked_ids = [candidate.id for candidate in ranking.scores]
        if ranking.event_id != event_id or ranked_ids != [candidate["id"] for candidate in candidates]:
            raise UpstreamFailed("Serving's answer is a ranking of other candidates.")
        if policy and ranking.policy.version != policy:
            raise UpstreamFailed("Serving's answer is a ranking by another policy.")
        return ranking

    async def prompt_digests(self) -> dict[str, str]:
        """Return the digest of each prompt version that serving has.

        Raises UpstreamUnreachable, DeadlineExceeded, or UpstreamFailed for any other answer.
        """
        return (await self._get("/prompts", ListedPrompts)).digests

    async def catalogue(self) -> Catalogue:
        """Return the prompt versions, policies and model of serving. Raises what `prompt_digests` raises."""
        prompts, policies = await asyncio.gather(
            self._get("/prompts", ListedPrompts), self._get("/policies", ListedPolicies)
        )
        return catalogue_of(prompts, policies)

    async def cards(self) -> tuple[ModelCard, ...]:
        """Return the model cards of serving. Raises what `prompt_digests` raises."""
        return tuple((await self._get("/cards", ListedCards)).cards)

    async def _get(self, path: str, model: type[Listing]) -> Listing:
        # In the background, so that a log line is written only if it fails: serving is asked every two seconds.
        headers = {PRIORITY_HEADER: BACKGROUND}
        response = await self._request("GET", path, min(self._timeout, MAX_CATALOGUE_SECONDS), headers=headers)
        try:
            return model.model_validate_json(response.content)
        except ValidationError:
            raise UpstreamFailed(f"Serving's answer to GET {path} is not valid.") from None

    async def _request(
        self,
        method: str,
        path: str,
        timeout: float,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        grace: float = 0,
    ) -> httpx.Response:
        headers = outgoing_headers() | {TIMEOUT_HEADER: str(max(1, int(timeout * 1000))), **headers}
        send = partial(self._http.request, method, path, json=body, headers=headers, timeout=None)
        try:
            async with asyncio.timeout(timeout + grace):
                try:
                    return await send()
                except _BROKEN_CONNECTION:  # serving keeps no state, and another replica may answer
                    return await send()
        except (TimeoutError, httpx.TimeoutException):
            raise DeadlineExceeded("Serving did not answer in time.") from None
        except httpx.TransportError:
            raise UpstreamUnreachable("Serving cannot be reached.") from None
        except httpx.HTTPError:
            raise UpstreamFailed("Serving's answer cannot be read.") from None


def check_versions(
    prompt_versions: Iterable[str], known: Iterable[str], *, setting: str = "TIP_PROMPT_VERSION"
) -> None:
    """Raise ConfigurationError when serving does not know one of the versions that a setting names."""
    known = tuple(known)
    unknown = [version for version in prompt_versions if version not in known]
    if unknown:
        raise ConfigurationError(f"{setting}: serving does not know {', '.join(unknown)}; it knows {', '.join(known)}.")


def fetch_catalogue(url: str, key: SecretStr | None, *, timeout: float = MAX_CATALOGUE_SECONDS) -> Catalogue | None:
    """Return what the serving at `url` has, before the event loop runs; None without a valid answer."""
    try:
        with httpx.Client(base_url=url, headers=authorization(key), timeout=timeout) as http:
            prompts = ListedPrompts.model_validate_json(http.get("/prompts").content)
            return catalogue_of(prompts, ListedPolicies.model_validate_json(http.get("/policies").content))
    except (httpx.HTTPError, ValidationError):
        return None


def authorization(key: SecretStr | None) -> dict[str, str]:
    """Return the header with the key of serving; none without a key."""
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
