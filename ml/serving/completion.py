"""What is asked of a model, and what it answers: whole, or as a stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from ml.platform.errors import DeadlineExceeded, UnusableTip
from ml.serving.prompts import Message, Parameters

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What is asked of a model: the messages, how to sample, and whom it is for (see `PromptContext`)."""

    messages: Sequence[Message]
    parameters: Parameters
    locale: str | None = None
    crisis: bool = False


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens read and written; sums when a tip took more than one try."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered. `model`: the id of the one that really did; `fallback`: it was not the first."""

    text: str
    model: str
    fallback: bool
    usage: TokenUsage
    finish_reason: str


@dataclass
class CompletionStream:
    """An answer that is being written: iterate it once, close it always; `completion` is what has come so far."""

    model: str
    fallback: bool
    chunks: AsyncGenerator[Any, None]
    deadline: float
    _pieces: list[str] = field(default_factory=list)
    _usage: TokenUsage = TokenUsage()
    _finish_reason: str = "stop"

    async def start(self) -> Self:
        """Wait for the first words. Raises UnusableTip when there are none."""
        async for chunk in self.chunks:
            if self._take(chunk):
                return self
        raise UnusableTip("The model answered nothing.")

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the text piece by piece. Raises DeadlineExceeded, or an upstream's error if it breaks off."""
        yield self._pieces[0]
        while (chunk := await with_deadline(self.deadline, anext(self.chunks, None))) is not None:
            if text := self._take(chunk):
                yield text

    async def aclose(self) -> None:
        """Stop the model, if it is still writing."""
        await self.chunks.aclose()

    @property
    def completion(self) -> Completion:
        return Completion("".join(self._pieces), self.model, self.fallback, self._usage, self._finish_reason)

    def _take(self, chunk: Any) -> str:
        self._usage += token_usage(chunk)
        choice = next(iter(chunk.choices or ()), None)
        if choice is None:
            return ""
        self._finish_reason = choice.finish_reason or self._finish_reason
        text: str = choice.delta.content or ""
        if text:
            self._pieces.append(text)
        return text


def token_usage(answer: Any) -> TokenUsage:
    """Return the tokens that an answer of LiteLLM, or a chunk of one, tells of; none if it tells of none."""
    usage = getattr(answer, "usage", None)
    return TokenUsage(usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else TokenUsage()


async def with_deadline(deadline: float, awaitable: Awaitable[T]) -> T:
    """Await something until `deadline` (the event loop's time). Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout_at(deadline):
            return await awaitable
    except TimeoutError:
        raise DeadlineExceeded("The model did not answer in time.") from None
