"""Metrics and traces of the running service; the tests of the command read its log."""

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
from tests.conftest import Serve, becomes_ready, eventually
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


def test_metrics_count_tips_durations_and_tokens_by_prompt_version_and_model(serve: Serve) -> None:
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


def test_metrics_count_failed_generations(serve: Serve) -> None:
    http = serve("status-401")
    http.post("/generate", json={})
    http.post("/generate", json={"stream": True})
    found = samples(http.get("/metrics").text)
    assert found["tips_generations_total", "none", "upstream-refused", "v1"] == 2
    assert found["http_request_seconds_count", "POST", "/generate", "502"] == 2


def test_a_poll_in_the_background_is_counted_but_logged_only_if_it_fails(serve: Serve) -> None:
    http, background = serve(), {"Priority": "u=7"}
    with structlog.testing.capture_logs() as log:
        http.get("/prompts", headers=background)
        http.get("/nothing", headers=background)
        http.get("/prompts")
    logged = [(line["status"], line["route"]) for line in log if line["event"] == "request"]
    assert [status for status, _ in logged] == [404, 200]
    assert samples(http.get("/metrics").text)["http_request_seconds_count", "GET", "/prompts", "200"] == 2


def test_an_unknown_path_or_method_is_not_a_label(serve: Serve) -> None:
    http = serve()
    http.get("/unknown")
    http.request("BREW", "/unknown")
    text = http.get("/metrics").text
    assert "unknown" not in text
    assert "BREW" not in text


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    """An OpenTelemetry collector: its address, and the spans that it receives."""
    spans: list[Span] = []

    async def receive(request: Request) -> Response:
        export = ExportTraceServiceRequest.FromString(await request.body())
        spans.extend(s for resource in export.resource_spans for scope in resource.scope_spans for s in scope.spans)
        return Response()

    with running(Starlette(routes=[Route("/v1/traces", receive, methods=["POST"])])) as url:
        yield url, spans


def attributes(span: Span) -> dict[str, object]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in span.attributes}


def test_spans_follow_the_conventions_and_contain_no_signals_or_tips(
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
        assert becomes_ready(running_service.http)
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
    chat_attributes = attributes(chat)
    assert chat_attributes["gen_ai.operation.name"] == "chat"
    assert chat_attributes["gen_ai.provider.name"] == "openai"
    assert chat_attributes["gen_ai.prompt.name"] == "tip"
    assert chat_attributes["gen_ai.prompt.version"] == "v2-mentor"
    assert chat_attributes["tips.prompt.digest"] == PROMPTS["v2-mentor"].digest
    assert chat_attributes["gen_ai.usage.input_tokens"] == 50
    assert chat_attributes["gen_ai.usage.output_tokens"] == 12
    assert "private" not in str(spans)
    assert "Dim the lights" not in str(spans)


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.usefixtures("_restored_logging")
def test_an_exception_is_logged_with_its_type_and_origin_but_not_its_message() -> None:
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
