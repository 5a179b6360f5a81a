"""The errors that the services answer with, each with its HTTP status.

    TipsError
    ├── InvalidRequest          400  not JSON
    ├── InvalidHeader           400  a request header has a value that is not accepted
    ├── Unauthorized            401  no bearer key, or a wrong one
    │   └── PasswordNeeded      401  an admin page without its password
    ├── Forbidden               403
    ├── UnknownTip              404
    ├── UnknownRollout          404
    ├── RequestTimeout          408  the client is too slow in sending the request
    ├── PolicyReloadFailed      409  a ranking policy cannot be loaded; the previous one stays active
    ├── RolloutConflict         409  a rollout was changed by somebody else in the meantime
    ├── RolloutRefused          409  a gate does not pass, or a rollout cannot make this move
    ├── RequestInProgress       409  another request with the same Idempotency-Key has not ended
    ├── PayloadTooLarge         413
    ├── UnsupportedMediaType    415
    ├── UnprocessableRequest    422  a field has a value that is not accepted
    │   ├── ContentRefused      422  the model's provider declined the content of the signals
    │   └── IdempotencyKeyReused 422  the same Idempotency-Key came with another body
    ├── HeadersTooLarge         431
    ├── UnusableTip             502  the model's text cannot be shown to a person
    │   └── UnsuitableTip       502  because of its content, which free text may have asked for
    ├── UpstreamRefused         502  the provider rejects the request or the key
    │   └── UnknownVersion      502  serving does not know the prompt version, or the ranking policy, it was asked for
    ├── UpstreamFailed          502  the provider failed, or its answer is not valid
    ├── UpstreamUnreachable     502
    ├── Busy                    503  the service is at its limit of concurrent requests; or background work gives way
    ├── NotReady                503  still loading, or no model to load
    ├── StorageUnavailable      503  the database is locked, full or unreachable
    ├── UpstreamOverloaded      503
    └── DeadlineExceeded        504

The messages are written by this project: they never contain upstream text, a key, an address, a prompt or a signal.
`problem_json` renders them (RFC 9457).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

PROBLEM_TYPE_PREFIX = "urn:tips:problem:"


@dataclass(frozen=True, slots=True)
class FieldError:
    """An error in one field: a JSON pointer to it (RFC 6901, section 6), the reason, and the allowed values."""

    pointer: str
    detail: str
    allowed: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        members: dict[str, Any] = {"pointer": self.pointer, "detail": self.detail}
        return members | {"allowed": list(self.allowed)} if self.allowed else members


class TipsError(Exception):
    """The root of the tree. `slug` is the last part of the problem type: a stable name that clients may rely on."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    slug: ClassVar[str] = "internal-error"

    def __init__(self, detail: str, *, errors: Iterable[FieldError] = (), retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to this error; `Retry-After` is in whole seconds."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def problem(self) -> dict[str, Any]:
        """Return the members of the problem+json document (RFC 9457, section 3)."""
        members: dict[str, Any] = {
            "type": f"{PROBLEM_TYPE_PREFIX}{self.slug}",
            "title": self.slug.replace("-", " ").capitalize(),
            "status": int(self.status),
            "detail": self.detail,
        }
        return members | {"errors": [error.as_json() for error in self.errors]} if self.errors else members


class InvalidRequest(TipsError):
    status, slug = HTTPStatus.BAD_REQUEST, "invalid-json"


class InvalidHeader(TipsError):
    status, slug = HTTPStatus.BAD_REQUEST, "invalid-header"


class Unauthorized(TipsError):
    status, slug = HTTPStatus.UNAUTHORIZED, "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class PasswordNeeded(Unauthorized):
    slug = "password-needed"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Basic realm="tips", charset="UTF-8"'}


class Forbidden(TipsError):
    status, slug = HTTPStatus.FORBIDDEN, "forbidden"


class UnknownTip(TipsError):
    status, slug = HTTPStatus.NOT_FOUND, "unknown-tip"


class RequestTimeout(TipsError):
    status, slug = HTTPStatus.REQUEST_TIMEOUT, "request-timeout"

    @property
    def headers(self) -> dict[str, str]:
        return {"Connection": "close"}


class PolicyReloadFailed(TipsError):
    status, slug = HTTPStatus.CONFLICT, "policy-unusable"


class UnknownRollout(TipsError):
    status, slug = HTTPStatus.NOT_FOUND, "unknown-rollout"


class RolloutConflict(TipsError):
    status, slug = HTTPStatus.CONFLICT, "rollout-conflict"


class RolloutRefused(TipsError):
    status, slug = HTTPStatus.CONFLICT, "rollout-refused"


class RequestInProgress(TipsError):
    status, slug = HTTPStatus.CONFLICT, "request-in-progress"


class PayloadTooLarge(TipsError):
    status, slug = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "payload-too-large"


class UnsupportedMediaType(TipsError):
    status, slug = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type"


class UnprocessableRequest(TipsError):
    status, slug = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-field"


class ContentRefused(UnprocessableRequest):
    slug = "content-refused"


class IdempotencyKeyReused(UnprocessableRequest):
    slug = "idempotency-key-reused"


class HeadersTooLarge(TipsError):
    status, slug = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large"


class UnusableTip(TipsError):
    status, slug = HTTPStatus.BAD_GATEWAY, "unusable-tip"


class UnsuitableTip(UnusableTip):
    pass


class UpstreamRefused(TipsError):
    status, slug = HTTPStatus.BAD_GATEWAY, "upstream-refused"


class UnknownVersion(UpstreamRefused):
    pass


class UpstreamFailed(TipsError):
    status, slug = HTTPStatus.BAD_GATEWAY, "upstream-failed"


class UpstreamUnreachable(TipsError):
    status, slug = HTTPStatus.BAD_GATEWAY, "upstream-unreachable"


class Busy(TipsError):
    status, slug = HTTPStatus.SERVICE_UNAVAILABLE, "busy"


class NotReady(TipsError):
    status, slug = HTTPStatus.SERVICE_UNAVAILABLE, "not-ready"


class StorageUnavailable(TipsError):
    status, slug = HTTPStatus.SERVICE_UNAVAILABLE, "storage-unavailable"


class UpstreamOverloaded(TipsError):
    status, slug = HTTPStatus.SERVICE_UNAVAILABLE, "upstream-overloaded"


class DeadlineExceeded(TipsError):
    status, slug = HTTPStatus.GATEWAY_TIMEOUT, "deadline-exceeded"
