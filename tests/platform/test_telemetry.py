"""Metrics and traces of the running service; its log is read in test_cli."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ml.platform.telemetry import configure_logging
from ml.serving.prompts import PROMPTS
from tests.conftest import Serve, eventually
from tests.process import service
from tests.server import running
from tests.upstream import Upstream


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_metrics_count_tips_time_and_tokens_by_version_and_model(serve: Serve) -> None:
    http = serve("good")
    for version in ("v1", "v2-mentor", "v2-mentor"):
        http.post("/generate", json={"prompt_version": version})
    http.post("/generate", json={"prompt_version": "v9"})
    found = samples(http.get("/metrics").text)
    assert found["tips_generations_total", "openai/good", "ok", "v1"] == 1
    assert found["tips_generations_total", "openai/good", "ok", "v2-mentor"] == 2
    assert found["tips_generation_seconds_count", "openai/good", "v2-mentor"] == 2
    assert found["tips_generation_tokens_sum", "input", "openai/good", "v2-mentor"] == 100
    assert found["tips_generation_tokens_sum", "output", "openai/good", "v2-mentor"] == 24
    assert found["http_request_seconds_count", "POST", "/generate", "200"] == 3
    assert found["http_request_seconds_count", "POST", "/generate", "422"] == 1


def test_metrics_count_what_failed_and_what_was_given_up(serve: Serve) -> None:
    http = serve("status-401")
    http.post("/generate", json={})
    http.post("/generate", json={"stream": True})
    found = samples(http.get("/metrics").text)
    assert found["tips_generations_total", "none", "upstream-refused", "v1"] == 2
    assert found["http_request_seconds_count", "POST", "/generate", "502"] == 2


def test_a_path_that_a_caller_made_up_is_not_a_label(serve: Serve) -> None:
    http = serve()
    http.get("/made-up")
    http.request("BREW", "/made-up")
    text = http.get("/metrics").text
    assert "made-up" not in text
    assert "BREW" not in text


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    """An OpenTelemetry collector that keeps the spans it is sent."""
    spans: list[Span] = []

    async def receive(request: Request) -> Response:
        sent = ExportTraceServiceRequest.FromString(await request.body())
        spans.extend(s for resource in sent.resource_spans for scope in resource.scope_spans for s in scope.spans)
        return Response()

    with running(Starlette(routes=[Route("/v1/traces", receive, methods=["POST"])])) as url:
        yield url, spans


def attributes(span: Span) -> dict[str, object]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in span.attributes}


def test_spans_follow_the_conventions_and_hold_nobody_s_words(
    upstream: Upstream, collector: tuple[str, list[Span]]
) -> None:
    url, spans = collector
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    settings = {
        "TIP_MODEL": "openai/good",
        "TIP_MODEL_API_BASE": f"{upstream.url}/v1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
    }
    with service(**settings) as running_service:
        body = {"signals": {"goal": "private"}, "prompt_version": "v2-mentor"}
        headers = {"traceparent": f"00-{trace}-{parent}-01"}
        assert running_service.http.post("/generate", json=body, headers=headers).status_code == 200
        assert running_service.stop()[0] == 0
    assert eventually(lambda: len([span for span in spans if span.trace_id.hex() == trace]) == 2)
    request, chat = sorted((span for span in spans if span.trace_id.hex() == trace), key=lambda span: span.name)
    assert (chat.name, chat.kind) == ("chat openai/good", Span.SPAN_KIND_CLIENT)
    assert (request.name, request.kind) == ("POST /generate", Span.SPAN_KIND_SERVER)
    assert request.parent_span_id.hex() == parent
    assert chat.parent_span_id == request.span_id
    told = attributes(chat)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.provider.name"] == "openai"
    assert told["gen_ai.prompt.name"] == "tip"
    assert told["gen_ai.prompt.version"] == "v2-mentor"
    assert told["tips.prompt.digest"] == PROMPTS["v2-mentor"].digest
    assert told["gen_ai.usage.input_tokens"] == 50
    assert told["gen_ai.usage.output_tokens"] == 12
    assert "private" not in str(spans)
    assert "Dim the lights" not in str(spans)


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logging_restored")
def test_an_exception_is_logged_by_type_and_place_without_its_message() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    for log in (structlog.get_logger().exception, logging.getLogger("some.library").exception):
        try:
            raise ValueError("private")
        except ValueError:
            log("unexpected")
    for line in stream.getvalue().splitlines():
        event = json.loads(line)
        assert event["exception"] == "ValueError"
        assert "test_telemetry.py" in event["raised_at"][0]
        assert "private" not in line
