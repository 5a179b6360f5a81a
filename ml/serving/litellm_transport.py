"""The hook in LiteLLM's HTTP transport: what each task does with the requests that LiteLLM sends.

LiteLLM's clients take the class of their transport from one of its modules when they are made.
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol

import httpx

MAX_CONNECT_SECONDS = 3.0
"""The time for a connection, TLS included: a port that does not speak TLS often just waits for more."""

Send = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Exchange(Protocol):
    """The treatment of the requests of one call."""

    async def handle(self, request: httpx.Request, send: Send) -> httpx.Response:
        """Return the response to `request`, which `send` gets from the provider."""


class RequestCapture:
    """An exchange that keeps the request, and sends nothing."""

    def __init__(self) -> None:
        self.request: httpx.Request | None = None

    async def handle(self, request: httpx.Request, send: Send) -> httpx.Response:  # noqa: ARG002
        """Raise httpx.RequestError."""
        self.request = request
        raise httpx.RequestError("captured")


_exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def use_exchange(exchange: Exchange) -> None:
    """Make `exchange` handle the requests that the current task sends from now on."""
    _exchange.set(exchange)


def install_transport(aiohttp_transport: Any) -> None:
    """Let LiteLLM's HTTP clients use a transport that passes requests to the exchange of their task.

    `aiohttp_transport`: its module of that name, from which each new client takes the class.
    """

    class ExchangeTransport(aiohttp_transport.LiteLLMAiohttpTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            timeout = request.extensions.get("timeout", {})
            connect = min(timeout.get("connect") or MAX_CONNECT_SECONDS, MAX_CONNECT_SECONDS)
            request.extensions["timeout"] = {**timeout, "connect": connect}
            send: Send = super().handle_async_request
            exchange = _exchange.get()
            return await (exchange.handle(request, send) if exchange else send(request))

    if not getattr(aiohttp_transport.LiteLLMAiohttpTransport, "has_exchange", False):
        ExchangeTransport.has_exchange = True
        aiohttp_transport.LiteLLMAiohttpTransport = ExchangeTransport
