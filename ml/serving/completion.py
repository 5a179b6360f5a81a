"""A request to a language model and its answer, whole or as a stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

from ml.platform.errors import DeadlineExceeded, UnusableTip
from ml.serving.prompts import Message, Parameters

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """The messages, the sampling parameters, and the reader's locale and crisis flag (see `PromptContext`).

    `opening`: the first words of the answer, for the embedded model (see `RenderedPrompt`). `background`: the embedded
    model writes it only while no other request needs the model.
    """

    messages: Sequence[Message]
    parameters: Parameters
    locale: str | None = None
    crisis: bool = False
    opening: str = ""
    background: bool = False


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens read and written; additive over several calls for one tip."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer; `finish_reason` is set in the last one."""

    text: str = ""
    usage: TokenUsage = TokenUsage()
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The text of a model. `model`: the id of the model that wrote it; `fallback`: it was not the first model."""

    text: str
    model: str
    fallback: bool
    usage: TokenUsage
    finish_reason: str


@dataclass
class CompletionStream:
    """A completion that is still being written. Iterate it once and always close it.

    `completion` holds the text that has arrived. `deadline`: in the event loop's time.
    """

    model: str
    fallback: bool
    chunks: AsyncGenerator[Chunk, None]
    deadline: float
    _pieces: list[str] = field(default_factory=list)
    _usage: TokenUsage = TokenUsage()
    _finish_reason: str = "stop"

    async def start(self) -> Self:
        """Wait for the first text. Raises UnusableTip when there is none."""
        async for chunk in self.chunks:
            if self._add(chunk):
                return self
        raise UnusableTip("The model's answer is empty.")

    async def read(self) -> Completion:
        """Wait for the whole answer, which may be empty."""
        async for chunk in self.chunks:
            self._add(chunk)
        return self.completion

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the pieces of text. Raises DeadlineExceeded, or an upstream error if the stream breaks."""
        yield self._pieces[0]
        while (chunk := await with_deadline(self.deadline, anext(self.chunks, None))) is not None:
            if text := self._add(chunk):
                yield text

    async def aclose(self) -> None:
        """Stop the model if it is still writing."""
        await self.chunks.aclose()

    @property
    def completion(self) -> Completion:
        return Completion("".join(self._pieces), self.model, self.fallback, self._usage, self._finish_reason)

    def _add(self, chunk: Chunk) -> str:
        """Add a chunk and return its text."""
        self._usage += chunk.usage
        self._finish_reason = chunk.finish_reason or self._finish_reason
        if chunk.text:
            self._pieces.append(chunk.text)
        return chunk.text


async def with_deadline(deadline: float, awaitable: Awaitable[T]) -> T:
    """Await `awaitable` until `deadline` (in the event loop's time). Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout_at(deadline):
            return await awaitable
    except TimeoutError:
        raise DeadlineExceeded("The model did not answer in time.") from None
