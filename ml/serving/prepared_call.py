"""A call of a model that is prepared once: LiteLLM's own request, complete but for the messages.

Building a request and reading its answer takes LiteLLM most of the CPU of a tip. So it builds one request for each kind
of call, with placeholders for the messages, and reads only the answers that are not just text
(`ml.serving.answer_formats`).
"""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import httpx

from ml.serving.answer_formats import AnswerFormat, AnswerPart, answer_format
from ml.serving.completion import Chunk, TokenUsage

_OWN_HEADERS = frozenset({"content-length", "traceparent"})
"""The headers of each request itself."""

_NOTHING = AnswerPart()

_END = b"[DONE]"
"""The data of the last event of OpenAI's streams."""


class _UnreadBody(httpx.AsyncByteStream):
    """The body of a response: `begun`, which has been received, and what `rest` yields."""

    def __init__(self, begun: bytes, rest: AsyncIterator[bytes]) -> None:
        self._begun = begun
        self._rest = rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._begun
        async for data in self._rest:
            yield data


class UnreadAnswer(Exception):
    """A response that LiteLLM must read, of which `yielded` characters of text have already been yielded."""

    def __init__(self, response: httpx.Response, begun: bytes, rest: AsyncIterator[bytes], yielded: int = 0) -> None:
        super().__init__()
        body = _UnreadBody(begun, rest)
        self.response = httpx.Response(response.status_code, headers=response.headers, stream=body)
        self.yielded = yielded


@dataclass(frozen=True, slots=True, repr=False)  # it has a key
class PreparedCall:
    """The request of a call: its body is `pieces`, with the text of message `order[n]` after piece n."""

    url: httpx.URL
    headers: Sequence[tuple[bytes, bytes]]
    extensions: Mapping[str, Any]
    pieces: Sequence[bytes]
    order: Sequence[int]
    answers: AnswerFormat

    @classmethod
    def of(cls, request: httpx.Request, placeholders: Sequence[str]) -> Self | None:
        """Return the call that LiteLLM made with `placeholders` as the texts of the messages.

        None if a placeholder is not one whole text of the body, or if the format of the answers is not known.
        """
        answers = answer_format(request.url.path)
        literals = [json.dumps(placeholder).encode() for placeholder in placeholders]
        pieces = re.split(b"(" + b"|".join(map(re.escape, literals)) + b")", request.content)
        if answers is None or sorted(pieces[1::2]) != sorted(literals):
            return None
        headers = [(name, value) for name, value in request.headers.raw if name.decode().lower() not in _OWN_HEADERS]
        order = [literals.index(literal) for literal in pieces[1::2]]
        return cls(request.url, headers, request.extensions, pieces[::2], order, answers)

    def request(self, texts: Sequence[str], headers: Mapping[str, str]) -> httpx.Request:
        """Return the request with these texts of the messages."""
        first, *others = self.pieces
        body = [first]
        for index, piece in zip(self.order, others, strict=True):
            body += json.dumps(texts[index]).encode(), piece
        own_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        extensions = dict(self.extensions)
        return httpx.Request(
            "POST", self.url, headers=[*self.headers, *own_headers], content=b"".join(body), extensions=extensions
        )

    async def chunks(self, response: httpx.Response, *, stream: bool) -> AsyncGenerator[Chunk, None]:
        """Yield the answer in a response. Raises UnreadAnswer for one that LiteLLM must read."""
        data = aiter(response.stream)  # type: ignore[arg-type]  # it is asynchronous
        is_encoded = response.headers.get("content-encoding", "identity") != "identity"
        if response.status_code != HTTPStatus.OK or is_encoded:
            raise UnreadAnswer(response, b"", data)
        if stream:
            async with aclosing(self._stream_chunks(response, data)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        body = b"".join([piece async for piece in data])
        try:
            part = self.answers.read_answer(body)
        except ValueError:
            raise UnreadAnswer(response, body, data) from None
        yield Chunk(part.text, TokenUsage(part.input_tokens or 0, part.output_tokens or 0))

    async def _stream_chunks(self, response: httpx.Response, data: AsyncIterator[bytes]) -> AsyncGenerator[Chunk, None]:
        received, unread = bytearray(), b""
        yielded = 0
        input_tokens = output_tokens = None
        async for piece in data:
            received += piece
            *lines, unread = (unread + piece).split(b"\n")
            for line in lines:
                try:
                    part = self._read_line(line)
                except ValueError:
                    raise UnreadAnswer(response, bytes(received), data, yielded) from None
                input_tokens = input_tokens if part.input_tokens is None else part.input_tokens
                output_tokens = output_tokens if part.output_tokens is None else part.output_tokens
                if part.text:
                    yielded += len(part.text)
                    yield Chunk(part.text)
        if unread or input_tokens is None or output_tokens is None:  # LiteLLM estimates missing numbers
            raise UnreadAnswer(response, bytes(received), data, yielded)
        yield Chunk(usage=TokenUsage(input_tokens, output_tokens))

    def _read_line(self, line: bytes) -> AnswerPart:
        if not line.startswith(b"data:") or (event := line[5:].strip()) == _END:
            return _NOTHING
        return self.answers.read_event(event)
