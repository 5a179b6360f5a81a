"""The OpenAPI document: what it promises is what the service does."""

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from ml.features.definitions import SIGNALS
from ml.serving.main import create_app
from ml.settings import ServingSettings
from tests.conftest import Serve
from tests.server import running
from tests.upstream import Upstream

DOCUMENT = create_app(ServingSettings()).openapi()


def test_every_signal_is_in_the_document_with_its_bounds() -> None:
    signals = DOCUMENT["components"]["schemas"]["Signals"]
    assert signals["properties"].keys() == SIGNALS.keys()
    assert signals["additionalProperties"] is False
    hours = signals["properties"]["sleep_hours"]["anyOf"][0]
    assert (hours["minimum"], hours["maximum"], hours["x-unit"]) == (0, 24, "hour")


def test_every_route_has_a_summary_and_generate_an_example_that_works(serve: Serve) -> None:
    assert all(route["summary"] for path in DOCUMENT["paths"].values() for route in path.values())
    example = DOCUMENT["components"]["schemas"]["GenerateRequest"]["examples"][0]
    assert serve().post("/generate", json=example).status_code == 200


def test_the_docs_page_needs_no_outside_address(serve: Serve) -> None:
    http = serve()
    page = http.get("/docs").text
    assert "openapi.json" in page
    assert "://" not in page
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert http.get(asset).status_code == 200


def test_the_document_asks_for_a_key_where_one_is_needed() -> None:
    document = create_app(ServingSettings(api_keys=("key",))).openapi()
    assert document["paths"]["/generate"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in document["paths"]["/health/live"]["get"]


schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def url() -> object:
    upstream = Upstream()
    with running(upstream.app()) as upstream.url:
        app = create_app(ServingSettings(tip_model="openai/good", tip_model_api_base=f"{upstream.url}/v1"))
        with running(app) as url:
            yield url


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_service_keeps_to_its_document(case: schemathesis.Case[Any], url: str) -> None:
    response = case.call(base_url=url)
    if case.path == "/health/ready" and response.status_code == 503:
        return  # LiteLLM is still being imported
    if response.status_code == 422 and {e["pointer"] for e in response.json()["errors"]} == {"#/signals/locale"}:
        return  # which locales exist is more than a schema can say
    case.validate_response(response)
