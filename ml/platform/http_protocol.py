"""The HTTP protocol of the server: uvicorn's with httptools, with limits for headers, connections and slow clients.

httptools and uvicorn limit neither the number nor the size of headers, and wait without a deadline for the rest of a
request. `tips serve` uses this protocol; so does `uvicorn --http ml.platform.http_protocol:LimitedHttpProtocol`.
"""

import asyncio
import itertools
import selectors
from typing import Any, ClassVar

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from ml.platform.middleware.server_limits import SERVER_LIMITS, ServerLimit

MAX_CONNECTIONS = 500
"""The default of uvicorn's `limit_concurrency`, which limits the connections of clients here."""

REFUSABLE_SHARE = 0.5
"""Connections above the limit, as a share of it, whose requests are answered with 503; more are closed at once."""

MAX_CANDIDATES = 64
"""Silent connections that are looked at to make room for one."""


class PipelineTooLong(Exception):
    """A client sends more requests without waiting for answers than the server keeps."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection of a client.

    - A request whose headers are too many or too large is not read to the end. The application receives what was read,
      marked as exceeding the limit, and the connection is closed after its answer.
    - A client that has not completed the headers of a request, or the rest of a refused one, in time is disconnected.
    - So is a client that does not read its response.
    - Above the limit of connections, one that has waited for a request or a body for `min_silence` seconds is closed in
      favour of the new one. If there is none, the request of the new one is marked as exceeding the limit.
    """

    max_headers: ClassVar[int] = 100
    max_header_bytes: ClassVar[int] = 64 * 1024
    max_pipelined: ClassVar[int] = 32
    read_timeout: ClassVar[float] = 10
    write_timeout: ClassVar[float] = 30
    min_silence: ClassVar[float] = 2

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.max_connections = config.limit_concurrency or MAX_CONNECTIONS
        self.limit_concurrency = None  # uvicorn would answer with plain text, and keep idle connections
        self._unparsed_bytes = 0
        self._waits_since = self.loop.time()
        self._in_headers = False
        self._is_refused = False
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being handled: the next one is not complete, or the rest of an answered one arrives."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def seconds_silent(self) -> float:
        """For how long the client has not completed, or not begun, a request; 0 while one is handled."""
        return self.loop.time() - self._waits_since if self.is_idle or self.cycle.more_body else 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._make_room()
        if len(self.connections) > self.max_connections * (1 + REFUSABLE_SHARE):
            self.transport.abort()
        self._start_read_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._read_timer, self._write_timer, self.timeout_keep_alive_task):
            if timer:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if not self._is_refused and (
            # The parser adds the trailers of a chunked body to the headers.
            self._unparsed_bytes > self.max_header_bytes or len(self.headers or ()) > self.max_headers
        ):
            self._refuse_headers()
        if not self.is_idle:
            self._stop_read_timer()
        else:
            self._start_read_timer()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self.max_pipelined:
            raise PipelineTooLong
        super().on_message_begin()
        self._unparsed_bytes = 0
        self._waits_since = self.loop.time()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        self._in_headers = False
        exceeded = ServerLimit.NONE
        if self._is_refused or len(self.headers) > self.max_headers or self._header_bytes() > self.max_header_bytes:
            self._is_refused = True
            exceeded = ServerLimit.HEADERS
        elif len(self.connections) > self.max_connections:
            exceeded = ServerLimit.CONNECTIONS
        self.scope["extensions"] = {SERVER_LIMITS: exceeded}  # type: ignore[dict-item]
        super().on_headers_complete()
        if exceeded is not ServerLimit.NONE:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._waits_since = self.loop.time()
        if self.transport.is_closing():
            self._start_write_timer()
        elif self._in_headers:  # of the next request
            self._start_read_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer and not self.transport.is_closing():
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        if self.is_idle:
            super().send_400_response(msg)
        else:  # it would be part of the response in progress
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._start_write_timer()

    def _header_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse_headers(self) -> None:
        """Read no further; let the application answer if the client is still sending the headers."""
        self._is_refused = True
        if not self._in_headers:
            self.transport.abort()
            return
        del self.headers[self.max_headers :]
        try:
            self.on_headers_complete()
        except httptools.HttpParserError:  # the address is not complete either
            self.transport.abort()

    def close_to_make_room(self) -> None:
        """Send what is still to be sent, and close."""
        self.connections.discard(self)  # at once: otherwise only when the event loop has closed it
        self.transport.close()
        self._start_write_timer()

    def _make_room(self) -> None:
        """Close connections of silent clients until there are as many as allowed, or all candidates were tried."""
        waiting = (
            connection
            for connection in self.connections
            if isinstance(connection, LimitedHttpProtocol)
            and connection is not self
            and connection.seconds_silent > self.min_silence
            and not connection.transport.is_closing()
        )
        with selectors.DefaultSelector() as selector:
            for connection in itertools.islice(waiting, MAX_CANDIDATES):
                selector.register(connection.transport.get_extra_info("socket"), selectors.EVENT_READ, connection)
            # A busy server has not read yet what these have sent.
            readable = {key.fd for key, _ in selector.select(0)}
            silent = [key.data for key in selector.get_map().values() if key.fd not in readable]
        for connection in silent[: len(self.connections) - self.max_connections]:
            connection.close_to_make_room()

    def _start_read_timer(self) -> None:
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(self.read_timeout, self.transport.abort)

    def _stop_read_timer(self) -> None:
        if self._read_timer:
            self._read_timer.cancel()
            self._read_timer = None

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.write_timeout, self.transport.abort)
