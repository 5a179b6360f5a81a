"""The embedded model: llama.cpp in this process, as a LiteLLM provider.

Only the gateway imports this module, in the background: both libraries take seconds to import.
"""

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import anyio
import litellm
import xllamacpp
from litellm.types.utils import GenericStreamingChunk

from ml.platform.errors import NotReady
from ml.serving.grammar import AVOIDED_WORDS, AVOIDED_WORDS_BIAS, grammar, is_english

PROVIDER = "embedded"

IN_USE: Mapping[str, Any] = MappingProxyType({"error": MappingProxyType({"code": 503, "type": "model_in_use"})})
"""The chunk that ends an answer in the background when another request needs the model."""

STEP_CHARACTERS = 200
"""The length of text that the model reads in one step in the background: on one slow core less than a second.

A step costs what its last tokens take to read again: with 120, a prompt with an example took 1.5 times the CPU.
"""


class ModelInUseError(litellm.ServiceUnavailableError):
    """Another request needs the model, before which background work gives way."""


class EmbeddedModel:
    """A loaded model that answers one request at a time.

    Requests queue for its only slot: computed concurrently, they would all end as late as the last one in a queue.
    """

    def __init__(self, server: xllamacpp.Server) -> None:
        self._server = server
        self._slot = asyncio.Semaphore(1)
        self._stop_background = threading.Event()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load the weights at `path`, which takes seconds. Raises NotReady if they are not a model."""
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {PROVIDER}
        # One core is left free: OpenMP threads spin, so on busy cores a tip takes a minute instead of seconds.
        threads = max(1, (os.cpu_count() or 1) - 1)
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.n_parallel = 1
        params.n_ctx = 2048
        # The default grows with every prompt; with 0, alternating prompt versions would be read again each time.
        params.cache_ram_mib = 128
        # Prompt versions begin with the same text; with 0, the cache is still searched for the longest equal prefix.
        params.slot_prompt_similarity = 0
        params.ui = False
        params.endpoint_slots = False
        # The library always opens a loopback port: no caller has this key.
        params.api_keys = [secrets.token_hex(32)]
        params.verbosity = -1
        try:
            return cls(xllamacpp.Server(params))
        except RuntimeError as error:
            raise NotReady("The weights of the embedded model are damaged, or are not a GGUF model.") from error

    async def chunks(
        self, body: Mapping[str, Any], *, background: bool = False
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """Yield the chunks of the answer to an OpenAI chat-completion body; closing the iterator stops the model.

        In the `background`, the last chunk is `IN_USE` unless the model is idle and no other request arrives meanwhile.
        """
        is_needed = threading.Event()
        bodies = [body]
        if not background:
            self._stop_background.set()
        elif self._slot.locked():
            yield IN_USE
            return
        else:
            self._stop_background = is_needed
            bodies = [*_read_in_steps(body["messages"]), body]
        async with self._slot:
            for step in bodies:
                async with contextlib.aclosing(self._answer(step, is_needed)) as answer:
                    async for chunk in answer:
                        if step is body:
                            yield chunk
                if is_needed.is_set():
                    yield IN_USE
                    return

    async def _answer(self, body: Mapping[str, Any], stop: threading.Event) -> AsyncGenerator[Mapping[str, Any], None]:
        """Yield the chunks of an answer until `stop` is set, or the iterator is closed; then the model has stopped."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
        is_closed = threading.Event()

        def put(chunk: Mapping[str, Any] | None) -> bool:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no task reads the queue
                loop.call_soon_threadsafe(queue.put_nowait, chunk)
            return is_closed.is_set() or stop.is_set()

        def run() -> None:
            try:
                self._server.handle_chat_completions({**body, "stream": True}, put)
            except ValueError as error:
                put({"error": {"code": 400, "type": "invalid_request_error", "message": str(error)}})
            finally:
                put(None)

        generation = loop.run_in_executor(None, run)
        try:
            while (chunk := await queue.get()) is not None:
                yield chunk
        finally:
            is_closed.set()
            # Keep the slot until the model has stopped: the next request would only wait inside the library.
            with anyio.CancelScope(shield=True):
                await generation

    async def warm_up(self, prefixes: Sequence[Sequence[Mapping[str, str]]]) -> None:
        """Read each prefix once: the first tip of its prompt version then takes 2 s instead of 10 s."""
        for prefix in prefixes:
            messages = [*prefix, {"role": "user", "content": "Write one tip."}]
            async for _ in self.chunks({"messages": messages, "max_tokens": 1}):
                pass


class EmbeddedProvider(litellm.CustomLLM):
    """The model behind `litellm.acompletion(model="embedded/…")`."""

    def __init__(self, model: EmbeddedModel) -> None:
        super().__init__()
        self._model = model

    async def acompletion(self, model: str, messages: list[Any], *_: Any, **options: Any) -> litellm.ModelResponse:
        """Answer as a whole. It is collected from chunks, so that cancelling the call stops the model."""
        text, usage, reason = "", None, "stop"
        async for chunk in self.astreaming(model, messages, **options):
            text += chunk["text"]
            usage, reason = chunk["usage"] or usage, chunk["finish_reason"] or reason
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return litellm.ModelResponse(model=model, choices=[choice], usage=usage)

    async def astreaming(
        self, model: str, messages: list[Any], *_: Any, **options: Any
    ) -> AsyncIterator[GenericStreamingChunk]:
        """Answer as a stream. Raises LiteLLM's own exceptions."""
        optional = options["optional_params"]
        opening, background = optional["extra_body"]["opening"], optional["extra_body"]["background"]
        body = {
            "messages": _require_messages(messages, model) + _answer_so_far(opening),
            "stream_options": {"include_usage": True},
            **_sampling(optional),
        }
        reason, before = "", opening
        async with contextlib.aclosing(self._model.chunks(body, background=background)) as chunks:
            async for chunk in chunks:
                if "error" in chunk:
                    raise _litellm_error(chunk["error"], model)
                choice = next(iter(chunk["choices"]), None)
                reason = (choice and choice["finish_reason"]) or reason
                text = (choice and choice["delta"].get("content")) or ""
                usage = chunk.get("usage")
                if text or usage:
                    text, before = before + text, ""
                    yield GenericStreamingChunk(
                        text=text,
                        is_finished=usage is not None,
                        finish_reason=reason if usage else "",
                        usage=usage,
                        index=0,
                        tool_use=None,
                    )


def _answer_so_far(opening: str) -> list[Any]:
    """Return the turn that the model completes; reading an opening takes less time than writing it."""
    return [{"role": "assistant", "content": opening}] if opening else []


def _sampling(optional: Mapping[str, Any]) -> dict[str, Any]:
    reader = optional["extra_body"]
    locale, crisis = reader["locale"], reader["crisis"]
    sampling = {name: optional[name] for name in ("temperature", "top_p", "max_tokens") if name in optional}
    sampling["grammar"] = grammar(locale, crisis=crisis, opened=bool(reader["opening"]))
    if is_english(locale) and not crisis:
        sampling["logit_bias"] = [[f" {word}", AVOIDED_WORDS_BIAS] for word in AVOIDED_WORDS]
    return sampling


def _require_messages(messages: list[Any], model: str) -> list[Any]:
    if not messages:  # the library would accept an empty list and answer without a question
        raise litellm.BadRequestError("no messages", model=model, llm_provider=PROVIDER)
    return messages


def _read_in_steps(messages: Sequence[Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield requests that read the messages but write nothing, each `STEP_CHARACTERS` further than the one before.

    The model cannot be stopped while it reads, and keeps what it has read. The first message, which has been read
    since the start, is in the first step.
    """
    unread = 0
    for index, message in enumerate(messages[1:], start=1):
        text = message["content"]
        for end in range(STEP_CHARACTERS - unread, len(text), STEP_CHARACTERS):
            yield {"messages": [*messages[:index], {**message, "content": text[:end]}], "max_tokens": 1}
        unread = (unread + len(text)) % STEP_CHARACTERS


def _litellm_error(error: Mapping[str, Any], model: str) -> Exception:
    if error is IN_USE["error"]:
        return ModelInUseError("in use", model=model, llm_provider=PROVIDER)
    if error.get("type") == "exceed_context_size_error":
        return litellm.ContextWindowExceededError("prompt too long", model=model, llm_provider=PROVIDER)
    if error.get("code") == HTTPStatus.BAD_REQUEST:
        return litellm.BadRequestError("refused by the model", model=model, llm_provider=PROVIDER)
    return litellm.InternalServerError("the model failed", model=model, llm_provider=PROVIDER)
