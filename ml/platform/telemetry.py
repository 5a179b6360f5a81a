"""Logs (JSON lines), metrics (Prometheus) and traces (OpenTelemetry): who asked what, which version answered, how fast.

None of them ever holds a signal, a prompt, a tip or a key; of an exception, they hold its type and where it was raised.
"""

import logging
import secrets
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TextIO

import structlog
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, Counter, Histogram
from structlog.typing import EventDict, Processor

from ml.platform.errors import TipsError
from ml.platform.settings import ConfigurationError

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048)

_W3C = TraceContextTextMapPropagator()

_line: ContextVar[dict[str, Any] | None] = ContextVar("line", default=None)


@dataclass
class GenerationRecord:
    """What there is to say about one tip; filled in while it is written."""

    prompt_version: str
    prompt_digest: str
    model: str = "none"
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = ""


class Telemetry:
    """The metrics and the tracer of one service."""

    def __init__(self, build_tracer: Tracer | None = None) -> None:
        self.registry = CollectorRegistry()
        self.tracer = build_tracer or trace.NoOpTracer()
        labels = ("prompt_version", "model")
        self._generations = Counter("tips_generations", "Tips asked for.", (*labels, "outcome"), registry=self.registry)
        self._duration = Histogram(
            "tips_generation_seconds", "Time to write a tip.", labels, buckets=_SECONDS, registry=self.registry
        )
        self._tokens = Histogram(
            "tips_generation_tokens",
            "Tokens of a tip, retries included.",
            (*labels, "direction"),
            buckets=_TOKENS,
            registry=self.registry,
        )
        self.shown = Counter(
            "tips_shown", "Tips stored and answered.", ("prompt_version", "policy"), registry=self.registry
        )
        self.reactions = Counter("tips_reactions", "Reactions stored.", ("reaction", "outcome"), registry=self.registry)
        self.scores = Counter("tips_scores", "Rankings answered.", ("policy", "policy_version"), registry=self.registry)
        self.shadow_scores = Counter(
            "tips_shadow_scores",
            "Rankings asked of the shadow policy.",
            ("policy", "policy_version", "outcome"),
            registry=self.registry,
        )
        self.requests = Histogram(
            "http_request_seconds",
            "Time to answer a request.",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )

    @contextmanager
    def request(self, headers: Mapping[str, str], request_id: str) -> Iterator[tuple[Span, dict[str, Any]]]:
        """Run one request under its span and ids, which every log line in it then has.

        Yields the span, which goes on with the W3C trace in `headers` if there is one, and what the request's own log
        line will say, for others to add to.
        """
        parent = _W3C.extract(headers)
        span = self.tracer.start_span("request", parent, SpanKind.SERVER)
        if not span.is_recording():
            span = _link(trace.get_current_span(parent).get_span_context())
        context = span.get_span_context()
        line: dict[str, Any] = {}
        token = _line.set(line)
        ids = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        try:
            with (
                trace.use_span(span, end_on_exit=True, record_exception=False),
                structlog.contextvars.bound_contextvars(request_id=request_id, **ids),
            ):
                yield span, line
        finally:
            _line.reset(token)

    @contextmanager
    def generation(self, prompt_version: str, prompt_digest: str) -> Iterator[GenerationRecord]:
        """Measure the writing of one tip, whatever becomes of it."""
        generation = GenerationRecord(prompt_version, prompt_digest)
        span = self.tracer.start_span("chat", kind=SpanKind.CLIENT)
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            yield generation
            outcome = "ok"
        except TipsError as error:
            outcome = error.slug
            raise
        finally:
            labels = (generation.prompt_version, generation.model)
            self._generations.labels(*labels, outcome).inc()
            self._duration.labels(*labels).observe(time.perf_counter() - started)
            if generation.input_tokens:
                self._tokens.labels(*labels, "input").observe(generation.input_tokens)
                self._tokens.labels(*labels, "output").observe(generation.output_tokens)
            add_to_request_log(
                prompt_version=generation.prompt_version,
                prompt_digest=generation.prompt_digest,
                model=generation.model,
                input_tokens=generation.input_tokens,
                output_tokens=generation.output_tokens,
                outcome=outcome,
            )
            _describe(span, generation, outcome)
            span.end()


def add_to_request_log(**words: Any) -> None:
    """Add to what the log line of the present request will say."""
    line = _line.get()
    if line is not None:
        line.update(words)


def outgoing_headers() -> dict[str, str]:
    """Return the headers that let another service go on with the present request's trace and id."""
    headers = {"traceparent": traceparent(trace.get_current_span())}
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    return headers | {"X-Request-ID": request_id} if request_id else {}


def _describe(span: Span, generation: GenerationRecord, outcome: str) -> None:
    """Set the attributes of OpenTelemetry's semantic conventions for generative AI."""
    if not span.is_recording():
        return
    span.update_name(f"chat {generation.model}")
    span.set_attributes(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": generation.model.partition("/")[0],
            "gen_ai.request.model": generation.model,
            "gen_ai.prompt.name": "tip",
            "gen_ai.prompt.version": generation.prompt_version,
            "tips.prompt.digest": generation.prompt_digest,
            "gen_ai.usage.input_tokens": generation.input_tokens,
            "gen_ai.usage.output_tokens": generation.output_tokens,
            "gen_ai.response.finish_reasons": [generation.finish_reason],
        }
    )
    if outcome != "ok":
        span.set_attribute("error.type", outcome)
        span.set_status(trace.StatusCode.ERROR)


def traceparent(span: Span) -> str:
    """Return the W3C header that names this span as the parent of what follows."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _link(caller: SpanContext) -> Span:
    """A span that is not recorded but still a link in the chain: the caller's trace, or a new one, and its own id."""
    trace_id = caller.trace_id if caller.is_valid else secrets.randbits(127) + 1
    flags = TraceFlags(caller.trace_flags)
    return NonRecordingSpan(SpanContext(trace_id, secrets.randbits(63) + 1, is_remote=False, trace_flags=flags))


def configure_logging(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Write all logs of this process, ours and the libraries', as one JSON object a line (standard output)."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exception_without_its_message,
    ]
    stream = stream or sys.stdout
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    # Libraries speak up only when something is wrong; uvicorn's own lines tell of start and stop.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name, lowest in {"uvicorn": level, "uvicorn.error": level, "uvicorn.access": logging.CRITICAL}.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(lowest)


def _exception_without_its_message(_: Any, __: str, event: EventDict) -> EventDict:
    """Say which exception was raised and where, not its message: that may quote a signal, a prompt or a key."""
    raised = event.pop("exc_info", None)
    if raised:
        kind, _, trace_back = sys.exc_info() if raised is True else raised
        frames = traceback.extract_tb(trace_back)
        event["exception"] = kind.__name__ if kind else "unknown"
        event["raised_at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return event


def build_tracer(endpoint: str | None) -> Tracer:
    """Return a tracer that sends its spans to an OTLP collector over HTTP; without `endpoint`, one that does nothing.

    Raises ConfigurationError when the `otel` extra, which brings the exporter, is not installed.
    """
    if endpoint is None:
        return trace.NoOpTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigurationError("OTEL_EXPORTER_OTLP_ENDPOINT: needs the `otel` extra to be installed.") from error
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "tips"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
    return provider.get_tracer("tips")
