"""The router of serving in an application, and its OpenAPI document."""

import json
import re

import pytest
from fastapi import Depends, FastAPI

from ml.platform.errors import Forbidden
from ml.platform.problem_json import install_problem_handlers
from ml.serving.app import create_app
from ml.serving.routes import router
from ml.serving.schemas import ScoreRequest
from ml.serving.settings import ServingSettings
from tests.server import TestClient

DOCUMENT = create_app(ServingSettings(tip_model="openai/none")).openapi()


def test_the_body_of_score_is_a_component_of_the_document() -> None:
    body = DOCUMENT["paths"]["/score"]["post"]["requestBody"]
    assert body == {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}}},
    }
    component = DOCUMENT["components"]["schemas"]["ScoreRequest"]
    assert component["properties"].keys() == ScoreRequest.model_fields.keys()
    assert component["required"] == ["candidates"]


def test_all_references_of_the_document_exist() -> None:
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert {"GenerateRequest", "ScoreRequest", "Signals", "Candidate"} <= references
    assert references <= DOCUMENT["components"]["schemas"].keys()


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/generate"), ("POST", "/score"), ("POST", "/admin/reload"), ("GET", "/prompts"), ("GET", "/cards")],
)
def test_a_dependency_of_the_router_applies_to_every_route(method: str, path: str) -> None:
    async def refuse() -> None:
        raise Forbidden("Refused by the dependency.")

    app = FastAPI()
    install_problem_handlers(app)
    app.include_router(router, dependencies=[Depends(refuse)])
    body = {"candidates": [{"id": "a"}]} if path == "/score" else {}
    answer = TestClient(app).request(method, path, json=body)
    assert (answer.status_code, answer.json()["detail"]) == (403, "Refused by the dependency.")
