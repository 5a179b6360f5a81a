"""The adapter to LiteLLM: calls of one model, with answers and errors in this project's types.

LiteLLM takes seconds to import, so a thread imports it while the service already answers. Of the other modules only the
embedded model, one of its providers, imports it.
"""

import logging
import os
import threading
import uuid
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

import httpx
import structlog
from opentelemetry import trace

from ml.platform.errors import ContentRefused, UpstreamFailed
from ml.platform.telemetry import traceparent
from ml.serving.completion import Chunk, CompletionRequest, TokenUsage
from ml.serving.hosted_model import HostedModel
from ml.serving.litellm_transport import Exchange, RequestCapture, install_transport, use_exchange
from ml.serving.prepared_call import PreparedCall, UnreadAnswer
from ml.serving.prompts import Message
from ml.serving.response_observer import FinishReason, ResponseObserver
from ml.serving.settings import EMBEDDED_MODEL
from ml.serving.upstream_errors import DETAILS, map_upstream_error, vendor_exceptions

log = structlog.get_logger()

# Without it, two threads that import LiteLLM at the same time (two services in one process) see it half initialised.
_IMPORT_LOCK = threading.Lock()


PREPARED_PROVIDERS = frozenset({"anthropic", "gemini", "hosted_vllm", "openai"})
"""The providers, as LiteLLM names them, whose calls are prepared once.

Their keys stay valid, and tests compare their requests and answers with those of LiteLLM.
"""


@dataclass(frozen=True, slots=True)
class LiteLLM:
    """The imported module, the exceptions of its calls, and a factory for the log object of a call.

    `transport`: sends prepared calls; None if LiteLLM is set to use another kind of transport, which has no hook.
    """

    module: Any
    exceptions: tuple[type[Exception], ...]
    make_log: Callable[[str, Sequence[Message]], Any]
    transport: httpx.AsyncBaseTransport | None

    async def chunks(
        self, model: HostedModel, request: CompletionRequest, *, stream: bool
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the answer of `model`; the last chunk has the finish reason. Without `stream`, the first has all text.

        A parameter that the provider refuses is left out in a second call, and from then on. Raises ContentRefused and
        the upstream errors, and UpstreamFailed for an answer that ends without a finish reason.
        """
        refused = model.refused
        while True:
            observer = ResponseObserver()
            has_text, reason = False, None
            try:
                async with aclosing(self._answer(model, request, refused, observer, stream=stream)) as answer:
                    async for chunk in answer:
                        has_text = has_text or bool(chunk.text)
                        reason = chunk.finish_reason or reason
                        yield Chunk(chunk.text, chunk.usage)
                break
            except self.exceptions as error:
                if observer.status == HTTPStatus.UNAUTHORIZED:
                    model.calls.clear()  # their key may have been replaced
                parameter = _refused_parameter(model, error, observer.status, refused)
                if has_text or parameter is None:
                    raise map_upstream_error(error, status=observer.status) from None
                refused |= {parameter}
            finally:
                await observer.aclose()
        if not refused <= model.refused:
            model.refused |= refused
            log.warning("parameters_refused", model=model.address["model"], parameters=sorted(refused))
        finish_reason = _finish_reason(observer, reason, has_text=has_text, stream=stream)
        if finish_reason is FinishReason.LENGTH and not has_text and observer.is_observed:
            model.reasons = True  # the tokens were spent before the answer began
        yield Chunk(finish_reason=finish_reason)

    async def aclose(self) -> None:
        """Close LiteLLM's connections."""
        if self.transport:
            await self.transport.aclose()
        await self.module.close_litellm_async_clients()
        self.module.in_memory_llm_clients_cache.flush_cache()
        # Streams of some providers use one client outside of that cache; it is made when it is first used.
        if (shared := vars(self.module).get("module_level_aclient")) is not None:
            await shared.close()

    async def _answer(
        self,
        model: HostedModel,
        request: CompletionRequest,
        refused: frozenset[str],
        observer: ResponseObserver,
        *,
        stream: bool,
    ) -> AsyncGenerator[Chunk, None]:
        options = {**model.address, **model.arguments(request.parameters, refused)}
        # Only the operator's own server may continue the trace.
        headers = {"traceparent": traceparent(trace.get_current_span())} if "api_base" in options else {}
        yielded = 0
        if self.transport and (call := await self._prepare(model, request.messages, options, stream=stream)):
            use_exchange(observer)
            texts = [message["content"] for message in request.messages]
            response = await self.transport.handle_async_request(call.request(texts, headers))
            try:
                async with aclosing(call.chunks(response, stream=stream)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except UnreadAnswer as unread:
                observer.unread, yielded = unread.response, unread.yielded
        if options["model"] == EMBEDDED_MODEL:
            reader = {"locale": request.locale, "crisis": request.crisis}
            options["extra_body"] = {**reader, "opening": request.opening, "background": request.background}
        elif not stream:
            options["litellm_logging_obj"] = self.make_log(options["model"], request.messages)
        if headers:
            options["extra_headers"] = headers
        async with aclosing(self._complete(observer, request.messages, options, stream=stream)) as responses:
            async for response in responses:
                chunk = _read_chunk(response, stream=stream)
                yield Chunk(chunk.text[yielded:], chunk.usage, chunk.finish_reason)
                yielded = max(0, yielded - len(chunk.text))

    async def _prepare(
        self, model: HostedModel, messages: Sequence[Message], options: Mapping[str, Any], *, stream: bool
    ) -> PreparedCall | None:
        """Return the prepared call with these options for messages of these roles; None if there can be none."""
        if options["model"].partition("/")[0] not in PREPARED_PROVIDERS:
            return None
        key = (stream, *(message["role"] for message in messages), *options.items())
        if key not in model.calls:
            placeholders = [uuid.uuid4().hex for _ in messages]
            templates: list[Message] = [
                {"role": message["role"], "content": text} for message, text in zip(messages, placeholders, strict=True)
            ]
            capture = RequestCapture()
            with suppress(*self.exceptions):
                async for _ in self._complete(capture, templates, options, stream=stream):
                    pass
            model.calls[key] = PreparedCall.of(capture.request, placeholders) if capture.request else None
        return model.calls[key]

    async def _complete(
        self, exchange: Exchange, messages: Sequence[Message], options: Mapping[str, Any], *, stream: bool
    ) -> AsyncGenerator[Any, None]:
        """Yield LiteLLM's response or chunks; `exchange` handles its request."""
        use_exchange(exchange)
        if stream:
            options = {**options, "stream": True, "stream_options": {"include_usage": True}}
        response = await self.module.acompletion(messages=messages, drop_params=True, max_retries=0, **options)
        if not stream:
            yield response
            return
        async with aclosing(response):
            async for chunk in response:
                yield chunk


def _read_chunk(response: Any, *, stream: bool) -> Chunk:
    """Return the content of LiteLLM's response or chunk. Raises UpstreamFailed if it has other types than expected."""
    usage = getattr(response, "usage", None)
    tokens = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
    choice = next(iter(response.choices or ()), None)
    if choice is None:
        text, reason = "", None
    else:
        text, reason = (choice.delta if stream else choice.message).content or "", choice.finish_reason
    if not isinstance(text, str) or not all(isinstance(number, int) and number >= 0 for number in tokens):
        raise UpstreamFailed(DETAILS[UpstreamFailed])
    return Chunk(text, TokenUsage(*tokens), reason)


def _finish_reason(observer: ResponseObserver, reason: str | None, *, has_text: bool, stream: bool) -> FinishReason:
    """Return why the answer ended: as the provider says, otherwise as LiteLLM does (`reason`).

    Raises ContentRefused for a refusal, and UpstreamFailed if the answer is not finished or is none.
    """
    is_finished = observer.finish_reason is not None or (has_text and not observer.is_known_format)
    is_stream = has_text or observer.has_events or not stream
    if observer.is_observed and not (is_finished and is_stream):
        raise UpstreamFailed("The model's provider ended the answer before it was finished.")
    finish_reason = observer.finish_reason or _LITELLM_REASONS.get(reason or "stop", FinishReason.OTHER)
    if finish_reason is FinishReason.REFUSED:
        raise ContentRefused(DETAILS[ContentRefused])
    return finish_reason


_LITELLM_REASONS = {reason.value: reason for reason in FinishReason}


def _refused_parameter(model: HostedModel, error: Exception, status: int, refused: frozenset[str]) -> str | None:
    is_refusal = status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
    return model.refused_parameter(str(error), refused) if is_refusal else None


def import_litellm() -> LiteLLM:
    """Import LiteLLM for a server: without its log lines, and without looking up prices on the network."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    with _IMPORT_LOCK:
        import litellm
        from litellm.llms.custom_httpx import aiohttp_transport, http_handler

        install_transport(aiohttp_transport)
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).disabled = True  # its lines may quote prompts and answers
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings")  # quotes answers
    litellm.ModelResponse()  # pydantic completes these classes at their first use: do that before the first request
    exceptions = (*vendor_exceptions(litellm), httpx.HTTPError)
    return LiteLLM(litellm, exceptions, _log_factory(litellm), _open_transport(http_handler))


def _open_transport(http_handler: Any) -> httpx.AsyncBaseTransport | None:
    """Return a transport like those of LiteLLM's clients; None if they use others, in which nothing can be captured."""
    config = http_handler.get_ssl_configuration()
    ssl = {"ssl_verify": config} if isinstance(config, bool) else {"ssl_context": config}
    transport: httpx.AsyncBaseTransport | None = http_handler.AsyncHTTPHandler.create_async_transport(**ssl)
    return transport if getattr(transport, "has_exchange", False) else None


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
