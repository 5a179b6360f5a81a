"""The OpenAPI document, and whether the service conforms to it."""

import json
import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ml.features.definitions import SIGNALS
from ml.recommender.app import create_app as create_recommender
from ml.recommender.schemas import ReactionRequest, TipRequest
from ml.recommender.settings import RecommenderSettings
from ml.serving.prompts import PROMPTS
from ml.serving.settings import ServingSettings
from ml.standalone.app import create_app
from tests.conftest import Serve
from tests.server import running
from tests.upstream import Upstream

DOCUMENT = create_app(ServingSettings(), RecommenderSettings()).openapi()


def test_every_signal_is_in_the_document_with_its_bounds() -> None:
    signals = DOCUMENT["components"]["schemas"]["Signals"]
    assert signals["properties"].keys() == SIGNALS.keys()
    assert signals["additionalProperties"] is False
    hours = signals["properties"]["sleep_hours"]["anyOf"][0]
    assert (hours["minimum"], hours["maximum"], hours["x-unit"]) == (0, 24, "hour")


def test_every_route_has_a_summary_and_a_valid_example(serve_both: Serve) -> None:
    assert all(route["summary"] for path in DOCUMENT["paths"].values() for route in path.values())
    examples = {
        name: schema["examples"][0]
        for name, schema in DOCUMENT["components"]["schemas"].items()
        if "examples" in schema
    }
    http = serve_both()
    assert http.post("/generate", json=examples["GenerateRequest"]).status_code == 200
    score = http.post("/score", json=examples["ScoreRequest"])
    assert (score.status_code, len(score.json()["scores"])) == (200, 2)
    tip = http.post("/tips", json=examples["TipRequest"])
    assert tip.status_code == 200
    exposure = examples["ExposureRequest"] | {"tip_id": tip.json()["tip_id"]}
    assert http.post("/exposures", json=exposure).json()["outcome"] == "recorded"
    reaction = examples["ReactionRequest"] | {"tip_id": tip.json()["tip_id"]}
    assert http.post("/reactions", json=reaction).json()["outcome"] == "recorded"


def test_the_docs_page_loads_nothing_from_other_hosts(serve: Serve) -> None:
    http = serve()
    page = http.get("/docs").text
    assert "openapi.json" in page
    assert "://" not in page
    for asset in re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page):
        assert http.get(asset).status_code == 200


def test_every_operation_is_in_one_group_and_every_group_has_a_description() -> None:
    groups = {tag["name"]: tag["description"] for tag in DOCUMENT["tags"]}
    assert [*groups] == ["Tips", "Rewards", "Rollouts", "Serving", "Operations"]
    assert all(groups.values())
    used = [operation["tags"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert {tag for (tag,) in used} == groups.keys()
    recommender = create_recommender(RecommenderSettings(serving_url="http://127.0.0.1:9")).openapi()
    assert [tag["name"] for tag in recommender["tags"]] == ["Tips", "Rewards", "Rollouts", "Operations"]


def test_the_document_declares_keys_for_the_routes_that_need_one() -> None:
    document = create_app(ServingSettings(api_keys=("key",)), RecommenderSettings(api_keys=("key",))).openapi()
    for path in ("/generate", "/score", "/admin/reload", "/tips", "/exposures", "/reactions"):
        assert document["paths"][path]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in document["paths"]["/health/live"]["get"]


NOT_EXPRESSIBLE = re.compile(
    "#/(signals/locale|prompt_version|policy|candidates/[0-9]+/id|((reactions|exposures)/[0-9]+/)?at|to|baseline)"
)
"""Fields with rules that JSON Schema cannot express: known locales and versions, uniqueness, the present, order."""


def test_a_rule_that_the_schema_cannot_express_is_in_the_description() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    body_fields = [
        *(("Signals", "locale"), ("GenerateRequest", "prompt_version")),
        *(
            ("ScoreRequest", "candidates"),
            ("ScoreRequest", "policy"),
            ("ReactionRequest", "at"),
            ("ExposureRequest", "at"),
        ),
    ]
    fields = [schemas[model]["properties"][name] for model, name in body_fields]
    fields += [
        query for query in DOCUMENT["paths"]["/rewards"]["get"]["parameters"] if query["name"] in {"to", "baseline"}
    ]
    assert len(fields) == len(body_fields) + 2
    for field in fields:
        assert "422" in json.dumps(field)


def test_a_client_can_name_a_version_that_the_document_does_not_know() -> None:
    """A TypeScript client takes the version from its environment, so its type must not be a list of literals."""
    for model in ("GenerateRequest", "GenerateResponse", "TipResponse"):
        version = DOCUMENT["components"]["schemas"][model]["properties"]["prompt_version"]
        assert "enum" not in json.dumps(version)
        assert {*version["examples"]} <= {*PROMPTS}


@pytest.mark.parametrize(
    ("at", "is_described"),
    [
        *(
            ("2026-01-31T21:40:00Z", True),
            ("2026-01-31t21:40:00.123456789z", True),
            ("2000-01-01T00:00:00-12:00", True),
        ),
        *(("2026-01-31 21:40+05:30", True), ("1999-12-31T23:59:59Z", False), ("2016-12-31T23:59:60Z", False)),
        *(
            ("2026-01-31T21:40:00", False),
            ("2026-01-31", False),
            ("1769895600", False),
            ("2026-13-01T00:00:00Z", False),
        ),
        *(("2026-01-31T24:00:00Z", False), ("2026-01-31T21:40:00+24:00", False), ("2026-01-31T21:40:00Z\n", False)),
    ],
)
def test_the_pattern_of_a_time_describes_what_is_accepted(at: str, is_described: bool) -> None:
    field, _ = DOCUMENT["components"]["schemas"]["ReactionRequest"]["properties"]["at"]["anyOf"]
    assert bool(re.search(field["pattern"].removesuffix("$") + r"\Z", at)) is is_described
    reaction = {"tip_id": "01a20832-ae71-7aec-ae48-acec0e56168b", "reaction": "helpful", "at": at}
    if is_described:
        ReactionRequest.model_validate(reaction)
    else:
        with pytest.raises(ValidationError):
            ReactionRequest.model_validate(reaction)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.characters(exclude_categories=["Cs"])
)
def test_the_pattern_of_a_user_id_describes_what_is_accepted(user_id: str) -> None:
    field = DOCUMENT["components"]["schemas"]["TipRequest"]["properties"]["user_id"]
    is_described = bool(re.search(field["pattern"].removesuffix("$") + r"\Z", user_id))
    if is_described:
        TipRequest.model_validate({"user_id": user_id})
    else:
        with pytest.raises(ValidationError):
            TipRequest.model_validate({"user_id": user_id})


schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, litellm_imported: None) -> object:  # noqa: ARG001
    upstream = Upstream()
    with running(upstream.app()) as upstream.url:
        app = create_app(
            ServingSettings(tip_model="openai/good", tip_model_api_base=f"{upstream.url}/v1"),
            RecommenderSettings(database_url=f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('openapi')}/tips.db"),
        )
        with running(app) as url:
            yield url


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_responses_conform_to_the_document(case: schemathesis.Case[Any], url: str) -> None:
    if re.fullmatch("[1-9][0-9]{0,2}", str(case.headers.get("X-Request-Timeout-Ms", ""))):
        case.headers["X-Request-Timeout-Ms"] = "10000"  # a shorter timeout gives a 504
    if "x-schemathesis-unknown-property" in case.headers:
        return  # an unknown header is ignored, as HTTP requires, and not refused
    response = case.call(base_url=url)
    if case.path == "/health/ready" and response.status_code == 503:
        return  # LiteLLM is still being imported
    if response.status_code == 413:
        return  # the size limit of the body is not in the schema
    if response.status_code == 422 and response.json()["type"].endswith(":idempotency-key-reused"):
        return  # the same key is generated for different bodies
    if response.status_code == 422 and all(
        NOT_EXPRESSIBLE.fullmatch(error["pointer"]) for error in response.json()["errors"]
    ):
        return
    case.validate_response(response)
