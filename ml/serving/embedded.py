"""The embedded model: llama.cpp in this process, as a LiteLLM provider.

Imported only once LiteLLM is wanted: both libraries take seconds to load.
"""

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anyio
import litellm
import xllamacpp
from litellm.types.utils import GenericStreamingChunk

from ml.platform.errors import NotReady

PROVIDER = "embedded"

# One or two sentences of 15 to 130 characters or little more. English is kept to plain ASCII, which the small model is
# best at. Any other language may use all letters, but no quotation marks and no markup.
_GRAMMAR = r"""root ::= sentence (" " sentence)?
sentence ::= %s (%s){13,128} %s
"""
ENGLISH_GRAMMAR = _GRAMMAR % ("[A-Z]", """[A-Za-z0-9 ,;'] | ":" [0-9] [0-9] | "-minute" | "-second" """, "[.!?]")
ANY_GRAMMAR = _GRAMMAR % (
    r"[^\x00-\x2F\x3A-\x40\x5B-\x60\x7B-\xBF\u2000-\u206F\u3000-\u3020.!?]",
    r"""[^\x00-\x1F"*#_`<>{}|\\\x5B\x5D.!?\x7F-\x9F«»“”„。！？।]""",
    "[.!?。！？।]",
)


# In a crisis a model this small is not left to find the words, in the languages for which there are some here.
_CRISIS = MappingProxyType(
    {
        "en": (
            ("You do not have to carry this alone.", "You matter, and there are people who want to help you."),
            (
                "Please call a crisis line or talk to someone you trust right now.",
                "Please call your local emergency number, or be with someone you trust, right now.",
            ),
        ),
        "de": (
            ("Du musst da nicht allein durch.", "Du bist wichtig, und es gibt Menschen, die dir helfen wollen."),
            (
                "Bitte ruf jetzt ein Krisentelefon an oder sprich mit jemandem, dem du vertraust.",
                "Bitte wähle jetzt den Notruf oder geh zu jemandem, dem du vertraust.",
            ),
        ),
        "es": (
            ("No tienes que pasar por esto en soledad.", "Importas, y hay personas que quieren ayudarte."),
            (
                "Por favor, llama ahora a una línea de crisis o habla con alguien de confianza.",
                "Por favor, llama ahora a emergencias o busca a alguien de confianza.",
            ),
        ),
        "fr": (
            ("Tu n'as pas à porter cela tout seul.", "Tu comptes, et des gens veulent t'aider."),
            (
                "Appelle maintenant une ligne d'écoute ou parle à quelqu'un de confiance.",
                "Appelle maintenant les urgences ou rejoins quelqu'un de confiance.",
            ),
        ),
    }
)


def grammar(locale: str | None, *, crisis: bool) -> str:
    """Return the GBNF grammar that a tip in `locale` (BCP 47; None: English) follows."""
    language = locale.lower().partition("-")[0] if locale else "en"
    if crisis and language in _CRISIS:
        choices = (" | ".join(f'"{sentence}"' for sentence in sentences) for sentences in _CRISIS[language])
        return 'root ::= ({}) " " ({})'.format(*choices)
    return ENGLISH_GRAMMAR if language == "en" else ANY_GRAMMAR


class EmbeddedModel:
    """One loaded model with one slot: requests queue, because four at once would all be as slow as the last."""

    def __init__(self, path: Path) -> None:
        """Load the weights at `path`, which takes seconds; raise NotReady if they are not a model."""
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {PROVIDER}
        # Never all cores: OpenMP spins, and a busy neighbour then makes a tip take a minute instead of seconds.
        threads = max(1, (os.cpu_count() or 1) - 1)
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.n_parallel = 1
        params.n_ctx = 2048
        params.cache_ram_mib = 128  # the default grows with every prompt; 0 forgets a version when versions alternate
        params.slot_prompt_similarity = 0  # versions begin alike: look for the best prefix in the cache all the same
        params.ui = False
        params.endpoint_slots = False
        params.api_keys = [secrets.token_hex(32)]  # the library always opens a loopback port; nobody else gets in
        params.verbosity = -1
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise NotReady("The weights of the embedded model are damaged, or are not a GGUF model.") from error
        self._slot = asyncio.Semaphore(1)

    async def chunks(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Answer an OpenAI chat-completion body with its chunks; closing the iterator stops the model."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        stop = threading.Event()

        def hand_over(chunk: dict[str, Any] | None) -> bool:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
                loop.call_soon_threadsafe(arrived.put_nowait, chunk)
            return stop.is_set()

        def run() -> None:
            try:
                self._server.handle_chat_completions({**body, "stream": True}, hand_over)
            except ValueError as error:
                hand_over({"error": {"code": 400, "type": "invalid_request_error", "message": str(error)}})
            finally:
                hand_over(None)

        async with self._slot:
            done = loop.run_in_executor(None, run)
            try:
                while (chunk := await arrived.get()) is not None:
                    yield chunk
            finally:
                stop.set()
                # Keep the slot until the model has really stopped: the next request would only wait inside it.
                with anyio.CancelScope(shield=True):
                    await done

    async def warm_up(self, prefixes: Sequence[Sequence[Mapping[str, str]]]) -> None:
        """Read each prefix once, so that the first tip that starts with it need not: 2 s instead of 10 s."""
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
        """Answer in one piece; made of chunks all the same, so that cancelling the call stops the model."""
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
        """Answer piece by piece. Raises litellm's own exceptions."""
        body = {
            "messages": _checked(messages, model),
            "stream_options": {"include_usage": True},
            **_sampling(options["optional_params"]),
        }
        reason = ""
        async with contextlib.aclosing(self._model.chunks(body)) as chunks:
            async for chunk in chunks:
                if "error" in chunk:
                    raise _failure(chunk["error"], model)
                choice = next(iter(chunk["choices"]), None)
                reason = (choice and choice["finish_reason"]) or reason
                text = (choice and choice["delta"].get("content")) or ""
                usage = chunk.get("usage")
                if text or usage:
                    yield GenericStreamingChunk(
                        text=text,
                        is_finished=usage is not None,
                        finish_reason=reason if usage else "",
                        usage=usage,
                        index=0,
                        tool_use=None,
                    )


def _sampling(optional: Mapping[str, Any]) -> dict[str, Any]:
    about = optional["extra_body"]
    named = {name: optional[name] for name in ("temperature", "top_p", "max_tokens") if name in optional}
    return {**named, "grammar": grammar(about["locale"], crisis=about["crisis"])}


def _checked(messages: list[Any], model: str) -> list[Any]:
    if not messages:  # the library would accept it and write about nothing
        raise litellm.BadRequestError("no messages", model=model, llm_provider=PROVIDER)
    return messages


def _failure(error: Mapping[str, Any], model: str) -> Exception:
    if error.get("type") == "exceed_context_size_error":
        return litellm.ContextWindowExceededError("prompt too long", model=model, llm_provider=PROVIDER)
    if error.get("code") == HTTPStatus.BAD_REQUEST:
        return litellm.BadRequestError("refused by the model", model=model, llm_provider=PROVIDER)
    return litellm.InternalServerError("the model failed", model=model, llm_provider=PROVIDER)
