"""The one way to a language model, whoever hosts it: fallbacks, retries, one deadline, and our errors for theirs.

Nothing else imports LiteLLM, but for the embedded model, which is one of its providers. LiteLLM takes seconds to
import, so that is done in a thread while the service already answers.
"""

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import stamina
import structlog
from opentelemetry import trace

from ml.platform.background import run_in_daemon_thread
from ml.platform.errors import (
    ContentRefused,
    DeadlineExceeded,
    NotReady,
    TipsError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamUnreachable,
)
from ml.platform.telemetry import traceparent
from ml.serving.completion import Completion, CompletionRequest, CompletionStream, token_usage, with_deadline
from ml.serving.prompts import Message
from ml.serving.settings import EMBEDDED_MODEL, NO_EMBEDDED_MODEL
from ml.serving.upstream_errors import map_upstream_error, vendor_exceptions

T = TypeVar("T")

log = structlog.get_logger()

ATTEMPTS = 2
"""How often one model is asked, where asking again can help, before the next one is."""

# Two threads that import LiteLLM at once (two services in one process) find it half made.
_IMPORT = threading.Lock()

_TRANSIENT = (UpstreamFailed, UpstreamOverloaded, UpstreamUnreachable)


@dataclass(frozen=True, slots=True)
class _LiteLLM:
    """The imported module, what its calls may raise, and what makes the log of a call."""

    module: Any
    raises: tuple[type[Exception], ...]
    log: Callable[[str, Sequence[Message]], Any]


class Gateway:
    """Models in the order in which they are tried."""

    def __init__(
        self, models: Sequence[str], *, api_base: str | None = None, embedded_path: Path | None = None
    ) -> None:
        """Take LiteLLM model ids, best first; `api_base` is where the first one's provider is reached.

        Starts to load what they need, so it wants a running event loop; whoever asks meanwhile waits, or is told why
        there is no model.
        """
        self._models = {model: _route(model, models[0], api_base) for model in models}
        self._litellm = asyncio.create_task(run_in_daemon_thread(lambda: _import_litellm(models)))
        self._embedded = asyncio.create_task(self._load_embedded(embedded_path)) if EMBEDDED_MODEL in models else None

    @property
    def loading(self) -> dict[str, str]:
        """What is missing before a first tip can be written, and how it stands; empty when nothing is."""
        needed: dict[str, asyncio.Task[Any]] = {"litellm": self._litellm}
        if self._embedded and len(self._models) == 1:
            needed["embedded model"] = self._embedded
        return {what: state for what, task in needed.items() if (state := _state(task))}

    async def warm(self, prefixes: Sequence[Sequence[Message]]) -> None:
        """Finish loading, and let the embedded model, if it is one of ours, read the `prefixes` of messages to come."""
        try:
            await self._litellm
            embedded = self._embedded and await self._embedded
        except NotReady as error:
            log.error("model_not_ready", reason=error.detail)
            return
        log.info("model_ready", models=list(self._models))
        if embedded:
            await embedded.warm(prefixes)
            log.info("model_warm")

    async def close(self) -> None:
        """Stop loading, and close the connections to the models."""
        for loading in filter(None, (self._litellm, self._embedded)):
            loading.cancel()
        if self._litellm.done() and not self._litellm.cancelled() and not self._litellm.exception():
            litellm = self._litellm.result().module
            await litellm.close_litellm_async_clients()
            litellm.in_memory_llm_clients_cache.flush_cache()

    async def complete(self, request: CompletionRequest, deadline: float) -> Completion:
        """Return one whole answer before `deadline` (the event loop's time)."""

        async def ask(model: str, fallback: bool) -> Completion:
            with self._mapped():
                answer = await self._ask(model, request, stream=False)
            choice = next(iter(answer.choices or ()), None)
            if choice is None:
                raise UpstreamFailed("The model's answer has no choices.")
            text, reason = choice.message.content or "", choice.finish_reason or "stop"
            return Completion(text, model, fallback, token_usage(answer), reason)

        return await self._first_to_answer(ask, deadline)

    async def stream(self, request: CompletionRequest, deadline: float) -> CompletionStream:
        """Return an answer once its first words are there; all of it comes before `deadline`."""

        async def ask(model: str, fallback: bool) -> CompletionStream:
            chunks = self._chunks(model, request)
            try:
                return await CompletionStream(model, fallback, chunks, deadline).start()
            except BaseException:
                await chunks.aclose()
                raise

        return await self._first_to_answer(ask, deadline)

    async def _first_to_answer(self, ask: Callable[[str, bool], Awaitable[T]], deadline: float) -> T:
        for rank, model in enumerate(self._models):
            left = len(self._models) - rank
            # A model that hangs leaves those after it their share of the time.
            now = asyncio.get_running_loop().time()
            share = now + (deadline - now) / left
            try:
                await self._loaded(model, share)
                return await with_deadline(share, _persistent(ask, model, rank > 0))
            except ContentRefused:
                raise
            except TipsError as error:
                log.warning("model_failed", model=model, error=error.slug)
                if left == 1:
                    raise
        raise AssertionError("there is always a last model")

    async def _loaded(self, model: str, deadline: float) -> None:
        needed = self._embedded if model == EMBEDDED_MODEL and self._embedded else self._litellm
        try:
            await with_deadline(deadline, asyncio.shield(needed))
        except DeadlineExceeded:
            raise NotReady("The model is still loading.", retry_after=5) from None

    async def _chunks(self, model: str, request: CompletionRequest) -> AsyncGenerator[Any, None]:
        with self._mapped():
            answer = await self._ask(model, request, stream=True)
            async with aclosing(answer):
                async for chunk in answer:
                    yield chunk

    async def _ask(self, model: str, request: CompletionRequest, *, stream: bool) -> Any:
        options: dict[str, Any] = dict(self._models[model])
        litellm = self._litellm.result()
        if model == EMBEDDED_MODEL:
            options["extra_body"] = {"locale": request.locale, "crisis": request.crisis}
        elif not stream:
            options["litellm_logging_obj"] = litellm.log(options["model"], request.messages)
        if "api_base" in options:  # the operator's own server: it may join the trace
            options["extra_headers"] = {"traceparent": traceparent(trace.get_current_span())}
        if stream:
            options |= {"stream": True, "stream_options": {"include_usage": True}}
        return await litellm.module.acompletion(
            messages=request.messages,
            temperature=request.parameters.temperature,
            top_p=request.parameters.top_p,
            max_tokens=request.parameters.max_tokens,
            drop_params=True,
            max_retries=0,
            **options,
        )

    async def _load_embedded(self, path: Path | None) -> Any:
        litellm = await asyncio.shield(self._litellm)
        try:
            # Heavy, and in an extra: imported only when this is a model to use.
            from ml.serving import embedded, weights
        except ModuleNotFoundError as error:
            raise NotReady(NO_EMBEDDED_MODEL) from error
        found = await run_in_daemon_thread(lambda: weights.find(path))
        model = await run_in_daemon_thread(lambda: embedded.EmbeddedModel(found))
        provider = {"provider": embedded.PROVIDER, "custom_handler": embedded.EmbeddedProvider(model)}
        litellm.module.custom_provider_map = [provider]
        return model

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except self._litellm.result().raises as error:
            raise map_upstream_error(error) from None


def _state(task: asyncio.Task[Any]) -> str:
    if not task.done():
        return "loading"
    return str(error) if not task.cancelled() and (error := task.exception()) else ""


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


def _unlogged(litellm: Any) -> Callable[[str, Sequence[Message]], Any]:
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


async def _persistent(ask: Callable[[str, bool], Awaitable[T]], model: str, fallback: bool) -> T:
    """Ask once more where that can help."""
    async for attempt in stamina.retry_context(
        on=_TRANSIENT, attempts=ATTEMPTS, timeout=None, wait_initial=0.1, wait_max=1, wait_jitter=0.1
    ):
        with attempt:
            return await ask(model, fallback)
    raise AssertionError("the last attempt returns or raises")


def _import_litellm(models: Sequence[str]) -> _LiteLLM:
    """Import LiteLLM as it must be for a server: quiet, and without looking up prices on the network.

    Raises NotReady when one of `models` is of a provider that it does not know.
    """
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    with _IMPORT:
        import litellm

    known = {str(getattr(provider, "value", provider)) for provider in litellm.provider_list}
    unknown = [model for model in models if model != EMBEDDED_MODEL and model.partition("/")[0] not in known]
    if unknown:
        raise NotReady(
            f"LiteLLM knows no such provider as that of {', '.join(unknown)}; the operator has to look into it."
        )
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).disabled = True  # their lines may quote prompts and answers
    litellm.ModelResponse()  # pydantic finishes these classes at their first use, which need not be the first request
    return _LiteLLM(litellm, (*vendor_exceptions(litellm), httpx.HTTPError), _unlogged(litellm))
