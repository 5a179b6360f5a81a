"""The mapping from LiteLLM's exceptions to the errors of the services. No vendor's message is passed on."""

import ssl
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import httpx

from ml.platform.errors import (
    Busy,
    ContentRefused,
    DeadlineExceeded,
    TipsError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRefused,
    UpstreamUnreachable,
)
from ml.serving.response_observer import OVERLOADED

MAX_RETRY_AFTER = 300
"""In seconds; a longer `Retry-After` of an upstream is shortened to this."""

# By class name, since LiteLLM is imported later.
ERROR_MAP: Mapping[str, type[TipsError]] = MappingProxyType(
    {
        # The provider rejects the content of the signals, which the caller can change.
        "ContentPolicyViolationError": ContentRefused,
        "BlockedPiiEntityError": ContentRefused,
        "SensitiveDataRouteException": ContentRefused,
        # The service wrote the request and the operator chose the key and the model: the caller cannot correct it.
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
        # The provider failed, or its response is not an answer.
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
        # LiteLLM also raises it for answers that it cannot read; a lost connection is found by its cause.
        "APIConnectionError": UpstreamFailed,
        "RateLimitError": UpstreamOverloaded,
        "RouterRateLimitError": UpstreamOverloaded,
        "RouterRateLimitErrorBasic": UpstreamOverloaded,
        "ServiceUnavailableError": UpstreamOverloaded,
        "Timeout": DeadlineExceeded,
        # The embedded model's own: background work gives way to other requests.
        "ModelInUseError": Busy,
    }
)

DETAILS: Mapping[type[TipsError], str] = MappingProxyType(
    {
        ContentRefused: "The model's provider declined to write about these signals.",
        UpstreamRefused: "The model's provider refused the request; the operator must correct the configuration.",
        UpstreamFailed: "The model's provider failed to answer.",
        UpstreamUnreachable: "The model's provider could not be reached.",
        UpstreamOverloaded: "The model's provider is overloaded.",
        Busy: "The model is needed by other requests, before which background work gives way.",
        DeadlineExceeded: "The model did not answer in time.",
    }
)


_UNREACHABLE = (httpx.ConnectError, httpx.ConnectTimeout, ssl.SSLError)


def vendor_exceptions(litellm: Any) -> tuple[type[Exception], ...]:
    """Return all exception classes that the imported module `litellm` exports and that it or `openai` defines."""
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


def map_upstream_error(error: Exception, *, status: int = 0) -> TipsError:
    """Return this project's error for a vendor's exception; for an unknown one, UpstreamFailed.

    `status`: that of the provider's response, 0 if there was none. LiteLLM invents one for answers that it cannot read.
    """
    error = getattr(error, "original_exception", None) or error  # an error within a stream is wrapped in another
    error_class = UpstreamOverloaded if OVERLOADED in {status, _status(error)} else _error_class(error)
    if error_class is UpstreamRefused and status == HTTPStatus.OK:
        error_class = UpstreamFailed
    retry_after = _retry_after(error) if error_class in {Busy, UpstreamOverloaded} else None
    return error_class(DETAILS[error_class], retry_after=retry_after)


def _error_class(error: Exception) -> type[TipsError]:
    if any(isinstance(cause, _UNREACHABLE) for cause in _causes(error)):
        return UpstreamUnreachable
    names = (cls.__name__ for cls in type(error).__mro__)
    error_class = next((ERROR_MAP[name] for name in names if name in ERROR_MAP), UpstreamFailed)
    # LiteLLM has no class for some statuses: a 403 is a plain APIError.
    if error_class is UpstreamFailed and HTTPStatus.BAD_REQUEST <= _status(error) < HTTPStatus.INTERNAL_SERVER_ERROR:
        return UpstreamRefused
    return error_class


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: Exception) -> int:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else 0


def _retry_after(error: Exception) -> int:
    headers: Mapping[str, str] = getattr(error, "litellm_response_headers", None) or {}
    seconds = headers.get("retry-after", "")
    return min(int(seconds), MAX_RETRY_AFTER) if seconds.isdecimal() else 1
