"""Middleware that cancels the handler when the client disconnects."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class DisconnectMiddleware:
    """Runs the handler in a task of its own, and cancels it when the client disconnects.

    Expects the whole body in the first message, as `BodyLimitMiddleware` passes it on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        unread = [await receive()]

        async def receive_body() -> Message:
            if unread:
                return unread.pop()
            # A disconnect is handled below, by cancelling the handler, so the handler never sees it.
            await asyncio.Future()
            raise AssertionError("the future is never resolved")

        # In a task of its own, even if it never waits: requests that arrive meanwhile reach `InFlightLimitMiddleware`
        # first, which can then see how many there are and refuse some, instead of waiting unseen in the event loop.
        handler = asyncio.ensure_future(self.app(scope, receive_body, send))
        try:
            await asyncio.sleep(0)  # a handler that never waits is done after this, so nothing has to be watched
            if not handler.done():
                await _wait_or_disconnect(handler, receive)
        finally:
            if not handler.done():
                handler.cancel()
        with suppress(asyncio.CancelledError):
            await handler


async def _wait_or_disconnect(handler: asyncio.Future[None], receive: Receive) -> None:
    """Wait until the handler is done or the client disconnects."""
    disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({handler, disconnected}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        disconnected.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
