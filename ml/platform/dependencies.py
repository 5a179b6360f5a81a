"""FastAPI dependencies shared by the services: lifespan state, JSON bodies, caller timeouts, access to admin pages."""

import re
import secrets
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel, SecretStr, ValidationError, WithJsonSchema

from ml.platform.errors import Forbidden, PasswordNeeded, UnsupportedMediaType
from ml.platform.local_request import is_cross_site, is_local
from ml.platform.priority import PRIORITY_HEADER, is_background
from ml.platform.problem_json import error_from_validation

_JSON_MEDIA_TYPE = re.compile(r"application/([a-z0-9.!#$&^_-]+\+)?json")


def from_state(name: str) -> Any:
    """Return a dependency on the value that the lifespan yielded under `name`."""

    async def value(request: Request) -> Any:  # async, since FastAPI runs plain functions in a thread
        return getattr(request.state, name)

    return Depends(value)


Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request, model: type[Model]) -> Model:
    """Return the JSON body of a request, in UTF-8, as `model`.

    All routes use it, so that all refuse the same bodies: FastAPI's own body parameters also accept UTF-16, lone
    surrogates and deeper nesting, and take more CPU. Raises UnsupportedMediaType (415), InvalidRequest (400) or
    UnprocessableRequest (422).
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not _JSON_MEDIA_TYPE.fullmatch(media_type):
        raise UnsupportedMediaType("The request body must be JSON, sent with `Content-Type: application/json`.")
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise error_from_validation(error.errors(include_url=False, include_input=False), model) from None


def json_body(model: type[BaseModel]) -> Any:
    """Return a dependency on the JSON body; the route also needs `openapi_extra=request_body(model)`."""

    async def body(request: Request) -> BaseModel:
        return await read_json(request, model)

    return Depends(body)


TIMEOUT_HEADER = "X-Request-Timeout-Ms"
"""The request header with the caller's timeout: how long it waits for the response, in milliseconds."""


async def _caller_timeout(
    milliseconds: Annotated[
        int | None,
        Header(
            alias=TIMEOUT_HEADER,
            ge=1,
            le=600_000,
            description="How long the caller waits for the response, in milliseconds.",
        ),
        WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 600_000}),
    ] = None,
) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


CallerTimeout = Annotated[float | None, Depends(_caller_timeout)]
"""The caller's timeout in seconds; None if the request has none."""


async def _in_background(
    priority: Annotated[
        str,
        Header(
            alias=PRIORITY_HEADER,
            description="With `u=7` (RFC 9218), the request is background work: others are not delayed by it.",
        ),
    ] = "",
) -> bool:
    return is_background(priority)


InBackground = Annotated[bool, Depends(_in_background)]
"""Whether the caller has marked the request as background work."""


def require_admin(password: SecretStr | None) -> Dependency:
    """Return a dependency that requires the admin password or, when none is set, a browser on this machine.

    It also refuses what a browser sends for pages of other sites, since the browser adds the password to it.
    """
    basic = HTTPBasic(auto_error=False, realm="tips")

    async def check(request: Request, credentials: Annotated[HTTPBasicCredentials | None, Depends(basic)]) -> None:
        if password is None:
            require_local_request(
                request, "Without ADMIN_PASSWORD, only browsers on the service's own machine may open this page."
            )
            return
        _refuse_cross_site(request)
        expected = password.get_secret_value().encode()
        if credentials is None or not secrets.compare_digest(credentials.password.encode(), expected):
            raise PasswordNeeded("This page needs a password: the value of ADMIN_PASSWORD, with any user name.")

    return Dependency(check)


def require_local_request(request: Request, detail: str) -> None:
    """Raise Forbidden (403): with `detail` unless the request was sent on this machine, and if it is cross-site."""
    if not is_local(request):
        raise Forbidden(detail)
    _refuse_cross_site(request)


def _refuse_cross_site(request: Request) -> None:
    if is_cross_site(request):
        raise Forbidden("A page of another site sent this request.")
