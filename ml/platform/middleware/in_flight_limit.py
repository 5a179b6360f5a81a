"""Middleware that limits concurrent requests."""

from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml.platform.errors import Busy
from ml.platform.problem_json import problem_response


@dataclass(frozen=True, slots=True)
class InFlightLimit:
    """At most `max_requests` concurrent requests to `paths`."""

    paths: frozenset[str]
    max_requests: int


class InFlightLimitMiddleware:
    """Answers 503 immediately when the limit is reached, so that no queue builds up.

    A request holds its slot until the last byte of its response is sent.
    """

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
        holds_slot = True

        def release() -> None:
            nonlocal holds_slot
            if holds_slot:
                holds_slot = False
                self.in_flight -= 1

        async def send_and_release(message: Message) -> None:
            # Before the last byte, not when the handler has ended: a caller that has the whole response may send its
            # next request before that.
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                release()
            await send(message)

        try:
            await self.app(scope, receive, send_and_release)
        finally:
            release()
