"""Every error the services can answer with, a status each, and the one renderer (RFC 9457 problem+json).

    TipsError
    ├── InvalidRequest          400  not JSON
    ├── Unauthorized            401  no bearer key, or a wrong one
    │   └── PasswordNeeded      401  an admin page, without its password
    ├── Forbidden               403
    ├── UnknownTip              404
    ├── PolicyUnusable          409  a policy to be put in force cannot be; the one before stays
    ├── PayloadTooLarge         413
    ├── UnsupportedMediaType    415
    ├── UnprocessableRequest    422  a field has a value we do not accept
    │   └── ContentRefused      422  the model's provider declined the signals' content
    ├── UnusableTip             502  the model's text cannot be shown to a person
    ├── UpstreamRefused         502  the provider rejects our request or our key
    ├── UpstreamFailed          502  the provider broke, or answered nonsense
    ├── UpstreamUnreachable     502
    ├── Busy                    503  we are doing as much as we can
    ├── NotReady                503  still loading, or no model to load
    ├── StorageUnavailable      503  the database is locked, full or gone
    ├── UpstreamOverloaded      503
    └── DeadlineExceeded        504

Messages are ours alone: no upstream text, key, address, prompt or signal is ever part of one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

PROBLEM_JSON = "application/problem+json"
MAX_FIELD_ERRORS = 20
MAX_NAME_LENGTH = 60
MAX_DETAIL_LENGTH = 500

_TYPE = "urn:tips:problem:"

_NOT_JSON = "The request body is not valid JSON."


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field: a JSON pointer to it (RFC 6901, section 6), why, and the allowed values."""

    pointer: str
    detail: str
    allowed: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"pointer": self.pointer, "detail": self.detail}
        return shown | {"allowed": list(self.allowed)} if self.allowed else shown


class TipsError(Exception):
    """The root of all errors with an HTTP status. `slug` ends the problem's type, a stable name to switch on."""

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
            "type": f"{_TYPE}{self.slug}",
            "title": self.slug.replace("-", " ").capitalize(),
            "status": int(self.status),
            "detail": self.detail,
        }
        return members | {"errors": [error.as_json() for error in self.errors]} if self.errors else members


class InvalidRequest(TipsError):
    status, slug = HTTPStatus.BAD_REQUEST, "invalid-json"


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


class PolicyReloadFailed(TipsError):
    status, slug = HTTPStatus.CONFLICT, "policy-unusable"


class PayloadTooLarge(TipsError):
    status, slug = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "payload-too-large"


class UnsupportedMediaType(TipsError):
    status, slug = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type"


class UnprocessableRequest(TipsError):
    status, slug = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-field"


class ContentRefused(UnprocessableRequest):
    slug = "content-refused"


class UnusableTip(TipsError):
    status, slug = HTTPStatus.BAD_GATEWAY, "unusable-tip"


class UpstreamRefused(TipsError):
    status, slug = HTTPStatus.BAD_GATEWAY, "upstream-refused"


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


def error_from_problem(document: Any, retry_after: int | None) -> TipsError | None:
    """Turn a problem document that a service of ours wrote back into its error; None if it is not one."""
    match document:
        case {"type": str(kind), "detail": str(detail)}:
            found = _by_slug(TipsError).get(kind.removeprefix(_TYPE))
        case _:
            found = None
    if found is None:
        return None
    fields = document.get("errors")
    errors = [_field(field) for field in fields if isinstance(field, dict)] if isinstance(fields, list) else []
    return found(detail[:MAX_DETAIL_LENGTH], errors=errors, retry_after=retry_after)


def _field(field: Mapping[str, Any]) -> FieldError:
    allowed = field.get("allowed")
    return FieldError(
        str(field.get("pointer", "#"))[:MAX_DETAIL_LENGTH],
        str(field.get("detail", ""))[:MAX_DETAIL_LENGTH],
        tuple(str(value)[:MAX_NAME_LENGTH] for value in allowed) if isinstance(allowed, list) else (),
    )


def _by_slug(root: type[TipsError]) -> dict[str, type[TipsError]]:
    found = {root.slug: root}
    for child in root.__subclasses__():
        found |= _by_slug(child)
    return found


def problem_response(error: TipsError) -> JSONResponse:
    """Render one of our errors as a problem+json response."""
    return JSONResponse(error.problem(), int(error.status), headers=error.headers, media_type=PROBLEM_JSON)


_PROBLEM_SCHEMA = {
    "title": "Problem",
    "description": "An error, as RFC 9457 has it.",
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "A JSON pointer into the request body."},
                    "detail": {"type": "string"},
                    "allowed": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a route that can answer with these statuses."""
    content = {PROBLEM_JSON: {"schema": _PROBLEM_SCHEMA}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install_problem_handlers(app: FastAPI) -> None:
    """Make `app` answer every error, its own and the framework's, as problem+json."""

    @app.exception_handler(TipsError)
    def ours(_: Request, error: TipsError) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem_response(error_from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    def frameworks(_: Request, error: HTTPException) -> JSONResponse:
        members = {"type": "about:blank", "title": HTTPStatus(error.status_code).phrase, "status": error.status_code}
        return JSONResponse(members, error.status_code, headers=error.headers, media_type=PROBLEM_JSON)


def error_from_validation(errors: Iterable[Mapping[str, Any]]) -> TipsError:
    """Turn pydantic's errors about a request body into ours, without the values that were sent."""
    fields = [field for error in errors for field in _fields(error)]
    if any(field.detail == _NOT_JSON for field in fields):
        return InvalidRequest(_NOT_JSON)
    named = "; ".join(f"{field.pointer}: {field.detail}" for field in fields[:3])
    return UnprocessableRequest(f"The request cannot be used. {named}.", errors=fields[:MAX_FIELD_ERRORS])


def _fields(error: Mapping[str, Any]) -> Iterable[FieldError]:
    if error["type"] == "json_invalid":
        return [FieldError("#", _NOT_JSON)]
    context = error.get("ctx", {})
    location = [*error["loc"]]
    if location[:1] == ["body"]:
        del location[0]
    names = context.get("unknown")
    locations = [[*location, name] for name in names] if names else [location]
    allowed = tuple(context.get("allowed", ()))
    return [FieldError(_pointer(location), error["msg"], allowed) for location in locations]


def _pointer(location: Iterable[str | int]) -> str:
    """Return a JSON pointer as a URI fragment; a name that the caller made up is cut to a readable length."""
    tokens = (str(part)[:MAX_NAME_LENGTH].replace("~", "~0").replace("/", "~1") for part in location)
    return "#" + "".join(f"/{token}" for token in tokens)
