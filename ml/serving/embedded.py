"""The embedded model: llama.cpp in this process, as a LiteLLM provider.

Only the gateway imports this module, in the background: both libraries take seconds to import.
"""

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import anyio
import litellm
import xllamacpp
from litellm.types.utils import GenericStreamingChunk

from ml.platform.errors import NotReady
from ml.serving.grammar import AVOIDED_WORDS, AVOIDED_WORDS_BIAS, grammar, is_english

PROVIDER = "embedded"


class EmbeddedModel:
    """A loaded model that answers one request at a time.

    Requests queue for its only slot: computed concurrently, they would all end as late as the last one in a queue.
    """

    def __init__(self, server: xllamacpp.Server) -> None:
        self._server = server
        self._slot = asyncio.Semaphore(1)

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

    async def chunks(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the chunks of the answer to an OpenAI chat-completion body; closing the iterator stops the model."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        stop = threading.Event()

        def put(chunk: dict[str, Any] | None) -> bool:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no task reads the queue
                loop.call_soon_threadsafe(queue.put_nowait, chunk)
            return stop.is_set()

        def run() -> None:
            try:
                self._server.handle_chat_completions({**body, "stream": True}, put)
            except ValueError as error:
                put({"error": {"code": 400, "type": "invalid_request_error", "message": str(error)}})
            finally:
                put(None)

        async with self._slot:
            generation = loop.run_in_executor(None, run)
            try:
                while (chunk := await queue.get()) is not None:
                    yield chunk
            finally:
                stop.set()
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
        opening = optional["extra_body"]["opening"]
        body = {
            "messages": _require_messages(messages, model) + _answer_so_far(opening),
            "stream_options": {"include_usage": True},
            **_sampling(optional),
        }
        reason, before = "", opening
        async with contextlib.aclosing(self._model.chunks(body)) as chunks:
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


def _litellm_error(error: Mapping[str, Any], model: str) -> Exception:
    if error.get("type") == "exceed_context_size_error":
        return litellm.ContextWindowExceededError("prompt too long", model=model, llm_provider=PROVIDER)
    if error.get("code") == HTTPStatus.BAD_REQUEST:
        return litellm.BadRequestError("refused by the model", model=model, llm_provider=PROVIDER)
    return litellm.InternalServerError("the model failed", model=model, llm_provider=PROVIDER)
