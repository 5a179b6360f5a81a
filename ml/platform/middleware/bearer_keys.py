"""Middleware that checks bearer keys."""

import secrets
from collections.abc import Sequence

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from ml.platform.errors import Unauthorized
from ml.platform.middleware.route_rules import rules_of
from ml.platform.problem_json import problem_response


class BearerKeyMiddleware:
    """Answers 401 to requests without one of the keys, except to routes that need none.

    If no keys are configured, every request passes.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[SecretStr]) -> None:
        self.app = app
        self.keys = [key.get_secret_value().encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys and rules_of(scope).needs_key:
            authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, token = authorization.partition(b" ")
            # Every key is compared, each in constant time, so that the response time reveals nothing about the keys.
            matches = [secrets.compare_digest(token.strip(), key) for key in self.keys]
            if scheme.lower() != b"bearer" or not any(matches):
                error = Unauthorized("This request needs one of the API keys: `Authorization: Bearer <key>`.")
                await problem_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)
