"""Middleware that gives each request an id, a trace, one log line and one metric observation."""

import re
import time
import uuid
from collections.abc import Mapping
from http import HTTPStatus

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml.platform.after_response import responding
from ml.platform.errors import TipsError
from ml.platform.middleware.route_rules import rules_of
from ml.platform.priority import is_background
from ml.platform.problem_json import problem_response
from ml.platform.telemetry import Telemetry, traceparent

log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

CLIENT_CLOSED_REQUEST = 499
"""The status in logs and metrics when the client disconnects before the response starts (as in nginx)."""


class RequestTelemetryMiddleware:
    """Accepts and returns request id and trace, and logs and measures each request once, also refused ones.

    A GET in the background (`ml.platform.priority`) that succeeds is measured, but not logged.
    It also handles unexpected exceptions: they are logged without their message and answered with 500.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        received_id = headers.get("x-request-id", "")
        request_id = received_id if _REQUEST_ID.fullmatch(received_id) else uuid.uuid4().hex
        method = scope["method"] if scope["method"] in _METHODS else "other"
        status = CLIENT_CLOSED_REQUEST
        started = time.perf_counter()

        with responding(), self.telemetry.request(headers, request_id) as (span, log_fields):
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
                    error = TipsError("An unexpected error occurred; the service's log has the details.")
                    await problem_response(error)(scope, receive, send_with_ids)
            finally:
                seconds = time.perf_counter() - started
                route = rules_of(scope).path
                self.telemetry.requests.labels(method, route, status).observe(seconds)
                span.update_name(f"{method} {route}")
                span.set_attribute("http.response.status_code", status)
                if not _is_quiet(method, status, headers):
                    ms = round(seconds * 1000, 2)
                    log.info("request", method=method, route=route, status=status, ms=ms, **log_fields)


def _is_quiet(method: str, status: int, headers: Mapping[str, str]) -> bool:
    """Return whether a request has no log line: another service polls in the background, and gets its answer."""
    return method == "GET" and status == HTTPStatus.OK and is_background(headers.get("priority", ""))
