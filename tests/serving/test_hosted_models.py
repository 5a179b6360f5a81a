"""Hosted models through LiteLLM's real providers, against a fake of three wire formats; no real provider is called."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from ml.serving.hosted_model import REASONING_ALLOWANCE
from ml.serving.prompts import PROMPTS, Parameters
from ml.serving.settings import ServingSettings
from tests.conftest import becomes_ready, serving_client
from tests.hosted_models import HostedModels
from tests.server import running
from tests.upstream import TIP
from tests.wire_formats import INPUT_TOKENS, OUTPUT_TOKENS

LIMIT = PROMPTS["v1"].parameters.max_tokens
WITH_REASONING = LIMIT + REASONING_ALLOWANCE

StartService = Callable[..., httpx.Client]


@pytest.fixture
def hosted(litellm_imported: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostedModels]:  # noqa: ARG001
    """The fake providers, at the addresses from which LiteLLM's providers take theirs."""
    hosted = HostedModels()
    with running(hosted.app()) as hosted.url:
        for variable, value in hosted.environment().items():
            monkeypatch.setenv(variable, value)
        yield hosted


@pytest.fixture
def start(hosted: HostedModels) -> Iterator[StartService]:  # noqa: ARG001
    with ExitStack() as stack:

        def start(model: str, *fallbacks: str, **settings: Any) -> httpx.Client:
            settings = {"tip_model": model, "tip_model_fallbacks": fallbacks, **settings}
            http = stack.enter_context(serving_client(ServingSettings(**settings)))
            assert becomes_ready(http)
            return http

        yield start


def generate(http: httpx.Client, *, stream: bool) -> dict[str, Any]:
    """Ask for a tip; return the answer, the data of the last event, or the problem."""
    answer = http.post("/generate", json={"signals": {"energy": 3}, "stream": stream})
    data = answer.text.strip().rpartition("data: ")[2] if "event-stream" in answer.headers["content-type"] else None
    result: dict[str, Any] = json.loads(data or answer.text)
    return result


def sent(body: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters in a request to a provider."""
    parameters: dict[str, Any] = body.get("generationConfig", body)
    names = {
        "temperature", "top_p", "max_tokens", "max_completion_tokens", "max_output_tokens", "reasoning_effort",
        "thinking", "thinkingConfig", "output_config",
    }  # fmt: skip
    return {name: value for name, value in parameters.items() if name in names}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "reasoning_tokens", "parameters"),
    [
        ("openai/gpt-4o-mini", 0, {"temperature", "top_p", "max_tokens"}),
        ("openai/gpt-5-mini", 64, {"max_completion_tokens", "reasoning_effort"}),
        ("openai/o4-mini", 1000, {"max_completion_tokens", "reasoning_effort"}),
        ("anthropic/claude-sonnet-4-5", 0, {"temperature", "max_tokens"}),
        ("anthropic/claude-opus-4-7", 0, {"max_tokens"}),
        ("gemini/gemini-2.5-flash", 0, {"temperature", "top_p", "max_output_tokens", "thinkingConfig"}),
        ("gemini/gemini-2.5-pro", 128, {"temperature", "top_p", "max_output_tokens", "thinkingConfig"}),
        ("gemini/gemini-3-flash-preview", 64, {"temperature", "top_p", "max_output_tokens", "thinkingConfig"}),
    ],
)
def test_a_current_model_answers_the_first_call_and_its_reasoning_is_counted(
    start: StartService, hosted: HostedModels, model: str, reasoning_tokens: int, parameters: set[str], stream: bool
) -> None:
    answer = generate(start(model), stream=stream)
    assert answer["tip"] == TIP
    assert answer["usage"] == {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS + reasoning_tokens}
    (body,) = hosted.bodies
    allowed = Parameters(top_p=0.9) if "top_p" in parameters else Parameters()
    assert parameters - {"top_p"} <= sent(body).keys() <= parameters
    assert sent(body).get("temperature", allowed.temperature) == allowed.temperature


@pytest.mark.parametrize(
    ("model", "limit", "effort"),
    [
        ("openai/gpt-5-mini", "max_completion_tokens", {"reasoning_effort": "minimal"}),
        ("openai/o4-mini", "max_completion_tokens", {"reasoning_effort": "low"}),
        ("anthropic/claude-opus-5-5", "max_tokens", {"output_config": {"effort": "low"}}),
        ("gemini/gemini-2.5-flash", "max_output_tokens", {"thinkingConfig": {"thinkingBudget": 0}}),
        ("gemini/gemini-3-flash-preview", "max_output_tokens", {"thinkingConfig": {"thinkingLevel": "minimal"}}),
    ],
)
def test_a_reasoning_model_is_asked_for_the_least_effort_and_gets_a_higher_limit(
    start: StartService, hosted: HostedModels, model: str, limit: str, effort: dict[str, Any]
) -> None:
    generate(start(model), stream=False)
    parameters = sent(hosted.bodies[0])
    assert parameters[limit] == WITH_REASONING
    for name, value in effort.items():
        assert parameters[name] == value or parameters[name].items() >= value.items()


def test_a_reasoning_model_at_the_operator_s_own_address_gets_the_parameters_of_its_provider(
    start: StartService, hosted: HostedModels
) -> None:
    http = start("openai/gpt-5-mini", tip_model_api_base=f"{hosted.url}/v1")
    assert generate(http, stream=False)["tip"] == TIP
    assert sent(hosted.bodies[0]) == {"max_completion_tokens": WITH_REASONING, "reasoning_effort": "minimal"}


@pytest.mark.parametrize("is_own_server", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "refused"),
    [
        ("unknown-either", {"top_p"}),
        ("unknown-strict", {"temperature"}),
        ("unknown-new", {"max_tokens"}),
    ],
)
def test_a_parameter_that_an_unknown_model_refuses_is_left_out_from_then_on(
    start: StartService, hosted: HostedModels, model: str, refused: set[str], stream: bool, is_own_server: bool
) -> None:
    http = start(f"openai/{model}", **({"tip_model_api_base": f"{hosted.url}/v1"} if is_own_server else {}))
    for _ in range(2):
        assert generate(http, stream=stream)["tip"] == TIP
    assert [refused <= sent(body).keys() for body in hosted.bodies] == [True, False, False]


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_that_spends_its_limit_on_reasoning_gets_a_higher_one(
    start: StartService, hosted: HostedModels, stream: bool
) -> None:
    http = start("openai/unknown-reasoning", tip_model_api_base=f"{hosted.url}/v1")
    for _ in range(2):
        assert generate(http, stream=stream)["tip"] == TIP
    limits = [body["max_tokens"] for body in hosted.bodies if "temperature" not in body]
    assert limits == [LIMIT, WITH_REASONING, WITH_REASONING]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["openai/gpt-5-mini", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash"])
@pytest.mark.parametrize(
    ("outcome", "slug"),
    [("length", "unusable-tip"), ("tool", "unusable-tip"), ("refused", "content-refused"), ("none", "upstream-failed")],
)
def test_an_unfinished_answer_is_an_error_in_every_wire_format(
    start: StartService, hosted: HostedModels, model: str, outcome: str, slug: str, stream: bool
) -> None:
    hosted.outcome = outcome
    assert generate(start(model), stream=stream)["type"] == f"urn:tips:problem:{slug}"


def test_a_stream_that_begins_with_the_provider_s_overload_is_a_503(start: StartService, hosted: HostedModels) -> None:
    hosted.outcome = "overloaded"
    http = start("anthropic/claude-sonnet-4-5")
    answer = http.post("/generate", json={"stream": True})
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:tips:problem:upstream-overloaded")
    assert answer.headers["retry-after"] == "1"


def test_a_fallback_of_the_same_provider_is_called_at_the_provider_s_own_address(
    start: StartService, hosted: HostedModels
) -> None:
    dead = "http://127.0.0.1:9/v1"
    answer = generate(start("openai/local", "openai/gpt-4o-mini", tip_model_api_base=dead), stream=False)
    assert (answer["model"], answer["fallback"]) == ("openai/gpt-4o-mini", True)
    assert [body["model"] for body in hosted.bodies] == ["gpt-4o-mini"]


def test_the_same_model_can_be_its_own_fallback_at_another_address(start: StartService) -> None:
    http = start("openai/gpt-4o-mini", "openai/gpt-4o-mini", tip_model_api_base="http://127.0.0.1:9/v1")
    assert generate(http, stream=False)["fallback"] is True
