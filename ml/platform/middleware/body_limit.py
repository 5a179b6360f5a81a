"""Middleware that reads the request body, up to a limit, before the handler runs."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml.platform.errors import PayloadTooLarge
from ml.platform.problem_json import problem_response


class BodyLimitMiddleware:
    """Buffers the body, answers 413 above `max_bytes`, and cancels the handler when the client disconnects."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        more_body = True
        while more_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more_body = message.get("more_body", False)
            if len(body) > self.max_bytes:
                error = PayloadTooLarge(f"The request body is longer than {self.max_bytes} bytes.")
                await problem_response(error)(scope, receive, send)
                return
        await self._run_handler(bytes(body), scope, receive, send)

    async def _run_handler(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        unread = [body]

        async def receive_body() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            # A disconnect is handled below, by cancelling the handler, so the handler never sees it.
            await asyncio.Future()
            raise AssertionError("the future is never resolved")

        # In a task of its own, even if it never waits: requests that arrive meanwhile reach `InFlightLimitMiddleware`
        # first, which can then see how many there are and refuse some, instead of waiting unseen in the event loop.
        handler = asyncio.ensure_future(self.app(scope, receive_body, send))
        disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({handler, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            disconnected.cancel()
            if not handler.done():
                handler.cancel()
        with suppress(asyncio.CancelledError):
            await handler


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
