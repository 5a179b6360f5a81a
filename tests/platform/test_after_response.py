"""Work after the response: it begins when the last byte has been sent, also if the response is an error."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from ml.platform.after_response import call_after_response
from ml.platform.middleware.request_telemetry import RequestTelemetryMiddleware
from ml.platform.middleware.route_rules import NO_ROUTE, RouteRulesMiddleware
from ml.platform.telemetry import Telemetry

SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "headers": [], "path": "/", "state": {}}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("in_task", [False, True], ids=["in the same task", "in a task of its own"])
def test_it_begins_after_the_response(fails: bool, in_task: bool) -> None:
    events: list[str] = []

    async def handler(_: Scope, __: Receive, send: Send) -> None:
        call_after_response(lambda: events.append("called"))
        if fails:
            raise RuntimeError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if in_task:
            await asyncio.create_task(handler(scope, receive, send))
        else:
            await handler(scope, receive, send)

    async def send(message: Message) -> None:
        events.append(message["type"])

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    middleware = RouteRulesMiddleware(RequestTelemetryMiddleware(app, Telemetry()), [], lambda _: NO_ROUTE)
    asyncio.run(middleware({**SCOPE}, receive, send))
    assert events == ["http.response.start", "http.response.body", "called"]


def test_outside_of_a_request_it_is_called_at_once() -> None:
    events: list[str] = []
    call_after_response(lambda: events.append("called"))
    assert events == ["called"]
