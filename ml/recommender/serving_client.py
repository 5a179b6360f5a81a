"""The way to serving: one deadline, the trace and the request id handed on, every failure as one of our errors."""

import asyncio
import re
from http import HTTPStatus
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from ml.errors import (
    DeadlineExceeded,
    TipsError,
    UnprocessableRequest,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamUnreachable,
    from_problem,
)
from ml.guards import TIMEOUT_HEADER
from ml.settings import ConfigurationError
from ml.telemetry import outgoing_headers

GRACE_SECONDS = 0.25
"""Serving knows the deadline and answers by then; only if it does not, we stop waiting ourselves."""

_OURS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST)
"""Answers to what this client does wrong, not its caller."""

_SECONDS = re.compile(r"[0-9]{1,6}")


class Usage(BaseModel):
    """Tokens, retries included."""

    model_config = ConfigDict(strict=True, frozen=True)

    input_tokens: Annotated[int, Field(ge=0, lt=2**31)]
    output_tokens: Annotated[int, Field(ge=0, lt=2**31)]


class Written(BaseModel):
    """A tip as serving answers it; anything that could not be stored, or shown to a person, is not one."""

    model_config = ConfigDict(strict=True, frozen=True)

    generation_id: Annotated[str, Field(max_length=64, pattern=r"^[\w.-]+$")]
    prompt_version: Annotated[str, Field(max_length=64, pattern=r"^[\w.-]+$")]
    prompt_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    model: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]+$")]
    fallback: bool
    tip: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]+$")]
    usage: Usage


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

    async def generate(self, signals: dict[str, Any], version: str | None, *, within: float | None = None) -> Written:
        """Have a tip written in less than `within` seconds.

        Raises what serving answered; UpstreamUnreachable, DeadlineExceeded or UpstreamFailed when it did not, or not
        as it should; UpstreamRefused when it does not know the version, or us.
        """
        seconds = min(self._timeout, within or self._timeout)
        body = {"signals": signals} | ({"prompt_version": version} if version else {})
        headers = outgoing_headers() | {TIMEOUT_HEADER: str(max(1, int(seconds * 1000)))}
        try:
            async with asyncio.timeout(seconds + GRACE_SECONDS):
                answer = await self._http.post("/generate", json=body, headers=headers, timeout=None)
        except (TimeoutError, httpx.TimeoutException):
            raise DeadlineExceeded("Serving did not answer in time.") from None
        except httpx.TransportError:
            raise UpstreamUnreachable("Serving cannot be reached.") from None
        except httpx.HTTPError:
            raise UpstreamFailed("Serving answered something that cannot be read.") from None
        if answer.status_code != HTTPStatus.OK:
            raise _refusal(answer, version)
        try:
            return Written.model_validate_json(answer.content)
        except ValidationError:
            raise UpstreamFailed("Serving answered something that is not a tip.") from None


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
    error = from_problem(document, int(wait) if _SECONDS.fullmatch(wait) else None)
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
