"""The one way to a language model, whoever hosts it: fallbacks, retries, one deadline, and our errors for theirs.

Nothing else imports LiteLLM, but for the embedded model, which is one of its providers. LiteLLM takes seconds to
import, so that is done in a thread while the service already answers.
"""

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import stamina
import structlog

from ml.errors import (
    ContentRefused,
    DeadlineExceeded,
    NotReady,
    TipsError,
    UnusableTip,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamUnreachable,
)
from ml.serving.prompts import Message, Parameters
from ml.serving.upstream_errors import translated, vendor_exceptions
from ml.settings import EMBEDDED_MODEL, NO_EMBEDDED_MODEL

T = TypeVar("T")

log = structlog.get_logger()

ATTEMPTS = 2
"""How often one model is asked, where asking again can help, before the next one is."""

STILL_LOADING = "The model is still loading."

_TRANSIENT = (UpstreamFailed, UpstreamOverloaded, UpstreamUnreachable)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a model: the messages, how to sample, and the language of the answer (BCP 47)."""

    messages: Sequence[Message]
    parameters: Parameters
    locale: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
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
    usage: Usage
    finish_reason: str


@dataclass
class Stream:
    """An answer that is being written: iterate it once, close it always; `completion` is what has come so far."""

    model: str
    fallback: bool
    chunks: AsyncGenerator[Any, None]
    deadline: float
    _pieces: list[str] = field(default_factory=list)
    _usage: Usage = Usage()
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
        while (chunk := await _before(self.deadline, anext(self.chunks, None))) is not None:
            if text := self._take(chunk):
                yield text

    async def aclose(self) -> None:
        """Stop the model, if it is still writing."""
        await self.chunks.aclose()

    @property
    def completion(self) -> Completion:
        return Completion("".join(self._pieces), self.model, self.fallback, self._usage, self._finish_reason)

    def _take(self, chunk: Any) -> str:
        self._usage = _usage(chunk) or self._usage
        choice = next(iter(chunk.choices or ()), None)
        if choice is None:
            return ""
        self._finish_reason = choice.finish_reason or self._finish_reason
        text: str = choice.delta.content or ""
        if text:
            self._pieces.append(text)
        return text


class Gateway:
    """Models in the order in which they are tried."""

    def __init__(
        self, models: Sequence[str], *, api_base: str | None = None, embedded_path: Path | None = None
    ) -> None:
        """Take LiteLLM model ids, best first; `api_base` is where the first one's provider is reached."""
        self._models = {model: _route(model, models[0], api_base) for model in models}
        self._embedded_path = embedded_path
        self._embedded: Any = None
        self._litellm: Any = None
        self._unlogged: Any = None
        self._vendor_exceptions: tuple[type[Exception], ...] = ()
        self._loaded = asyncio.Event()
        self._failure: str | None = STILL_LOADING
        self.loading: dict[str, str] = {}
        """What is not ready, and in which state it is; empty when everything is."""

    async def load(self, prefixes: Sequence[Sequence[Message]] = ()) -> None:
        """Import LiteLLM and load the embedded model if it is one of ours, then let it read `prefixes`.

        Meant to run beside the service: whoever wants an answer meanwhile waits for it, or is told why not.
        """
        embedded = EMBEDDED_MODEL in self._models
        self.loading = {"litellm": "importing"} | ({"embedded model": "loading"} if embedded else {})
        try:
            self._litellm = await _in_daemon_thread(_import_litellm)
            self._vendor_exceptions = (*vendor_exceptions(self._litellm), httpx.HTTPError)
            self._unlogged = _unlogged(self._litellm)
            del self.loading["litellm"]
            if embedded:
                self._embedded = await self._load_embedded()
                del self.loading["embedded model"]
            self._failure = None
        except NotReady as error:
            self._failure = error.detail
            self.loading["embedded model"] = error.detail
            log.error("model_not_ready", reason=error.detail)
            return
        finally:
            self._loaded.set()
        log.info("model_ready", models=list(self._models))
        if self._embedded:
            await self._embedded.warm(prefixes)
            log.info("model_warm")

    async def close(self) -> None:
        """Close the connections to the models."""
        if self._litellm:
            await self._litellm.close_litellm_async_clients()
            self._litellm.in_memory_llm_clients_cache.flush_cache()

    async def complete(self, request: Request, deadline: float) -> Completion:
        """Return one whole answer before `deadline` (the event loop's time)."""

        async def ask(model: str, fallback: bool) -> Completion:
            with self._mapped():
                answer = await self._ask(model, request, stream=False)
            choice = next(iter(answer.choices or ()), None)
            if choice is None:
                raise UpstreamFailed("The model's answer has no choices.")
            text, reason = choice.message.content or "", choice.finish_reason or "stop"
            return Completion(text, model, fallback, _usage(answer) or Usage(), reason)

        return await self._first_to_answer(ask, deadline)

    async def stream(self, request: Request, deadline: float) -> Stream:
        """Return an answer once its first words are there; all of it comes before `deadline`."""

        async def ask(model: str, fallback: bool) -> Stream:
            chunks = self._chunks(model, request)
            try:
                return await Stream(model, fallback, chunks, deadline).start()
            except BaseException:
                await chunks.aclose()
                raise

        return await self._first_to_answer(ask, deadline)

    async def _first_to_answer(self, ask: Callable[[str, bool], Awaitable[T]], deadline: float) -> T:
        await self._ready(deadline)
        for rank, model in enumerate(self._models):
            left = len(self._models) - rank
            try:
                # A model that hangs leaves those after it their share of the time.
                now = asyncio.get_running_loop().time()
                return await _before(now + (deadline - now) / left, _persistent(ask, model, rank > 0))
            except ContentRefused:
                raise
            except TipsError as error:
                log.warning("model_failed", model=model, error=error.slug)
                if left == 1:
                    raise
        raise AssertionError("there is always a last model")

    async def _chunks(self, model: str, request: Request) -> AsyncGenerator[Any, None]:
        with self._mapped():
            answer = await self._ask(model, request, stream=True)
            async with aclosing(answer):
                async for chunk in answer:
                    yield chunk

    async def _ask(self, model: str, request: Request, *, stream: bool) -> Any:
        options: dict[str, Any] = dict(self._models[model])
        if model == EMBEDDED_MODEL:
            options["extra_body"] = {"grammar": self._embedded.grammar(request.locale)}
        if stream:
            options |= {"stream": True, "stream_options": {"include_usage": True}}
        elif model != EMBEDDED_MODEL:
            options["litellm_logging_obj"] = self._unlogged(options["model"], request.messages)
        return await self._litellm.acompletion(
            messages=request.messages,
            temperature=request.parameters.temperature,
            top_p=request.parameters.top_p,
            max_tokens=request.parameters.max_tokens,
            drop_params=True,
            **options,
        )

    async def _ready(self, deadline: float) -> None:
        try:
            await _before(deadline, self._loaded.wait())
        except DeadlineExceeded:
            raise NotReady(STILL_LOADING, retry_after=5) from None
        if self._failure:
            raise NotReady(self._failure)

    async def _load_embedded(self) -> Any:
        try:
            # Heavy, and in an extra: imported only when this is the model to use.
            from ml.serving import embedded, weights
        except ModuleNotFoundError as error:
            raise NotReady(NO_EMBEDDED_MODEL) from error
        path = await _in_daemon_thread(lambda: weights.find(self._embedded_path))
        model = await _in_daemon_thread(lambda: embedded.EmbeddedModel(path))
        self._litellm.custom_provider_map = [
            {"provider": embedded.PROVIDER, "custom_handler": embedded.EmbeddedProvider(model)}
        ]
        return model

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except self._vendor_exceptions as error:
            raise translated(error) from None


def _route(model: str, first: str, api_base: str | None) -> dict[str, str]:
    """Return the arguments by which LiteLLM reaches `model`.

    An OpenAI-compatible server is reached by LiteLLM's own HTTP client (its `hosted_vllm` provider) and not through
    the OpenAI SDK: the same request for a quarter less CPU.
    """
    provider, _, name = model.partition("/")
    if api_base is None or provider != first.partition("/")[0]:
        return {"model": model}
    if provider != "openai":
        return {"model": model, "api_base": api_base}
    return {"model": f"hosted_vllm/{name}", "api_base": api_base, "api_key": os.environ.get("OPENAI_API_KEY") or "none"}


def _unlogged(litellm: Any) -> Callable[..., Any]:
    """Return what makes the log of a plain call for LiteLLM, one in which nothing is written.

    LiteLLM works out the price of each call twice and prepares a record of it for callbacks, of which we have none:
    without that, a call takes two thirds of the CPU.
    """

    class Unlogged(litellm.Logging):  # type: ignore[misc]
        def response_cost_calculator(self, *_: Any, **__: Any) -> None: ...
        def failure_handler(self, *_: Any, **__: Any) -> None: ...
        async def async_success_handler(self, *_: Any, **__: Any) -> None: ...
        async def async_failure_handler(self, *_: Any, **__: Any) -> None: ...

    def make(model: str, messages: Sequence[Message]) -> Any:
        return Unlogged(
            model=model,
            messages=messages,
            stream=False,
            call_type="acompletion",
            start_time=datetime.now(),  # noqa: DTZ005 - LiteLLM subtracts naive times from it
            litellm_call_id=uuid.uuid4().hex,
            function_id="",
        )

    return make


def _usage(answer: Any) -> Usage | None:
    usage = getattr(answer, "usage", None)
    return Usage(usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else None


async def _persistent(ask: Callable[[str, bool], Awaitable[T]], model: str, fallback: bool) -> T:
    """Ask once more where that can help."""
    async for attempt in stamina.retry_context(
        on=_TRANSIENT, attempts=ATTEMPTS, timeout=None, wait_initial=0.1, wait_max=1, wait_jitter=0.1
    ):
        with attempt:
            return await ask(model, fallback)
    raise AssertionError("the last attempt returns or raises")


async def _before(deadline: float, awaitable: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout_at(deadline):
            return await awaitable
    except TimeoutError:
        raise DeadlineExceeded("The model did not answer in time.") from None


def _import_litellm() -> Any:
    """Import LiteLLM as it must be for a server: quiet, and without looking up prices on the network."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    import litellm

    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).disabled = True  # their lines may quote prompts and answers
    litellm.ModelResponse()  # pydantic finishes these classes at their first use, which need not be the first request
    return litellm


async def _in_daemon_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread that does not keep the process alive: loading may take minutes, stopping may not."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(set_: Callable[[Any], None], value: Any) -> None:
        if not result.done():
            set_(value)

    def run() -> None:
        outcome: tuple[Callable[[Any], None], Any]
        try:
            outcome = (result.set_result, function())
        except Exception as error:  # noqa: BLE001 - carried over to whoever awaits
            outcome = (result.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return await result
