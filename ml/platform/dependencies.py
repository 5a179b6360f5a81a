"""FastAPI dependencies shared by the services: lifespan state, JSON bodies, caller timeouts, access to admin pages."""

import ipaddress
import re
import secrets
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel, SecretStr, ValidationError, WithJsonSchema

from ml.platform.errors import Forbidden, PasswordNeeded, UnsupportedMediaType
from ml.platform.problem_json import error_from_validation

_JSON_MEDIA_TYPE = re.compile(r"application/([a-z0-9.!#$&^_-]+\+)?json")


def from_state(name: str) -> Any:
    """Return a dependency on the value that the lifespan yielded under `name`."""

    async def value(request: Request) -> Any:  # async, since FastAPI runs plain functions in a thread
        return getattr(request.state, name)

    return Depends(value)


async def require_json(request: Request) -> None:
    """Raise UnsupportedMediaType (415) unless the request declares a JSON body."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not _JSON_MEDIA_TYPE.fullmatch(media_type):
        raise UnsupportedMediaType("The request body must be JSON, sent with `Content-Type: application/json`.")


RequireJson = Depends(require_json)
"""The dependency of every route that has a request body."""

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request, model: type[Model]) -> Model:
    """Return the JSON body of a request as `model`, parsed from its bytes: less CPU than a parameter of the handler.

    Raises UnsupportedMediaType (415), InvalidRequest (400) or UnprocessableRequest (422).
    """
    await require_json(request)
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise error_from_validation(error.errors()) from None


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


def require_admin(password: SecretStr | None) -> Dependency:
    """Return a dependency that requires the admin password or, when none is set, a browser on this machine.

    Without a password the Host header must name this machine too, which rejects proxies and the pages of other sites.
    """
    basic = HTTPBasic(auto_error=False, realm="tips")

    async def check(request: Request, credentials: Annotated[HTTPBasicCredentials | None, Depends(basic)]) -> None:
        if password is None:
            require_local_request(
                request, "Without ADMIN_PASSWORD, only browsers on the service's own machine may open this page."
            )
            return
        expected = password.get_secret_value().encode()
        if credentials is None or not secrets.compare_digest(credentials.password.encode(), expected):
            raise PasswordNeeded("This page needs a password: the value of ADMIN_PASSWORD, with any user name.")

    return Dependency(check)


def require_local_request(request: Request, detail: str) -> None:
    """Raise Forbidden (403) with `detail` unless the client and the requested host are both this machine."""
    if not (request.client and is_loopback(request.client.host) and is_loopback(request.url.hostname or "")):
        raise Forbidden(detail)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is a loopback one, which other machines cannot reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
