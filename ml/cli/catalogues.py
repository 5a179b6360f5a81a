"""The versions and cards of serving, for commands.

They are asked of the service at SERVING_URL, or taken from the settings of serving here.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Protocol

import httpx

from ml.cli.stores import needs_recommender_extra, recommender_settings
from ml.experiments.rollout_state import Catalogue
from ml.registry.cards import ModelCard
from ml.serving.app import check_settings, load_policies
from ml.serving.cards import serving_cards
from ml.serving.policies import LoadedPolicies
from ml.serving.prompts import PROMPTS
from ml.serving.settings import ServingSettings


class ServingContent(Protocol):
    """Where a command learns what serving has. Both methods raise TipsError if serving does not answer."""

    async def catalogue(self) -> Catalogue: ...

    async def cards(self) -> Sequence[ModelCard]: ...


class LocalContent:
    """The prompt versions of this release, and the policies and models that the settings of serving name."""

    def __init__(self, settings: ServingSettings) -> None:
        """Policies are loaded when they are needed; that raises ConfigurationError if one cannot be used."""
        self._settings = settings

    @cached_property
    def _policies(self) -> LoadedPolicies:
        check_settings(self._settings)
        return load_policies(self._settings).loaded

    async def catalogue(self) -> Catalogue:
        """Return what serving with these settings has."""
        return Catalogue(
            model=self._settings.tip_model,
            default_prompt_version=self._settings.default_prompt_version,
            prompts={version: prompt.digest for version, prompt in PROMPTS.items()},
            default_policy=self._policies.default.version,
            policies={version: policy.name for version, policy in self._policies.by_version.items()},
        )

    async def cards(self) -> Sequence[ModelCard]:
        """Return the cards of all of it."""
        return serving_cards(self._settings, self._policies.by_version.values())


@asynccontextmanager
async def serving_content() -> AsyncIterator[ServingContent]:
    """Yield the content of the service at SERVING_URL; without one, that of the settings here."""
    settings = recommender_settings()
    if settings.serving_url is None:
        yield LocalContent(ServingSettings.from_environment())
        return
    with needs_recommender_extra():
        from ml.recommender.serving_client import ServingClient, authorization
    headers = authorization(settings.serving_api_key)
    async with httpx.AsyncClient(base_url=settings.serving_url, headers=headers) as http:
        yield ServingClient(http, timeout=settings.generate_timeout_seconds)
