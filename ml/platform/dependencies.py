"""What requests pass before a handler sees them: pure ASGI middleware for all, dependencies for some."""

import asyncio
import ipaddress
import re
import secrets
import time
import uuid
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends, Header, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import SecretStr, WithJsonSchema
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml.platform.errors import (
    Busy,
    Forbidden,
    PasswordNeeded,
    PayloadTooLarge,
    TipsError,
    Unauthorized,
    UnsupportedMediaType,
)
from ml.platform.problem_json import problem_response
from ml.platform.telemetry import Telemetry, traceparent

log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_JSON = re.compile(r"application/([a-z0-9.!#$&^_-]+\+)?json")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

CLIENT_CLOSED_REQUEST = 499
"""The status that logs and metrics show when the caller went away before an answer was begun (nginx's)."""


class RequestTelemetryMiddleware:
    """The outermost: request id and trace in and out, one log line and one observation a request.

    Also the process's edge: an exception that nobody expected is logged without its message and answered with 500.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        method = scope["method"] if scope["method"] in _METHODS else "other"
        status = CLIENT_CLOSED_REQUEST
        started = time.perf_counter()

        with self.telemetry.request(headers, request_id) as (span, line):
            ids = [(b"x-request-id", request_id.encode()), (b"traceparent", traceparent(span).encode())]

            async def send_with_ids(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    message = {**message, "headers": [*message["headers"], *ids]}
                await send(message)

            try:
                await self.app(scope, receive, send_with_ids)
            except Exception:
                log.exception("unexpected")
                if status == CLIENT_CLOSED_REQUEST:
                    unexpected = TipsError("Something unexpected happened; the service's log tells where.")
                    await problem_response(unexpected)(scope, receive, send_with_ids)
            finally:
                seconds = time.perf_counter() - started
                route = getattr(scope.get("route"), "path", "unmatched")
                self.telemetry.requests.labels(method, route, status).observe(seconds)
                span.update_name(f"{method} {route}")
                span.set_attribute("http.response.status_code", status)
                log.info("request", method=method, route=route, status=status, ms=round(seconds * 1000, 2), **line)


class BearerKeyMiddleware:
    """Lets through only requests with one of the keys, except to open paths and below; without keys, everything."""

    def __init__(self, app: ASGIApp, keys: Sequence[SecretStr], open_paths: Collection[str]) -> None:
        self.app = app
        self.keys = [key.get_secret_value().encode() for key in keys]
        self.open_paths = tuple(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys and not self._open(scope["path"]):
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, token = given.partition(b" ")
            # Every key is compared, each in constant time: how long this takes tells nothing.
            known = [secrets.compare_digest(token.strip(), key) for key in self.keys]
            if scheme.lower() != b"bearer" or not any(known):
                error = Unauthorized("This needs a known key: `Authorization: Bearer <key>`.")
                await problem_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _open(self, path: str) -> bool:
        return any(path == open_path or path.startswith(f"{open_path}/") for open_path in self.open_paths)


@dataclass(frozen=True, slots=True)
class InFlightLimit:
    """At most `most` requests to `paths` at once."""

    paths: frozenset[str]
    most: int


class InFlightLimitMiddleware:
    """Answers 503 at once when as many requests as allowed are being worked on, rather than let a queue grow."""

    def __init__(self, app: ASGIApp, limit: InFlightLimit) -> None:
        self.app = app
        self.limit = limit
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self.limit.paths:
            await self.app(scope, receive, send)
            return
        if self.in_flight >= self.limit.most:
            error = Busy("This service is doing as much of this as it can do at once.", retry_after=1)
            await problem_response(error)(scope, receive, send)
            return
        self.in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.in_flight -= 1


class BodyLimitMiddleware:
    """Reads the body first, at most `longest` bytes, and stops the handler when the caller goes away."""

    def __init__(self, app: ASGIApp, longest: int) -> None:
        self.app = app
        self.longest = longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.longest:
                error = PayloadTooLarge(f"The request body is longer than {self.longest} bytes.")
                await problem_response(error)(scope, receive, send)
                return
        await self._run(bytes(body), scope, receive, send)

    async def _run(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        unread = [body]

        async def receive_body() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await asyncio.Future()  # the caller going away is our business: the handler is cancelled
            raise AssertionError("never set")

        handler = asyncio.ensure_future(self.app(scope, receive_body, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({handler, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not handler.done():
                handler.cancel()
        with suppress(asyncio.CancelledError):
            await handler


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def require_json(request: Request) -> None:
    """Raise UnsupportedMediaType unless the request says that its body is JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not _JSON.fullmatch(media_type):
        raise UnsupportedMediaType("The request body must be JSON, sent with `Content-Type: application/json`.")


RequireJson = Depends(require_json)
"""A dependency of routes with a body: another media type is a 415."""


TIMEOUT_HEADER = "X-Request-Timeout-Ms"
"""The request header in which a caller says how long it will wait for the answer, in milliseconds."""


async def _seconds_left(
    milliseconds: Annotated[
        int | None,
        Header(alias=TIMEOUT_HEADER, ge=1, le=600_000, description="How long the caller will wait."),
        WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 600_000}),
    ] = None,
) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


CallerTimeout = Annotated[float | None, Depends(_seconds_left)]
"""How long the caller will wait, in seconds; None if it does not say."""


def require_admin(password: SecretStr | None) -> Dependency:
    """Return a dependency that lets through whoever knows the password; without one, only browsers on this machine.

    The host that was asked for must be this machine's name too: another site's page, or a proxy, does not pass.
    """
    basic = HTTPBasic(auto_error=False, realm="tips")

    async def check(request: Request, given: Annotated[HTTPBasicCredentials | None, Depends(basic)]) -> None:
        if password is None:
            require_local_request(
                request, "Without ADMIN_PASSWORD, this page is shown to browsers on the service's machine only."
            )
        elif given is None or not secrets.compare_digest(given.password.encode(), password.get_secret_value().encode()):
            raise PasswordNeeded("This page needs the password that ADMIN_PASSWORD has, with any user name.")

    return Dependency(check)


def require_local_request(request: Request, otherwise: str) -> None:
    """Raise Forbidden, with the sentence `otherwise`, unless the request is from this machine and to its own name."""
    if not (request.client and is_loopback(request.client.host) and is_loopback(request.url.hostname or "")):
        raise Forbidden(otherwise)


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine's own, reachable from nowhere else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
