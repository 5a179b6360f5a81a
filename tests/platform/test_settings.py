"""The settings of both services, from the environment."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from ml.pipelines.settings import PipelineSettings
from ml.platform.settings import ConfigurationError
from ml.recommender.settings import RecommenderSettings
from ml.serving.settings import EMBEDDED_MODEL, ServingSettings

ROOT = Path(__file__).parents[2]


def read(monkeypatch: pytest.MonkeyPatch, **environment: str) -> ServingSettings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return ServingSettings.from_environment()


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {name.upper(): "" for name in ServingSettings.model_fields}
    assert read(monkeypatch, **empty) == ServingSettings()
    for name in RecommenderSettings.model_fields:
        monkeypatch.setenv(name.upper(), "")
    assert RecommenderSettings.from_environment() == RecommenderSettings()


def test_the_defaults_are_the_embedded_model_and_the_baseline_prompt() -> None:
    settings = ServingSettings()
    assert (settings.models, settings.generation_limit) == ((EMBEDDED_MODEL,), 4)
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
    assert settings.generation_limit == 64


@pytest.mark.parametrize(
    ("value", "weights"),
    [
        ("", ()),
        ("v1", (("v1", 1),)),
        ("v1,v2-mentor", (("v1", 1), ("v2-mentor", 1))),
        (" v1=90 , v2-mentor = 10.5", (("v1", 90), ("v2-mentor", 10.5))),
    ],
)
def test_tip_prompt_version_is_one_version_a_list_or_weights(
    monkeypatch: pytest.MonkeyPatch, value: str, weights: object
) -> None:
    monkeypatch.setenv("TIP_PROMPT_VERSION", value)
    assert RecommenderSettings.from_environment().tip_prompt_version == weights


@pytest.mark.parametrize(
    ("policy", "versions", "error"),
    [
        ("uniform", "", ""),
        ("uniform", "v1=90,v2-mentor=10", ""),
        ("sticky", "v1=90,v2-mentor=10", ""),
        ("sticky", "v1,v2-mentor", ""),
        ("thompson", "v1,v2-mentor,v3-few-shot", ""),
        ("sticky", "", "needs at least 2 versions in TIP_PROMPT_VERSION"),
        ("thompson", "v1", "needs at least 2 versions in TIP_PROMPT_VERSION"),
        ("thompson", "v1=90,v2-mentor=10", "accepts no weights in TIP_PROMPT_VERSION: it determines them"),
        ("best", "v1,v2-mentor", "should be one of uniform, sticky, thompson, rollout"),
    ],
)
def test_a_prompt_policy_accepts_only_suitable_versions(
    monkeypatch: pytest.MonkeyPatch, policy: str, versions: str, error: str
) -> None:
    monkeypatch.setenv("TIP_PROMPT_POLICY", policy)
    monkeypatch.setenv("TIP_PROMPT_VERSION", versions)
    if error:
        with pytest.raises(ConfigurationError) as raised:
            RecommenderSettings.from_environment()
        assert str(raised.value) == f"TIP_PROMPT_POLICY: the value {policy!r} {error}."
    else:
        assert RecommenderSettings.from_environment().tip_prompt_policy == policy


def test_an_error_in_the_versions_is_reported_before_one_in_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIP_PROMPT_POLICY", "thompson")
    monkeypatch.setenv("TIP_PROMPT_VERSION", "v1,v1")
    with pytest.raises(ConfigurationError, match=r"^TIP_PROMPT_VERSION: "):
        RecommenderSettings.from_environment()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("TIP_PROMPT_VERSION", value)
            for value in (
                *(",", "v1,", "v1,,v2", "v1,v1", "v1=90,v2", "v1=0,v2=1", "v1=-1,v2=1", "v1=x,v2=1", "v1=nan,v2=1"),
                *(
                    "v1=inf,v2=1",
                    "v1=1=2,v2=1",
                    "=1,v2=1",
                    "v 1",
                    "-v1",
                    "x" * 41,
                    ",".join(f"v{n}" for n in range(21)),
                ),
            )
        ),
        ("SERVING_URL", "localhost:8000"),
        ("SERVING_URL", "http://localhost:99999"),
        ("SERVING_URL", "http://[::1"),
        *(
            ("DATABASE_URL", value)
            for value in (
                *("tips.db", "sqlite:///tips.db", "sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:"),
                *("sqlite+aiosqlite:///file:tips?mode=memory", "postgresql://localhost/tips", "mysql://localhost/tips"),
                *("postgresql+asyncpg://", "postgresql+asyncpg://db:99999/tips", "postgresql+asyncpg://[::1/tips"),
            )
        ),
        ("TIP_CANDIDATES", "0"),
        ("TIP_CANDIDATES", "11"),
        ("TIP_CANDIDATES", "1.5"),
        ("REACTION_WINDOW_HOURS", "0"),
        ("REACTION_WINDOW_HOURS", "a day"),
        ("GENERATE_TIMEOUT_SECONDS", "0"),
    ],
)
def test_a_wrong_recommender_setting_is_an_error_of_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=rf"^{name}: the value .+[^.]\.$") as raised:
        RecommenderSettings.from_environment()
    assert "\n" not in str(raised.value)


def test_a_large_limit_is_named_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_SHADOW_LIMIT", "-1")
    with pytest.raises(ConfigurationError, match=r"'-1' should be a whole number, at least 0 and at most 1000000\.$"):
        RecommenderSettings.from_environment()


def test_secrets_of_the_recommender_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DATABASE_URL": "postgresql+asyncpg://tips:top-secret@db/tips",
        "ADMIN_PASSWORD": "top-secret",
        "SERVING_API_KEY": "top-secret",
    }.items():
        monkeypatch.setenv(name, value)
    assert "top-secret" not in repr(RecommenderSettings.from_environment())
    monkeypatch.setenv("DATABASE_URL", "mysql://tips:top-secret@db/tips")
    with pytest.raises(ConfigurationError, match="DATABASE_URL") as raised:
        RecommenderSettings.from_environment()
    assert "top-secret" not in str(raised.value)


FIELDS = [
    (settings_class, name)
    for settings_class in (ServingSettings, RecommenderSettings)
    for name in settings_class.model_fields
]
ADDRESSES = [
    f"{scheme}://{rest}"
    for scheme in (
        "http",
        "https",
        "postgresql+asyncpg",
        "postgresql",
        "mysql+pymysql",
        "redis",
        "rediss",
        "databricks",
    )
    for rest in ("user:top-secret@host/name", "host/name?password=top-secret", ":top-secret@host:1/0")
] + ["sqlite:///top-secret.db", "sqlite+aiosqlite:///top-secret.db"]


@pytest.mark.parametrize(("settings_class", "name"), FIELDS)
def test_no_setting_shows_a_password_in_an_address(
    settings_class: type[ServingSettings | RecommenderSettings], name: str
) -> None:
    values: list[object] = [*ADDRESSES, *((address,) for address in ADDRESSES)]
    for value in values:
        with suppress(ValidationError):
            fields: dict[str, Any] = {name: value}
            shown = settings_class(**fields)
            assert "top-secret" not in f"{shown} {shown!r}"


VALID_ADDRESSES = {
    "database_url": "postgresql+asyncpg://user:top-secret@host/name",
    "online_store_url": "redis://user:top-secret@host/1",
}


@pytest.mark.parametrize(
    ("settings_class", "names"),
    [
        (
            ServingSettings,
            {"tip_model_api_base", "mlflow_tracking_uri", "online_store_url", "otel_exporter_otlp_endpoint"},
        ),
        (RecommenderSettings, {"serving_url", "database_url", "otel_exporter_otlp_endpoint"}),
    ],
)
def test_an_address_with_a_password_is_accepted(
    settings_class: type[ServingSettings | RecommenderSettings], names: set[str]
) -> None:
    for name in names:
        fields: dict[str, Any] = {name: VALID_ADDRESSES.get(name, "https://user:top-secret@host/name")}
        settings = settings_class(**fields)
        assert getattr(settings, name)
        assert f"{name}=" in repr(settings)


STORE_URL = "should be sqlite:///FILE or redis://[:PASSWORD@]HOST:PORT/DB, with rediss:// for TLS"


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        (
            "TIP_MODEL",
            "gpt-4o-mini",
            "'gpt-4o-mini' should be a LiteLLM model id with its provider, such as openai/gpt-4o-mini",
        ),
        (
            "TIP_MODEL_FALLBACKS",
            "openai/a,b",
            "'b' should be a LiteLLM model id with its provider, such as openai/gpt-4o-mini",
        ),
        ("TIP_MODEL_API_BASE", "localhost:8080", "'localhost:8080' should be an http:// or https:// address"),
        ("ONLINE_STORE_URL", "features.db", f"'features.db' {STORE_URL}"),
        ("ONLINE_STORE_URL", "redis://host/0?password=top-secret", STORE_URL),
        ("ONLINE_STORE_URL", "redis://:top-secret", STORE_URL),
        ("TIP_MODEL_API_BASE", "user:top-secret@host", "should be an http:// or https:// address"),
        ("EMBEDDED_MODEL_PATH", "/nowhere/model.gguf", "'/nowhere/model.gguf' is not a file that can be read"),
        ("GENERATE_TIMEOUT_SECONDS", "0", "'0' should be a number, above 0 and at most 600"),
        (
            "GENERATE_TIMEOUT_SECONDS",
            "soon",
            "'soon' should be a number, above 0 and at most 600",
        ),
        ("MAX_IN_FLIGHT", "0", "'0' should be a whole number, at least 1"),
        ("MAX_IN_FLIGHT", "many", "'many' should be a whole number, at least 1"),
        ("ALLOW_ANONYMOUS", "perhaps", "'perhaps' should be true or false"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector", "'collector' should be an http:// or https:// address"),
    ],
)
def test_a_wrong_setting_is_an_error_of_one_sentence_with_the_name_and_the_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, error: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(monkeypatch, **{name: value})
    assert str(raised.value) == f"{name}: the value {error}."


SECRET_SETTINGS = {"API_KEYS", "ADMIN_PASSWORD", "SERVING_API_KEY", "DATABASE_URL", "ROLLOUT_WEBHOOK_SECRET"}
PUBLIC_SETTINGS = sorted(
    {name.upper() for name in ServingSettings.model_fields | RecommenderSettings.model_fields} - SECRET_SETTINGS
)


@pytest.mark.parametrize("name", PUBLIC_SETTINGS)
@given(value=st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="@,?"), min_size=1))
def test_every_error_names_the_value_once_and_has_no_words_of_the_library(name: str, value: str) -> None:
    field = name.lower()
    settings = ServingSettings if field in ServingSettings.model_fields else RecommenderSettings
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        sentence = ""
        try:
            settings.from_environment()
        except ConfigurationError as error:
            sentence = str(error)
    start, words, requirement = sentence.partition(f"{name}: the value {value!r} ")
    assert (start, bool(words)) == ("", bool(sentence))
    assert re.match(r"should |is |needs |accepts |$", requirement)
    assert not re.search(r"Input|input|unable|Value error|parse|String|valid ", requirement)


def test_settings_are_frozen_and_do_not_show_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, API_KEYS="top-secret")
    assert "top-secret" not in repr(settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.default_prompt_version = "v2-mentor"  # type: ignore[misc]


def test_every_setting_has_a_line_in_the_example_and_a_row_in_the_documentation() -> None:
    classes = (ServingSettings, RecommenderSettings, PipelineSettings)
    settings = {name.upper() for each in classes for name in each.model_fields}
    example = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^#? ?([A-Z_]+)=", example, re.MULTILINE)) == settings
    documentation = "\n".join(file.read_text() for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert settings <= set(re.findall(r"^\| `([A-Z_]+)`", documentation, re.MULTILINE))
