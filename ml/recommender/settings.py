"""The settings of the recommender."""

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo
from pydantic_settings import NoDecode

from ml.experiments.policies import UNIFORM, check_policy_weights, parse_version_weights
from ml.experiments.thompson import HALF_LIFE_DAYS
from ml.platform.settings import Address, ServiceSettings, has_valid_port


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
    admin_password: SecretStr | None = None

    @property
    def reaction_window(self) -> timedelta:
        """How long a tip waits for a reaction."""
        return timedelta(hours=self.reaction_window_hours)

    @property
    def exposure_reported(self) -> bool:
        """Whether only tips whose exposure was reported count."""
        return self.tip_exposure == "reported"

    @property
    def version_weights(self) -> dict[str, float]:
        """The weight of each version of TIP_PROMPT_VERSION."""
        return dict(self.tip_prompt_version)
