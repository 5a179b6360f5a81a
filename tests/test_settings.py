import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from ml.settings import EMBEDDED_MODEL, ConfigurationError, ServingSettings

ROOT = Path(__file__).parents[1]


def read(monkeypatch: pytest.MonkeyPatch, **environment: str) -> ServingSettings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return ServingSettings.from_environment()


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {name.upper(): "" for name in ServingSettings.model_fields}
    assert read(monkeypatch, **empty) == ServingSettings()


def test_the_defaults_are_the_embedded_model_and_the_baseline() -> None:
    settings = ServingSettings()
    assert (settings.models, settings.most_in_flight) == ((EMBEDDED_MODEL,), 4)
    assert settings.default_prompt_version == "v1"


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(
        monkeypatch,
        TIP_MODEL="openai/a",
        TIP_MODEL_FALLBACKS="anthropic/b, ollama/c:7b,",
        API_KEYS="one, two",
        MAX_IN_FLIGHT="",
    )
    assert settings.models == ("openai/a", "anthropic/b", "ollama/c:7b")
    assert settings.api_keys == (SecretStr("one"), SecretStr("two"))
    assert settings.most_in_flight == 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIP_MODEL", "gpt-4o-mini"),
        ("TIP_MODEL_FALLBACKS", "openai/a,b"),
        ("TIP_MODEL_API_BASE", "localhost:8080"),
        ("EMBEDDED_MODEL_PATH", "/nowhere/model.gguf"),
        ("GENERATE_TIMEOUT_SECONDS", "0"),
        ("GENERATE_TIMEOUT_SECONDS", "soon"),
        ("MAX_IN_FLIGHT", "0"),
        ("MAX_IN_FLIGHT", "many"),
        ("ALLOW_ANONYMOUS", "perhaps"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
    ],
)
def test_a_wrong_value_is_one_plain_sentence_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{name}: the value .+\.$") as raised:
        read(monkeypatch, **{name: value})
    assert "\n" not in str(raised.value)


def test_settings_cannot_change_and_do_not_show_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, API_KEYS="top-secret")
    assert "top-secret" not in repr(settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.default_prompt_version = "v2-mentor"  # type: ignore[misc]


def test_every_setting_has_a_line_in_the_example_and_a_row_in_the_readme() -> None:
    settings = {name.upper() for name in ServingSettings.model_fields}
    example = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^#? ?([A-Z_]+)=", example, re.MULTILINE)) == settings
    assert settings <= set(re.findall(r"^\| `([A-Z_]+)`", (ROOT / "README.md").read_text(), re.MULTILINE))
