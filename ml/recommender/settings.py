"""The settings of the recommender."""

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo
from pydantic_settings import NoDecode

from ml.experiments.policies import (
    POLICIES,
    ROLLOUT,
    UNIFORM,
    check_policy_weights,
    is_version_name,
    parse_version_weights,
)
from ml.experiments.thompson import HALF_LIFE_DAYS
from ml.platform.settings import Address, ServiceSettings, has_valid_port
from ml.rollouts.gate_settings import Criterion, GateSettings
from ml.rollouts.webhook_signature import decode_secret


def _parse_versions(value: object) -> object:
    return parse_version_weights(value) if isinstance(value, str) else value


def _check_database_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    sqlite_file = re.fullmatch(r"sqlite\+aiosqlite:///(?!:memory:|file:)[^?]+", url)
    if not sqlite_file and not (re.fullmatch(r"postgresql\+asyncpg://\S+", url) and has_valid_port(url)):
        raise ValueError("should be sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER:PASSWORD@HOST/NAME")
    return value


def _check_prompt_policy(value: str, info: ValidationInfo) -> str:
    check_policy_weights(value, dict(info.data.get("tip_prompt_version", ())))
    return value


def _check_control(value: str | None) -> str | None:
    if value is not None and not is_version_name(value):
        raise ValueError("should be one prompt version, such as v1")
    return value


def _check_holdout(value: float, info: ValidationInfo) -> float:
    if value and info.data.get("tip_prompt_policy", ROLLOUT) != ROLLOUT:
        raise ValueError(f"needs TIP_PROMPT_POLICY={ROLLOUT}")
    if value and not info.data.get("rollout_control", True):
        raise ValueError("needs ROLLOUT_CONTROL, the prompt version of held-out users")
    return value


def _check_webhook_secret(value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    if value is None and info.data.get("rollout_webhook_url") is not None:
        raise ValueError("is required with ROLLOUT_WEBHOOK_URL")
    if value is not None:
        decode_secret(value)
    return value


class RecommenderSettings(ServiceSettings):
    """The settings of `ml.recommender`."""

    tip_prompt_version: Annotated[tuple[tuple[str, float], ...], NoDecode, BeforeValidator(_parse_versions)] = ()
    """The prompt versions to choose among, each with its weight; empty: serving's default."""
    tip_prompt_policy: Annotated[str, AfterValidator(_check_prompt_policy)] = UNIFORM
    thompson_half_life_days: float = Field(default=HALF_LIFE_DAYS, gt=0, allow_inf_nan=False)
    tip_candidates: int = Field(default=1, ge=1, le=10)
    serving_url: Address | None = None
    serving_api_key: SecretStr | None = None
    database_url: Annotated[SecretStr, AfterValidator(_check_database_url)] = SecretStr("sqlite+aiosqlite:///tips.db")
    reaction_window_hours: float = Field(default=24, gt=0, le=24 * 365)
    tip_exposure: Literal["assumed", "reported"] = "assumed"
    """Whether every tip counts as seen, or only one whose exposure is reported within the reaction window."""
    rollout_control: Annotated[str | None, AfterValidator(_check_control)] = None
    rollout_holdout: Annotated[float, AfterValidator(_check_holdout)] = Field(default=0, ge=0, le=0.5)
    """The share of users who always get ROLLOUT_CONTROL."""
    rollout_shadow_share: float = Field(default=0.1, ge=0, le=1)
    rollout_shadow_limit: int = Field(default=2_000, ge=0, le=1_000_000)
    """The maximum number of shadow tips and rankings of one rollout."""
    rollout_margin: float = Field(default=GateSettings().margin, gt=0, lt=1)
    """The loss of mean reward that is accepted of a version, in [0, 1]."""
    rollout_criterion: Criterion = GateSettings().criterion
    auto_ramp: bool = False
    """Whether the monitor promotes versions whose gates all pass."""
    admin_password: SecretStr | None = None
    rollout_webhook_url: Address | None = None
    """Where the events of rollouts are posted."""
    rollout_webhook_secret: Annotated[SecretStr | None, AfterValidator(_check_webhook_secret)] = Field(
        default=None, validate_default=True
    )

    @property
    def reaction_window(self) -> timedelta:
        """How long a tip waits for a reaction."""
        return timedelta(hours=self.reaction_window_hours)

    @property
    def exposure_reported(self) -> bool:
        """Whether only tips whose exposure was reported count."""
        return self.tip_exposure == "reported"

    @property
    def follows_rollouts(self) -> bool:
        """Whether rollouts decide the prompt version of each tip."""
        return POLICIES[self.tip_prompt_policy].from_rollouts

    @property
    def mirrors_stages(self) -> bool:
        """Whether aliases in MLflow's registry mirror the stages of policies, when only the recommender runs."""
        return "mlflow_tracking_uri" in self.model_fields_set

    @property
    def gates(self) -> GateSettings:
        """The bounds of the gates of rollouts."""
        return GateSettings(margin=self.rollout_margin, criterion=self.rollout_criterion)

    @property
    def version_weights(self) -> dict[str, float]:
        """The weight of each version of TIP_PROMPT_VERSION."""
        return dict(self.tip_prompt_version)
