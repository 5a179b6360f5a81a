"""Middleware that limits concurrent requests."""

from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from ml.platform.errors import Busy
from ml.platform.problem_json import problem_response


@dataclass(frozen=True, slots=True)
class InFlightLimit:
    """At most `max_requests` concurrent requests to `paths`."""

    paths: frozenset[str]
    max_requests: int


class InFlightLimitMiddleware:
    """Answers 503 immediately when the limit is reached, so that no queue builds up."""

    def __init__(self, app: ASGIApp, limit: InFlightLimit) -> None:
        self.app = app
        self.limit = limit
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self.limit.paths:
            await self.app(scope, receive, send)
            return
        if self.in_flight >= self.limit.max_requests:
            error = Busy("The service is at its limit of concurrent requests to this path.", retry_after=1)
            await problem_response(error)(scope, receive, send)
            return
        self.in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.in_flight -= 1
