"""The answers of three wire formats, as far as they are text with a number of tokens, as LiteLLM reads them.

An answer with anything else that changes its meaning (an error, a blocked prompt, reasoning within the text) is refused
with ValueError, so that LiteLLM reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal, Protocol

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, NonNegativeInt


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """The text of a whole answer or of one event of a stream, and the tokens of the answer if it has their number."""

    text: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Object(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Answer(_Object):
    """A whole answer, or an event of a stream."""

    error: None = None


class _OpenAIMessage(_Object):
    role: str
    content: str


class _OpenAIChoice(_Object):
    message: _OpenAIMessage


class _OpenAIDelta(_Object):
    content: str | None = None


class _OpenAIDeltaChoice(_Object):
    delta: _OpenAIDelta


class _OpenAIUsage(_Object):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


class _OpenAIAnswer(_Answer):
    choices: Annotated[tuple[_OpenAIChoice, ...], Len(1, 1)]
    usage: _OpenAIUsage | None = None

    def part(self) -> AnswerPart:
        text = self.choices[0].message.content
        if text.startswith("<"):
            raise ValueError("the text may begin with reasoning, such as <think>")
        return _openai_part(text, self.usage)


class _OpenAIEvent(_Answer):
    choices: Annotated[tuple[_OpenAIDeltaChoice, ...], Len(0, 1)] = ()
    usage: _OpenAIUsage | None = None

    def part(self) -> AnswerPart:
        return _openai_part("".join(choice.delta.content or "" for choice in self.choices), self.usage)


def _openai_part(text: str, usage: _OpenAIUsage | None) -> AnswerPart:
    return AnswerPart(text, usage.prompt_tokens, usage.completion_tokens) if usage else AnswerPart(text)


class _AnthropicUsage(_Object):
    input_tokens: NonNegativeInt | None = None
    cache_creation_input_tokens: NonNegativeInt | None = None
    cache_read_input_tokens: NonNegativeInt | None = None
    output_tokens: NonNegativeInt | None = None
    iterations: None = None

    @property
    def total_input_tokens(self) -> int | None:
        if self.input_tokens is None:
            return None
        return self.input_tokens + (self.cache_creation_input_tokens or 0) + (self.cache_read_input_tokens or 0)


class _AnthropicBlock(_Object):
    type: Literal["text", "thinking", "redacted_thinking"]
    text: str = ""


class _AnthropicAnswer(_Answer):
    content: tuple[_AnthropicBlock, ...]
    usage: _AnthropicUsage

    def part(self) -> AnswerPart:
        text = "".join(block.text for block in self.content)
        return AnswerPart(text, self.usage.total_input_tokens, self.usage.output_tokens)


class _AnthropicMessage(_Object):
    usage: _AnthropicUsage


class _AnthropicDelta(_Object):
    text: str = ""


_NO_USAGE = _AnthropicUsage()


class _AnthropicEvent(_Answer):
    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
    ]
    message: _AnthropicMessage | None = None
    content_block: _AnthropicDelta | None = None
    delta: _AnthropicDelta | None = None
    usage: _AnthropicUsage | None = None

    def part(self) -> AnswerPart:
        usage = self.usage or (self.message.usage if self.message else _NO_USAGE)
        text = "".join(piece.text for piece in (self.content_block, self.delta) if piece)
        return AnswerPart(text, usage.total_input_tokens, usage.output_tokens)


class _GeminiPart(_Object):
    text: str
    thought: bool = False


class _GeminiContent(_Object):
    parts: tuple[_GeminiPart, ...] = ()


class _GeminiCandidate(_Object):
    content: _GeminiContent = _GeminiContent()


class _GeminiUsage(_Object):
    promptTokenCount: NonNegativeInt = 0  # noqa: N815 - the provider's name, as all of these
    candidatesTokenCount: NonNegativeInt = 0  # noqa: N815
    thoughtsTokenCount: NonNegativeInt = 0  # noqa: N815
    totalTokenCount: NonNegativeInt = 0  # noqa: N815
    toolUsePromptTokenCount: None = None  # noqa: N815

    @property
    def output_tokens(self) -> int:
        """The tokens of the answer, whether its number includes the tokens of thoughts or not."""
        includes_thoughts = self.promptTokenCount + self.candidatesTokenCount == self.totalTokenCount
        return self.candidatesTokenCount + (0 if includes_thoughts else self.thoughtsTokenCount)


class _GeminiAnswer(_Answer):
    candidates: Annotated[tuple[_GeminiCandidate, ...], Len(1, 1)]
    usageMetadata: _GeminiUsage | None = None  # noqa: N815
    promptFeedback: None = None  # noqa: N815

    def part(self) -> AnswerPart:
        text = "".join(part.text for part in self.candidates[0].content.parts if not part.thought)
        usage = self.usageMetadata
        return AnswerPart(text, usage.promptTokenCount, usage.output_tokens) if usage else AnswerPart(text)


class _Readable(Protocol):
    @classmethod
    def model_validate_json(cls, json_data: bytes) -> "_Readable": ...
    def part(self) -> AnswerPart: ...


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """The models of a provider's whole answer, and of an event of its stream."""

    answer: type[_Readable]
    event: type[_Readable]

    def read_answer(self, body: bytes) -> AnswerPart:
        """Return the content of a whole answer. Raises ValueError for what LiteLLM must read."""
        part = self.answer.model_validate_json(body).part()
        if not part.text:
            raise ValueError("there is no text")
        return part

    def read_event(self, data: bytes) -> AnswerPart:
        """Return the content of the data of one event. Raises ValueError for what LiteLLM must read."""
        return self.event.model_validate_json(data).part()


_GEMINI = AnswerFormat(_GeminiAnswer, _GeminiAnswer)

_FORMATS: Mapping[str, AnswerFormat] = MappingProxyType(
    {
        "/chat/completions": AnswerFormat(_OpenAIAnswer, _OpenAIEvent),
        "/v1/messages": AnswerFormat(_AnthropicAnswer, _AnthropicEvent),
        ":generateContent": _GEMINI,
        ":streamGenerateContent": _GEMINI,
    }
)
"""By the end of the path of a request."""


def answer_format(path: str) -> AnswerFormat | None:
    """Return the format of the answers to requests to this path of a provider; None if it is another one."""
    return next((answers for ending, answers in _FORMATS.items() if path.endswith(ending)), None)
