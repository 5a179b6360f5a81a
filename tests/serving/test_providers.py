"""The copy of LiteLLM's list of providers, and the variables of their keys."""

from typing import Any

import pytest

from ml.platform.settings import ConfigurationError
from ml.serving.litellm_adapter import import_litellm
from ml.serving.providers import KEY_VARIABLES, PROVIDERS, missing_key
from ml.serving.settings import EMBEDDED_MODEL, ServingSettings


@pytest.fixture
def litellm(litellm_imported: None) -> Any:  # noqa: ARG001
    return import_litellm().module


def test_the_providers_are_those_of_litellm(litellm: Any) -> None:
    # A test that ran before may have registered the embedded model as a provider.
    registered = {entry["provider"] for entry in litellm.custom_provider_map}
    assert {str(getattr(provider, "value", provider)) for provider in litellm.provider_list} - registered == PROVIDERS


@pytest.mark.parametrize("provider", KEY_VARIABLES)
def test_the_key_variables_are_those_of_litellm(litellm: Any, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = litellm.validate_environment(f"{provider}/any")["missing_keys"]
    assert missing
    assert set(missing) <= set(KEY_VARIABLES[provider])
    monkeypatch.setenv(KEY_VARIABLES[provider][0], "k")
    assert litellm.validate_environment(f"{provider}/any")["keys_in_environment"]


def test_a_key_in_any_of_its_variables_is_enough_and_an_empty_one_is_none() -> None:
    assert missing_key("gemini/any", {"GOOGLE_API_KEY": "k"}) == ""
    assert missing_key("gemini/any", {"GEMINI_API_KEY": ""}) == "GEMINI_API_KEY"
    assert missing_key("ollama/any", {}) == ""


@pytest.mark.parametrize("variable", ["TIP_MODEL", "TIP_MODEL_FALLBACKS"])
@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("anthropc/claude", "such as anthropic"),
        ("qqq/model", "such as openai"),
        ("gpt-4o-mini", "with its provider"),
        ("embedded/other", EMBEDDED_MODEL),
    ],
)
def test_an_unknown_provider_stops_the_start_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, variable: str, model: str, hint: str
) -> None:
    monkeypatch.setenv(variable, model)
    with pytest.raises(ConfigurationError) as error:
        ServingSettings.from_environment()
    sentence = str(error.value)
    assert sentence.startswith(f"{variable}: ")
    assert model in sentence
    assert hint in sentence
    assert "\n" not in sentence
