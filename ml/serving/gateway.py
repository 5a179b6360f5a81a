"""The gateway to language models: fallback models, retries, one deadline, and the errors of this service.

The entry points are `complete` and `stream`. LiteLLM takes seconds to import, so a thread imports it while the service
already answers. Of the other modules only the embedded model, one of its providers, imports LiteLLM.
"""

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

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
"""The number of calls to one model after transient errors, before the next model is tried."""

# Without it, two threads that import LiteLLM at the same time (two services in one process) see it half initialised.
_IMPORT_LOCK = threading.Lock()

_TRANSIENT = (UpstreamFailed, UpstreamOverloaded, UpstreamUnreachable)


@dataclass(frozen=True, slots=True)
class _LiteLLM:
    """The imported module, the exceptions of its calls, and a factory for the log object of a call."""

    module: Any
    exceptions: tuple[type[Exception], ...]
    make_log: Callable[[str, Sequence[Message]], Any]


class Gateway:
    """Calls language models, in the order in which they are configured."""

    def __init__(
        self, models: Sequence[str], *, api_base: str | None = None, embedded_path: Path | None = None
    ) -> None:
        """Take LiteLLM model ids, the preferred one first; `api_base` is the address of the first one's provider."""
        self._models = {model: _route(model, models[0], api_base) for model in models}
        self._embedded_path = embedded_path
        self._litellm: asyncio.Task[_LiteLLM]
        self._embedded: asyncio.Task[Any] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Load what the models need, in the background, and close the connections when the block ends.

        A request that arrives while a model loads waits for it; if the loading fails, the request gets that error.
        """
        self._litellm = asyncio.create_task(run_in_daemon_thread(lambda: _import_litellm([*self._models])))
        if EMBEDDED_MODEL in self._models:
            self._embedded = asyncio.create_task(self._load_embedded())
        try:
            yield self
        finally:
            loading = [task for task in (self._litellm, self._embedded) if task]
            for task in loading:
                task.cancel()
            await asyncio.wait(loading)
            if not self._litellm.cancelled() and not self._litellm.exception():
                litellm = self._litellm.result().module
                await litellm.close_litellm_async_clients()
                litellm.in_memory_llm_clients_cache.flush_cache()

    @property
    def missing(self) -> dict[str, str]:
        """The state of each part that a first tip needs and that is not loaded; empty when all are loaded."""
        needed: dict[str, asyncio.Task[Any]] = {"litellm": self._litellm}
        if self._embedded and len(self._models) == 1:
            needed["embedded model"] = self._embedded
        return {name: state for name, task in needed.items() if (state := _loading_state(task))}

    async def warm_up(self, prefixes: Sequence[Sequence[Message]]) -> None:
        """Wait until all parts are loaded; the embedded model, if configured, then reads these prompt prefixes."""
        try:
            await self._litellm
            embedded_model = self._embedded and await self._embedded
        except NotReady as error:
            log.error("model_not_ready", reason=error.detail)
            return
        log.info("model_ready", models=list(self._models))
        if embedded_model:
            await embedded_model.warm_up(prefixes)
            log.info("model_warm")

    async def complete(self, request: CompletionRequest, deadline: float) -> Completion:
        """Return a whole completion before `deadline` (in the event loop's time).

        Raises the last model's error when none of the models answers.
        """
        return await self._try_models(self._complete, request, deadline)

    async def stream(self, request: CompletionRequest, deadline: float) -> CompletionStream:
        """Return a completion stream whose first text has arrived; the rest arrives before `deadline`.

        Raises what `complete` raises.
        """

        async def start(model: str, request: CompletionRequest) -> CompletionStream:
            stream = CompletionStream(model, self._is_fallback(model), self._chunks(model, request), deadline)
            try:
                return await stream.start()
            except BaseException:
                await stream.aclose()
                raise

        return await self._try_models(start, request, deadline)

    async def _try_models(
        self, call: Callable[[str, CompletionRequest], Awaitable[T]], request: CompletionRequest, deadline: float
    ) -> T:
        """Return what `call` returns for the first model that answers.

        Each model gets an equal share of the remaining time, so that one that hangs leaves time for the next.
        """
        last_model = [*self._models][-1]
        for models_before, model in enumerate(self._models):
            now = asyncio.get_running_loop().time()
            model_deadline = now + (deadline - now) / (len(self._models) - models_before)
            try:
                await self._wait_until_loaded(model, model_deadline)
                return await with_deadline(model_deadline, _with_retries(call, model, request))
            except ContentRefused:
                raise
            except TipsError as error:
                log.warning("model_failed", model=model, error=error.slug)
                if model == last_model:
                    raise
        raise AssertionError("the last model answers or raises")

    async def _wait_until_loaded(self, model: str, deadline: float) -> None:
        task = self._embedded if model == EMBEDDED_MODEL and self._embedded else self._litellm
        try:
            await with_deadline(deadline, asyncio.shield(task))
        except DeadlineExceeded:
            raise NotReady("The model is still loading.", retry_after=5) from None

    async def _complete(self, model: str, request: CompletionRequest) -> Completion:
        with self._upstream_errors():
            response = await self._call_litellm(model, request, stream=False)
        choice = next(iter(response.choices or ()), None)
        if choice is None:
            raise UpstreamFailed("The model's answer has no choices.")
        text, finish_reason = choice.message.content or "", choice.finish_reason or "stop"
        return Completion(text, model, self._is_fallback(model), token_usage(response), finish_reason)

    async def _chunks(self, model: str, request: CompletionRequest) -> AsyncGenerator[Any, None]:
        with self._upstream_errors():
            response = await self._call_litellm(model, request, stream=True)
            async with aclosing(response):
                async for chunk in response:
                    yield chunk

    async def _call_litellm(self, model: str, request: CompletionRequest, *, stream: bool) -> Any:
        options: dict[str, Any] = dict(self._models[model])
        litellm = self._litellm.result()
        if model == EMBEDDED_MODEL:
            reader = {"locale": request.locale, "crisis": request.crisis}
            options["extra_body"] = {**reader, "opening": request.opening}
        elif not stream:
            options["litellm_logging_obj"] = litellm.make_log(options["model"], request.messages)
        if "api_base" in options:  # the operator's own server, which may continue the trace
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

    async def _load_embedded(self) -> Any:
        litellm = await asyncio.shield(self._litellm)
        try:
            # Heavy and in an extra: imported only when the embedded model is configured.
            from ml.serving import embedded, weights
        except ModuleNotFoundError as error:
            raise NotReady(NO_EMBEDDED_MODEL) from error
        file = await run_in_daemon_thread(lambda: weights.find_weights(self._embedded_path))
        model = await run_in_daemon_thread(lambda: embedded.EmbeddedModel.load(file))
        provider = {"provider": embedded.PROVIDER, "custom_handler": embedded.EmbeddedProvider(model)}
        litellm.module.custom_provider_map = [provider]
        return model

    def _is_fallback(self, model: str) -> bool:
        return model != next(iter(self._models))

    @contextmanager
    def _upstream_errors(self) -> Iterator[None]:
        """Map LiteLLM's exceptions to this service's errors."""
        try:
            yield
        except self._litellm.result().exceptions as error:
            raise map_upstream_error(error) from None


async def _with_retries(
    call: Callable[[str, CompletionRequest], Awaitable[T]], model: str, request: CompletionRequest
) -> T:
    """Call one model, and once more after a transient error."""
    async for attempt in stamina.retry_context(
        on=_TRANSIENT, attempts=ATTEMPTS, timeout=None, wait_initial=0.1, wait_max=1, wait_jitter=0.1
    ):
        with attempt:
            return await call(model, request)
    raise AssertionError("the last attempt returns or raises")


def _loading_state(task: asyncio.Task[Any]) -> str:
    if not task.done():
        return "loading"
    return str(error) if not task.cancelled() and (error := task.exception()) else ""


def _route(model: str, first_model: str, api_base: str | None) -> dict[str, str]:
    """Return the arguments by which LiteLLM reaches `model`.

    An OpenAI-compatible server is called through LiteLLM's own HTTP client (its `hosted_vllm` provider) and not through
    the OpenAI SDK: the same request for a quarter less CPU.
    """
    provider, _, name = model.partition("/")
    if api_base is None or provider != first_model.partition("/")[0]:
        return {"model": model}
    if provider != "openai":
        return {"model": model, "api_base": api_base}
    return {"model": f"hosted_vllm/{name}", "api_base": api_base, "api_key": os.environ.get("OPENAI_API_KEY") or "none"}


def _import_litellm(models: Sequence[str]) -> _LiteLLM:
    """Import LiteLLM for a server: without its log lines, and without looking up prices on the network.

    Raises NotReady when LiteLLM does not know the provider of one of `models`.
    """
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    with _IMPORT_LOCK:
        import litellm

    known = {str(getattr(provider, "value", provider)) for provider in litellm.provider_list}
    unknown = [model for model in models if model != EMBEDDED_MODEL and model.partition("/")[0] not in known]
    if unknown:
        raise NotReady(
            f"LiteLLM does not know the provider of {', '.join(unknown)}; the operator must correct the setting."
        )
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).disabled = True  # its lines may quote prompts and answers
    litellm.ModelResponse()  # pydantic completes these classes at their first use: do that before the first request
    return _LiteLLM(litellm, (*vendor_exceptions(litellm), httpx.HTTPError), _log_factory(litellm))


def _log_factory(litellm: Any) -> Callable[[str, Sequence[Message]], Any]:
    """Return a factory for LiteLLM's log object of a plain call, with its bookkeeping switched off.

    LiteLLM computes the price of each call twice and prepares a record for callbacks, which this service does not use.
    Without that, a call takes two thirds of the CPU.
    """

    class SilentLogging(litellm.Logging):  # type: ignore[misc]
        def response_cost_calculator(self, *_: Any, **__: Any) -> None: ...
        def failure_handler(self, *_: Any, **__: Any) -> None: ...
        async def async_success_handler(self, *_: Any, **__: Any) -> None: ...
        async def async_failure_handler(self, *_: Any, **__: Any) -> None: ...

    def make_log(model: str, messages: Sequence[Message]) -> Any:
        return SilentLogging(
            model=model,
            messages=messages,
            stream=False,
            call_type="acompletion",
            start_time=datetime.now(),  # noqa: DTZ005 - LiteLLM subtracts naive times from it
            litellm_call_id=uuid.uuid4().hex,
            function_id="",
        )

    return make_log
