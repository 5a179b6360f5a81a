"""The finish reason of a model's answer, read from the bytes of the provider's response.

LiteLLM reports `stop` also for an answer that was cut off by a lost connection and for reasons that it does not know. A
transport of its HTTP clients therefore reads the reason in passing, in the formats of all providers that send JSON.
"""

import re
from collections.abc import AsyncIterator
from contextvars import ContextVar
from enum import StrEnum
from typing import Any

import httpx

OVERLOADED = 529
"""The status of an overloaded provider (Anthropic and others), for which LiteLLM has no class."""

MAX_CONNECT_SECONDS = 3.0
"""The time for a connection, TLS included: a port that does not speak TLS often just waits for more."""


class FinishReason(StrEnum):
    """The reason for which a model ended its answer: its own end, the limit of tokens, a refusal, or anything else."""

    STOP = "stop"
    LENGTH = "length"
    REFUSED = "content_filter"
    OTHER = "other"


_REASONS = {
    name.encode(): reason
    for reason, names in {
        FinishReason.STOP: "stop STOP end_turn stop_sequence eos eos_token COMPLETE",
        FinishReason.LENGTH: (
            "length max_tokens MAX_TOKENS model_length max_output_tokens model_context_window_exceeded"
        ),
        FinishReason.REFUSED: (
            "content_filter content_filtered refusal SAFETY PROHIBITED_CONTENT BLOCKLIST SPII sensitive ERROR_TOXIC "
            "guardrail_intervened"
        ),
    }.items()
    for name in names.split()
}

# A quotation mark inside of a JSON string is escaped, so neither pattern matches in the text of an answer.
_REASON = re.compile(
    rb'"(?:finish_reason|finishReason|stop_reason|stopReason|done_reason|(blockReason))"\s*:\s*"([^"\\]{1,64})"'
)
_FORMAT = re.compile(rb'"(?:choices|candidates|stop_reason|promptFeedback)"\s*:')
_OVERLOADED_ERROR = re.compile(rb'"type"\s*:\s*"overloaded_error"')

_LONGEST_MATCH = 256
"""In bytes: this many of the previous ones are searched again with the next ones."""


class ResponseObserver:
    """The state of one response.

    `finish_reason`: the last one that has arrived. `is_known_format`: it is an answer in a format that ends with a
    reason. `has_events`: a server-sent event has arrived. `is_observed`: there was an HTTP response that can be read.
    `status`: its status, 0 before it has arrived; OVERLOADED also if a stream ends with that error.
    """

    def __init__(self) -> None:
        self.finish_reason: FinishReason | None = None
        self.is_known_format = False
        self.has_events = False
        self.is_observed = False
        self.status = 0
        self._tail = b""
        self._streams: list[httpx.AsyncByteStream] = []

    def observe(self, response: httpx.Response) -> None:
        """Read the body of this response as it passes by."""
        self.status = response.status_code
        if isinstance(response.stream, httpx.AsyncByteStream):
            self._streams.append(response.stream)
            if response.headers.get("content-encoding", "identity") == "identity":
                self.is_observed = True
                response.stream = _ObservedStream(response.stream, self)

    async def aclose(self) -> None:
        """Close the responses: LiteLLM leaves some open when it cannot read them or the caller leaves."""
        for stream in self._streams:
            await stream.aclose()

    def feed(self, data: bytes) -> None:
        """Search the next bytes of the response."""
        window = self._tail + data
        self.has_events = self.has_events or b"data:" in window
        self.is_known_format = self.is_known_format or _FORMAT.search(window) is not None
        if _OVERLOADED_ERROR.search(window):
            self.status = OVERLOADED
        for block_reason, name in _REASON.findall(window):
            self.finish_reason = FinishReason.REFUSED if block_reason else _REASONS.get(name, FinishReason.OTHER)
        self._tail = window[-_LONGEST_MATCH:]


class _ObservedStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, observer: ResponseObserver) -> None:
        self._stream = stream
        self._observer = observer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._stream:
            self._observer.feed(data)
            yield data

    async def aclose(self) -> None:
        await self._stream.aclose()


_observer: ContextVar[ResponseObserver | None] = ContextVar("response_observer", default=None)


def observe_responses(observer: ResponseObserver) -> None:
    """Make `observer` read the responses to the requests that the current task sends from now on."""
    _observer.set(observer)


def install_observer(aiohttp_transport: Any) -> None:
    """Let LiteLLM's HTTP clients use a transport that reads the responses.

    `aiohttp_transport`: its module of that name, from which each new client takes the class.
    """

    class ObservedTransport(aiohttp_transport.LiteLLMAiohttpTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            timeout = request.extensions.get("timeout", {})
            connect = min(timeout.get("connect") or MAX_CONNECT_SECONDS, MAX_CONNECT_SECONDS)
            request.extensions["timeout"] = {**timeout, "connect": connect}
            observer = _observer.get()
            if observer is None:
                return await super().handle_async_request(request)  # type: ignore[no-any-return]
            request.headers["accept-encoding"] = "identity"
            response: httpx.Response = await super().handle_async_request(request)
            observer.observe(response)
            return response

    if not getattr(aiohttp_transport.LiteLLMAiohttpTransport, "is_observed", False):
        ObservedTransport.is_observed = True
        aiohttp_transport.LiteLLMAiohttpTransport = ObservedTransport
