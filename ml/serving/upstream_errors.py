"""What LiteLLM raises, as our errors. Only the kind of failure comes through, never a vendor's words."""

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import httpx

from ml.platform.errors import (
    ContentRefused,
    DeadlineExceeded,
    TipsError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRefused,
    UpstreamUnreachable,
)

MAX_RETRY_AFTER = 300
"""Seconds; an upstream that wants more is asked again by our caller after this long."""

# By name, so that the table can be read before LiteLLM has been imported.
ERROR_MAP: Mapping[str, type[TipsError]] = MappingProxyType(
    {
        # The signals' content is what the provider will not have: the caller can change it.
        "ContentPolicyViolationError": ContentRefused,
        "BlockedPiiEntityError": ContentRefused,
        "SensitiveDataRouteException": ContentRefused,
        # The request is composed by us, the key and the model by the operator: not the caller's fault.
        "AuthenticationError": UpstreamRefused,
        "BadRequestError": UpstreamRefused,
        "BudgetExceededError": UpstreamRefused,
        "ContextWindowExceededError": UpstreamRefused,
        "GuardrailRaisedException": UpstreamRefused,
        "ImageFetchError": UpstreamRefused,
        "InvalidRequestError": UpstreamRefused,
        "LiteLLMUnknownProvider": UpstreamRefused,
        "ModelNotMappedError": UpstreamRefused,
        "NotFoundError": UpstreamRefused,
        "PaymentRequiredError": UpstreamRefused,
        "PermissionDeniedError": UpstreamRefused,
        "RejectedRequestError": UpstreamRefused,
        "UnprocessableEntityError": UpstreamRefused,
        "UnsupportedParamsError": UpstreamRefused,
        "VectorStoreSearchError": UpstreamRefused,
        # It broke, or what it said is not an answer.
        "APIError": UpstreamFailed,
        "APIResponseValidationError": UpstreamFailed,
        "BadGatewayError": UpstreamFailed,
        "InternalServerError": UpstreamFailed,
        "JSONSchemaValidationError": UpstreamFailed,
        "MidStreamFallbackError": UpstreamFailed,
        "MockException": UpstreamFailed,
        "ModifyResponseException": UpstreamFailed,
        "OpenAIError": UpstreamFailed,
        "ToolLoopMaxRoundsExceeded": UpstreamFailed,
        "HTTPError": UpstreamFailed,
        "APIConnectionError": UpstreamUnreachable,
        "RateLimitError": UpstreamOverloaded,
        "RouterRateLimitError": UpstreamOverloaded,
        "RouterRateLimitErrorBasic": UpstreamOverloaded,
        "ServiceUnavailableError": UpstreamOverloaded,
        "Timeout": DeadlineExceeded,
    }
)

_SENTENCES: Mapping[type[TipsError], str] = MappingProxyType(
    {
        ContentRefused: "The model's provider declined to write about these signals.",
        UpstreamRefused: "The model's provider refused the request; the operator has to look into it.",
        UpstreamFailed: "The model's provider failed to answer.",
        UpstreamUnreachable: "The model's provider could not be reached.",
        UpstreamOverloaded: "The model's provider is overloaded.",
        DeadlineExceeded: "The model did not answer in time.",
    }
)


def vendor_exceptions(litellm: Any) -> tuple[type[Exception], ...]:
    """Return every exception class that the imported module `litellm` exports as its own."""
    exported = {**vars(litellm.exceptions), **vars(litellm)}.values()
    return tuple(
        {
            item
            for item in exported
            if isinstance(item, type)
            and issubclass(item, Exception)
            and item.__module__.startswith(("litellm", "openai"))
        }
    )


def map_upstream_error(error: Exception) -> TipsError:
    """Return our error for a vendor's; one that is not known is a failure of the upstream."""
    ours = _kind(error)
    return ours(_SENTENCES[ours], retry_after=_retry_after(error) if ours is UpstreamOverloaded else None)


def _kind(error: Exception) -> type[TipsError]:
    if any(isinstance(cause, (httpx.ConnectError, httpx.ConnectTimeout)) for cause in _causes(error)):
        return UpstreamUnreachable
    names = (cls.__name__ for cls in type(error).__mro__)
    kind = next((ERROR_MAP[name] for name in names if name in ERROR_MAP), UpstreamFailed)
    # LiteLLM has no class of its own for every status: a 403 comes as a bare APIError.
    if kind is UpstreamFailed and HTTPStatus.BAD_REQUEST <= _status(error) < HTTPStatus.INTERNAL_SERVER_ERROR:
        return UpstreamRefused
    return kind


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: Exception) -> int:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else 0


def _retry_after(error: Exception) -> int:
    headers: Mapping[str, str] = getattr(error, "litellm_response_headers", None) or {}
    asked = headers.get("retry-after", "")
    return min(int(asked), MAX_RETRY_AFTER) if asked.isdecimal() else 1
