"""Middleware that reads the request body, within limits of size and time, before the request takes other resources."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml.platform.errors import PayloadTooLarge, RequestTimeout, TipsError
from ml.platform.problem_json import problem_response


class BodyLimitMiddleware:
    """Reads the whole body first; answers 413 above `max_bytes`, and 408 if it is not complete after `timeout` seconds.

    The application receives the body in one message.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read_in_time(receive)
        except TipsError as error:
            await problem_response(error)(scope, receive, send)
            return
        if body is None:  # the client has disconnected
            return
        unread = [body]

        async def receive_body() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        await self.app(scope, receive_body, send)

    async def _read_in_time(self, receive: Receive) -> bytes | None:
        try:
            async with asyncio.timeout(self.timeout):
                return await self._read(receive)
        except TimeoutError:
            message = f"The request body was not complete after {self.timeout:g} seconds."
            raise RequestTimeout(message) from None

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body; None if the client disconnects. Raises PayloadTooLarge."""
        chunks = bytearray()
        more_body = True
        while more_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunks += message.get("body", b"")
            more_body = message.get("more_body", False)
            if len(chunks) > self.max_bytes:
                raise PayloadTooLarge(f"The request body is longer than {self.max_bytes} bytes.")
        return bytes(chunks)
