"""Generation of one tip: context, prompt version, messages, model, check. No state is kept between requests."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager, ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from ml.features.context import assemble_context, own_words
from ml.platform.errors import UnsuitableTip, UnusableTip
from ml.platform.telemetry import GenerationRecord, Telemetry
from ml.serving.completion import Completion, CompletionRequest, CompletionStream, TokenUsage
from ml.serving.gateway import Gateway
from ml.serving.prompts import Prompt, resolve_prompt
from ml.serving.tip import validate_tip


@dataclass(frozen=True, slots=True)
class TipOrigin:
    """The prompt version and digest that wrote a tip, and the model that answered."""

    generation_id: str
    prompt_version: str
    prompt_digest: str
    model: str
    fallback: bool


@dataclass(frozen=True, slots=True)
class Tip:
    """A tip that has passed the checks, with its origin."""

    origin: TipOrigin
    text: str
    usage: TokenUsage
    finish_reason: str


@dataclass(frozen=True, slots=True)
class TipStream:
    """A tip that is being written: `pieces` yields its text and, at the end, the whole tip."""

    origin: TipOrigin
    pieces: AsyncGenerator[str | Tip, None]


@dataclass(frozen=True, slots=True)
class _Generation:
    """The generation of one tip: the signals, the resolved prompt version, the deadline, and its priority."""

    signals: Mapping[str, Any]
    prompt_version: str
    prompt: Prompt
    deadline: float
    background: bool

    def request(self, *, with_free_text: bool = True) -> CompletionRequest:
        context = assemble_context(self.signals, with_free_text=with_free_text)
        rendered = self.prompt.render(context)
        return CompletionRequest(
            rendered.messages,
            self.prompt.parameters,
            context.locale,
            context.crisis,
            rendered.opening,
            self.background,
        )

    def origin(self, answer: Completion | CompletionStream) -> TipOrigin:
        return TipOrigin(uuid.uuid4().hex, self.prompt_version, self.prompt.digest, answer.model, answer.fallback)

    def tip(self, origin: TipOrigin, completion: Completion, usage: TokenUsage) -> Tip:
        text = validate_tip(
            completion.text,
            locale=self.signals.get("locale"),
            finish_reason=completion.finish_reason,
            own_words=own_words(self.signals),
        )
        return Tip(origin, text, usage, completion.finish_reason)


class TipGenerator:
    """Writes tips with the models behind a gateway."""

    def __init__(self, gateway: Gateway, telemetry: Telemetry, *, default_prompt_version: str, timeout: float) -> None:
        """Take the prompt version for requests that name none, and the maximum time for one tip in seconds."""
        self._gateway = gateway
        self._telemetry = telemetry
        self._default_prompt_version = default_prompt_version
        self._timeout = timeout

    async def generate(
        self,
        signals: Mapping[str, Any],
        prompt_version: str | None = None,
        *,
        timeout: float | None = None,
        background: bool = False,
    ) -> Tip:
        """Write a tip within `timeout` seconds; after an unusable text the model gets a second attempt.

        After unsuitable content, the second attempt has no free text, which may have asked for that content.
        `background`: the embedded model writes it only while no other request needs the model. Raises
        UnprocessableRequest for an unknown prompt version, UnusableTip, and what the gateway raises.
        """
        generation = self._prepare(signals, prompt_version, timeout, background=background)
        request, usage = generation.request(), TokenUsage()
        with self._telemetry.generation(generation.prompt_version, generation.prompt.digest) as record:
            for is_last_attempt in (False, True):
                completion = await self._gateway.complete(request, generation.deadline)
                usage += completion.usage
                _fill_in(record, completion, usage)
                try:
                    return generation.tip(generation.origin(completion), completion, usage)
                except UnusableTip as error:
                    if is_last_attempt:
                        raise
                    if isinstance(error, UnsuitableTip):
                        request = generation.request(with_free_text=False)
        raise AssertionError("the last attempt returns or raises")

    async def stream(
        self,
        signals: Mapping[str, Any],
        prompt_version: str | None = None,
        *,
        timeout: float | None = None,
        background: bool = False,
    ) -> TipStream:
        """Write a tip as a stream. Returns when its first text has arrived; until then it raises like `generate`.

        Text that has been sent cannot be withdrawn, so the stream raises UnusableTip without a second attempt.
        """
        generation = self._prepare(signals, prompt_version, timeout, background=background)
        request = generation.request()
        with ExitStack() as stack:
            record = stack.enter_context(
                self._telemetry.generation(generation.prompt_version, generation.prompt.digest)
            )
            try:
                completion_stream = await self._gateway.stream(request, generation.deadline)
            except UnusableTip:  # an empty answer: nothing has been sent yet
                completion_stream = await self._gateway.stream(request, generation.deadline)
            record.model = completion_stream.model
            origin = generation.origin(completion_stream)
            return TipStream(origin, _pieces(generation, origin, completion_stream, record, stack.pop_all()))

    def _prepare(
        self, signals: Mapping[str, Any], prompt_version: str | None, timeout: float | None, *, background: bool
    ) -> _Generation:
        deadline = asyncio.get_running_loop().time() + min(self._timeout, timeout or self._timeout)
        return _Generation(signals, *resolve_prompt(prompt_version, self._default_prompt_version), deadline, background)


async def _pieces(
    generation: _Generation,
    origin: TipOrigin,
    completion_stream: CompletionStream,
    record: GenerationRecord,
    measurement: AbstractContextManager[Any],
) -> AsyncGenerator[str | Tip, None]:
    with measurement:
        async with aclosing(completion_stream):
            async for piece in completion_stream:
                yield piece
        completion = completion_stream.completion
        _fill_in(record, completion, completion.usage)
        yield generation.tip(origin, completion, completion.usage)


def _fill_in(record: GenerationRecord, completion: Completion, usage: TokenUsage) -> None:
    record.model = completion.model
    record.input_tokens, record.output_tokens = usage.input_tokens, usage.output_tokens
    record.finish_reason = completion.finish_reason
