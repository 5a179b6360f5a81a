"""The finish reason of a model's answer, read from the bytes of the provider's response.

LiteLLM reports `stop` also for an answer that was cut off by a lost connection and for reasons that it does not know.
The reason is therefore read as the bytes pass by, in the formats of all providers that send JSON.
"""

import re
from collections.abc import AsyncIterator
from enum import StrEnum

import httpx

from ml.serving.litellm_transport import Send

OVERLOADED = 529
"""The status of an overloaded provider (Anthropic and others), for which LiteLLM has no class."""


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
    """The state of the response to one call: an exchange of `ml.serving.litellm_transport`.

    `finish_reason`: the last one that has arrived. `is_known_format`: it is an answer in a format that ends with a
    reason. `has_events`: a server-sent event has arrived. `is_observed`: there was an HTTP response that can be read.
    `status`: its status, 0 before it has arrived; OVERLOADED also if a stream ends with that error. `unread`: the
    response to the next request, if it has already arrived.
    """

    def __init__(self) -> None:
        self.finish_reason: FinishReason | None = None
        self.is_known_format = False
        self.has_events = False
        self.is_observed = False
        self.status = 0
        self.unread: httpx.Response | None = None
        self._tail = b""
        self._streams: list[httpx.AsyncByteStream] = []

    async def handle(self, request: httpx.Request, send: Send) -> httpx.Response:
        """Send the request, and read the body of the response as it passes by."""
        if self.unread:
            response, self.unread = self.unread, None
            return response
        request.headers["accept-encoding"] = "identity"
        response = await send(request)
        self._observe(response)
        return response

    def _observe(self, response: httpx.Response) -> None:
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
