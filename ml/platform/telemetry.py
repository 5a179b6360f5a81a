"""Logs (JSON lines), metrics (Prometheus) and traces (OpenTelemetry) of requests and generations.

They never contain a signal, a prompt, a tip or a key; of an exception, only its type and where it was raised.
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
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from structlog.typing import EventDict, Processor

from ml.platform.errors import TipsError
from ml.platform.settings import ConfigurationError

_SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
_TOKENS_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048)

_W3C = TraceContextTextMapPropagator()

_request_log_fields: ContextVar[dict[str, Any] | None] = ContextVar("request_log_fields", default=None)


@dataclass
class GenerationRecord:
    """The measurements of one generation; filled in while the tip is written."""

    prompt_version: str
    prompt_digest: str
    model: str = "none"
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = ""


class Telemetry:
    """The metrics and the tracer of one service."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.registry = CollectorRegistry()
        self.tracer = tracer or trace.NoOpTracer()
        labels = ("prompt_version", "model")
        self._generations = Counter("tips_generations", "Tips requested.", (*labels, "outcome"), registry=self.registry)
        self._duration = Histogram(
            "tips_generation_seconds", "Time to write a tip.", labels, buckets=_SECONDS_BUCKETS, registry=self.registry
        )
        self._tokens = Histogram(
            "tips_generation_tokens",
            "Tokens of a tip, retries included.",
            (*labels, "direction"),
            buckets=_TOKENS_BUCKETS,
            registry=self.registry,
        )
        self.shown = Counter(
            "tips_shown", "Tips stored and returned.", ("prompt_version", "policy"), registry=self.registry
        )
        self.exposures = Counter("tips_exposures", "Exposures stored.", ("outcome",), registry=self.registry)
        self.reactions = Counter("tips_reactions", "Reactions stored.", ("reaction", "outcome"), registry=self.registry)
        self.scores = Counter(
            "tips_scores", "Rankings of candidates.", ("policy", "policy_version"), registry=self.registry
        )
        self.online_store_failures = Counter(
            "tips_online_store_failures",
            "Rankings without the user's aggregates, since the online store failed.",
            registry=self.registry,
        )
        self.shadows = Counter(
            "tips_shadow", "Tips and rankings of versions in shadow.", ("kind", "outcome"), registry=self.registry
        )
        self.webhook_deliveries = Counter(
            "tips_webhook_deliveries", "Deliveries of rollout events, by outcome.", ("outcome",), registry=self.registry
        )
        self.rollout_transitions = Counter(
            "tips_rollout_transitions", "Events of rollouts.", ("kind", "action"), registry=self.registry
        )
        self.drift = Gauge(
            "tips_drift", "The newest figures of tips nightly about the inputs.", ("figure",), registry=self.registry
        )
        self.drift_psi = Gauge(
            "tips_drift_psi", "The population stability index of a feature.", ("feature",), registry=self.registry
        )
        self.drift_day = Gauge(
            "tips_drift_day_seconds", "The end of the day of the newest figures, in Unix time.", registry=self.registry
        )
        self.background_task_failures = Counter(
            "tips_background_task_failures", "Background tasks that ended.", ("task",), registry=self.registry
        )
        self.requests = Histogram(
            "http_request_seconds",
            "Time to answer a request.",
            ("method", "route", "status"),
            buckets=_SECONDS_BUCKETS,
            registry=self.registry,
        )

    @contextmanager
    def request(self, headers: Mapping[str, str], request_id: str) -> Iterator[tuple[Span, dict[str, Any]]]:
        """Run one request in a span; log lines inside the block carry its request, trace and span ids.

        Yields the span, which continues the W3C trace in `headers` if there is one, and the fields of the request's own
        log line, to which `add_to_request_log` adds.
        """
        parent = _W3C.extract(headers) if "traceparent" in headers else None
        span = self.tracer.start_span("request", parent, SpanKind.SERVER)
        if not span.is_recording():
            span = _unrecorded_span(trace.get_current_span(parent).get_span_context())
        context = span.get_span_context()
        log_fields: dict[str, Any] = {}
        token = _request_log_fields.set(log_fields)
        ids = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        try:
            with (
                trace.use_span(span, end_on_exit=True, record_exception=False),
                structlog.contextvars.bound_contextvars(request_id=request_id, **ids),
            ):
                yield span, log_fields
        finally:
            _request_log_fields.reset(token)

    @contextmanager
    def generation(self, prompt_version: str, prompt_digest: str) -> Iterator[GenerationRecord]:
        """Measure one generation, whether it succeeds, fails or is cancelled."""
        record = GenerationRecord(prompt_version, prompt_digest)
        span = self.tracer.start_span("chat", kind=SpanKind.CLIENT)
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            yield record
            outcome = "ok"
        except TipsError as error:
            outcome = error.slug
            raise
        finally:
            labels = (record.prompt_version, record.model)
            self._generations.labels(*labels, outcome).inc()
            self._duration.labels(*labels).observe(time.perf_counter() - started)
            if record.input_tokens:
                self._tokens.labels(*labels, "input").observe(record.input_tokens)
                self._tokens.labels(*labels, "output").observe(record.output_tokens)
            add_to_request_log(
                prompt_version=record.prompt_version,
                prompt_digest=record.prompt_digest,
                model=record.model,
                input_tokens=record.input_tokens,
                output_tokens=record.output_tokens,
                outcome=outcome,
            )
            _set_generation_attributes(span, record, outcome)
            span.end()


def add_to_request_log(**fields: Any) -> None:
    """Add fields to the log line of the current request; outside of a request, do nothing."""
    log_fields = _request_log_fields.get()
    if log_fields is not None:
        log_fields.update(fields)


def outgoing_headers() -> dict[str, str]:
    """Return the headers by which another service continues the current request's trace and request id."""
    headers = {"traceparent": traceparent(trace.get_current_span())}
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    return headers | {"X-Request-ID": request_id} if request_id else {}


def _set_generation_attributes(span: Span, record: GenerationRecord, outcome: str) -> None:
    """Set the attributes of OpenTelemetry's semantic conventions for generative AI."""
    if not span.is_recording():
        return
    span.update_name(f"chat {record.model}")
    span.set_attributes(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": record.model.partition("/")[0],
            "gen_ai.request.model": record.model,
            "gen_ai.prompt.name": "tip",
            "gen_ai.prompt.version": record.prompt_version,
            "tips.prompt.digest": record.prompt_digest,
            "gen_ai.usage.input_tokens": record.input_tokens,
            "gen_ai.usage.output_tokens": record.output_tokens,
            "gen_ai.response.finish_reasons": [record.finish_reason],
        }
    )
    if outcome != "ok":
        span.set_attribute("error.type", outcome)
        span.set_status(trace.StatusCode.ERROR)


def traceparent(span: Span) -> str:
    """Return the W3C header that names `span` as the parent of the receiver's span."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _unrecorded_span(caller: SpanContext) -> Span:
    """Return a span that is not recorded but has its own id, in the caller's trace or a new one, to pass on."""
    trace_id = caller.trace_id if caller.is_valid else secrets.randbits(127) + 1
    flags = TraceFlags(caller.trace_flags)
    return NonRecordingSpan(SpanContext(trace_id, secrets.randbits(63) + 1, is_remote=False, trace_flags=flags))


def configure_logging(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Write all logs of this process, including those of libraries, as one JSON object per line.

    `stream`: by default, standard output.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _drop_exception_message,
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
    # Libraries log warnings and errors only; uvicorn also logs its start and stop.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name, min_level in {"uvicorn": level, "uvicorn.error": level, "uvicorn.access": logging.CRITICAL}.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(min_level)


def _drop_exception_message(_: Any, __: str, event: EventDict) -> EventDict:
    """Replace an exception by its type and traceback; its message may quote a signal, a prompt or a key."""
    exc_info = event.pop("exc_info", None)
    if exc_info:
        exception_class, _, trace_back = sys.exc_info() if exc_info is True else exc_info
        frames = traceback.extract_tb(trace_back)
        event["exception"] = exception_class.__name__ if exception_class else "unknown"
        event["raised_at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return event


def build_tracer(endpoint: str | None) -> Tracer:
    """Return a tracer that sends spans to the OTLP collector at `endpoint` over HTTP; for None, one that does nothing.

    Raises ConfigurationError when the `otel` extra, which contains the exporter, is not installed.
    """
    if endpoint is None:
        return trace.NoOpTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT: traces need the `otel` extra, which is not installed."
        ) from error
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "tips"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
    return provider.get_tracer("tips")
