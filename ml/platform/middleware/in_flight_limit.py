"""Middleware that limits concurrent requests."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml.platform.errors import Busy
from ml.platform.middleware.route_rules import rules_of
from ml.platform.priority import PRIORITY_HEADER, is_background
from ml.platform.problem_json import problem_response


class InFlightLimitMiddleware:
    """Answers 503 immediately when the limit of the route is reached, so that no queue builds up.

    A request holds its slot until the last byte of its response is sent.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = rules_of(scope).limit if scope["type"] == "http" else None
        if limit is None:
            await self.app(scope, receive, send)
            return
        background = is_background(Headers(raw=[*scope.get("headers", ())]).get(PRIORITY_HEADER, ""))
        if not limit.admits(background=background):
            error = Busy("The service is at its limit of concurrent requests of this kind.", retry_after=1)
            await problem_response(error)(scope, receive, send)
            return
        limit.count(1, background=background)
        holds_slot = True

        def release() -> None:
            nonlocal holds_slot
            if holds_slot:
                holds_slot = False
                limit.count(-1, background=background)

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
