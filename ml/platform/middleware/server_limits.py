"""Middleware that refuses requests beyond the limits of the server, and warns about a server without limits.

The server says in each request's scope whether it limits headers and connections, and whether this request exceeds a
limit (`ml.platform.http_protocol`). It leaves the answer to the application, which logs and counts it like any other.
"""

from enum import Enum

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from ml.platform.errors import Busy, HeadersTooLarge, TipsError
from ml.platform.problem_json import problem_response

log = structlog.get_logger()

SERVER_LIMITS = "tips.server_limits"
"""The key of the ASGI extension; its value is a ServerLimit."""


class ServerLimit(Enum):
    """The limit of the server that a request exceeds."""

    NONE = "none"
    HEADERS = "headers"
    CONNECTIONS = "connections"


class ServerLimitsMiddleware:
    """Answers 431 to requests with too many or too large headers, and 503 when there are too many connections."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._has_warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exceeded = scope.get("extensions", {}).get(SERVER_LIMITS)
        if exceeded is ServerLimit.NONE or scope["type"] != "http":
            await self.app(scope, receive, send)
        elif exceeded is None:
            self._warn_once()
            await self.app(scope, receive, send)
        else:
            await problem_response(_refusal(exceeded))(scope, receive, send)

    def _warn_once(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "server_without_limits",
                reason="this server limits neither headers nor connections: use `tips serve`, or a proxy that does",
            )


def _refusal(exceeded: ServerLimit) -> TipsError:
    if exceeded is ServerLimit.HEADERS:
        return HeadersTooLarge("The request has too many headers, or they are too large.")
    return Busy("The service is at its limit of connections.", retry_after=1)
