"""From signals to a tip: context, prompt version, messages, model, check. Nothing is kept between requests."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager, ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from ml.features.context import assemble_context
from ml.platform.errors import UnusableTip
from ml.platform.telemetry import GenerationRecord, Telemetry
from ml.serving.completion import Completion, CompletionRequest, CompletionStream, TokenUsage
from ml.serving.gateway import Gateway
from ml.serving.prompts import resolve_prompt
from ml.serving.tip import validate_tip


@dataclass(frozen=True, slots=True)
class TipOrigin:
    """Where a tip comes from: the prompt version with its digest, and the model that really answered."""

    generation_id: str
    prompt_version: str
    prompt_digest: str
    model: str
    fallback: bool


@dataclass(frozen=True, slots=True)
class Tip:
    """A tip that has been checked, and where it comes from."""

    origin: TipOrigin
    text: str
    usage: TokenUsage
    finish_reason: str


@dataclass(frozen=True, slots=True)
class TipStream:
    """A tip that is being written: `pieces` yields its text and, last of all, the whole tip."""

    origin: TipOrigin
    pieces: AsyncGenerator[str | Tip, None]


@dataclass(frozen=True, slots=True)
class _Task:
    version: str
    digest: str
    request: CompletionRequest
    deadline: float

    def origin(self, answer: Completion | CompletionStream) -> TipOrigin:
        return TipOrigin(uuid.uuid4().hex, self.version, self.digest, answer.model, answer.fallback)

    def tip(self, origin: TipOrigin, completion: Completion, usage: TokenUsage) -> Tip:
        text = validate_tip(completion.text, locale=self.request.locale, finish_reason=completion.finish_reason)
        return Tip(origin, text, usage, completion.finish_reason)


class TipGenerator:
    """Writes tips with the models behind a gateway."""

    def __init__(self, gateway: Gateway, telemetry: Telemetry, *, default_version: str, timeout: float) -> None:
        """Take the prompt version for requests that name none, and the time for one tip, in seconds."""
        self._gateway = gateway
        self._telemetry = telemetry
        self._default_version = default_version
        self._timeout = timeout

    async def generate(
        self, signals: Mapping[str, Any], version: str | None = None, *, within: float | None = None
    ) -> Tip:
        """Write a tip, in less than `within` seconds; a model that writes something unusable gets one more try.

        Raises UnprocessableRequest for an unknown version, UnusableTip, and what the gateway raises.
        """
        task = self._task(signals, version, within)
        usage = TokenUsage()
        with self._telemetry.generation(task.version, task.digest) as generation:
            for last_try in (False, True):
                completion = await self._gateway.complete(task.request, task.deadline)
                usage += completion.usage
                _record(generation, completion, usage)
                try:
                    return task.tip(task.origin(completion), completion, usage)
                except UnusableTip:
                    if last_try:
                        raise
        raise AssertionError("the last try returns or raises")

    async def stream(
        self, signals: Mapping[str, Any], version: str | None = None, *, within: float | None = None
    ) -> TipStream:
        """Write a tip piece by piece; returns once its first words are there, and raises until then like `generate`.

        What has been shown cannot be taken back: a text that proves unusable raises from the stream.
        """
        task = self._task(signals, version, within)
        with ExitStack() as stack:
            generation = stack.enter_context(self._telemetry.generation(task.version, task.digest))
            try:
                begun = await self._gateway.stream(task.request, task.deadline)
            except UnusableTip:  # not a word: nothing has been shown yet
                begun = await self._gateway.stream(task.request, task.deadline)
            generation.model = begun.model
            origin = task.origin(begun)
            return TipStream(origin, _pieces(task, origin, begun, generation, stack.pop_all()))

    def _task(self, signals: Mapping[str, Any], version: str | None, within: float | None) -> _Task:
        deadline = asyncio.get_running_loop().time() + min(self._timeout, within or self._timeout)
        name, prompt = resolve_prompt(version, self._default_version)
        context = assemble_context(signals)
        request = CompletionRequest(prompt.render(context), prompt.parameters, context.locale, context.crisis)
        return _Task(name, prompt.digest, request, deadline)


async def _pieces(
    task: _Task, origin: TipOrigin, begun: CompletionStream, generation: GenerationRecord, ending: AbstractContextManager[Any]
) -> AsyncGenerator[str | Tip, None]:
    with ending:
        async with aclosing(begun):
            async for piece in begun:
                yield piece
        completion = begun.completion
        _record(generation, completion, completion.usage)
        yield task.tip(origin, completion, completion.usage)


def _record(generation: GenerationRecord, completion: Completion, usage: TokenUsage) -> None:
    generation.model = completion.model
    generation.input_tokens, generation.output_tokens = usage.input_tokens, usage.output_tokens
    generation.finish_reason = completion.finish_reason
