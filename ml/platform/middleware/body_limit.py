"""Middleware that reads the request body, up to a limit, before the handler runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
            # A disconnect cancels the handler, below, so the handler never sees one.
            await asyncio.Future()
            raise AssertionError("the future is never resolved")

        async with _cancelled_on_disconnect(receive):
            await self.app(scope, receive_body, send)


@asynccontextmanager
async def _cancelled_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client disconnects, and leave it normally."""
    task, disconnected = asyncio.current_task(), False
    assert task is not None  # noqa: S101 - ASGI servers run each request in a task

    async def watch() -> None:
        nonlocal disconnected
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not disconnected or task.uncancel():  # something else cancelled the request as well
            raise
    finally:
        watcher.cancel()
